"""Steer, a PEFT method: one fp32 vector added to the hidden state after one decoder layer (METHOD section 4, step 5).

Importing this package registers the method, after which `get_peft_model` and `PeftModel.from_pretrained` know it.
"""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from taskmem.steer.config import STEER, SteerConfig, read_adapter
from taskmem.steer.layer import SteerLayer
from taskmem.steer.model import SteerModel, load_adapter, scale_to_norm, steer_vector

__all__ = ["SteerConfig", "SteerLayer", "SteerModel", "load_adapter", "read_adapter", "scale_to_norm", "steer_vector"]

# A second import finds our own entry; anybody else's method of this name still meets PEFT's refusal.
if getattr(PEFT_TYPE_TO_CONFIG_MAPPING.get(STEER), "__module__", None) != SteerConfig.__module__:
    register_peft_method(name="steer", config_cls=SteerConfig, model_cls=SteerModel)
