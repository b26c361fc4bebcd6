"""The PEFT tuner that puts steer layers into a model, and the functions that reach the vectors."""

import math
import warnings
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftModel
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from taskmem.steer.config import SteerConfig, check_vector, read_adapter
from taskmem.steer.layer import SteerLayer


class SteerModel(BaseTuner):
    """A model with steer adapters: each adds one float32 vector [hidden] after one decoder layer.

    Built by `get_peft_model(model, SteerConfig(layer=...))` on any transformers model whose decoder keeps its layers in
    `layers` (Qwen3-VL-MoE below `model.language_model`, a causal LM below `model`). Adapters may sit on different
    layers; `model.base_model.set_adapter([...])` activates several, and those on one layer add up. Only the active
    vectors are trained.
    ValueError for a layer outside the model, a vector of another size, or an adapter name that PEFT cannot keep apart.
    Follows arXiv:2605.31075 as METHOD section 4, step 5 states it.
    """

    prefix = "steer_"
    tuner_layer_cls = SteerLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _prepare_adapter_config(self, peft_config: SteerConfig, model_config: dict[str, Any]) -> SteerConfig:
        layers_name, layers = _decoder_layers(self.model)
        if not 0 <= peft_config.layer < len(layers):
            raise ValueError(
                f"layer {peft_config.layer}: this model has decoder layers 0 to {len(layers) - 1}; choose one"
            )
        size = self._hidden_size()
        if peft_config.loaded_size not in (None, size):
            raise ValueError(
                f"the adapter's vector has {peft_config.loaded_size} values, the model's hidden size is {size}; "
                "use an adapter trained on this model"
            )
        peft_config.target_modules = f"{layers_name}.{peft_config.layer}"
        return peft_config

    @staticmethod
    def _check_target_module_exists(peft_config: SteerConfig, key: str) -> bool:
        return key == peft_config.target_modules

    def _create_and_replace(
        self,
        peft_config: SteerConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        self._check_adapter_name(adapter_name)
        if isinstance(target, SteerLayer):
            target.update_layer(adapter_name, self._hidden_size(), peft_config.inference_mode)
            return
        steered = SteerLayer(target, adapter_name, self._hidden_size(), peft_config.inference_mode)
        self._replace_module(parent, target_name, steered, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's own copies `.weight` from the child, which a decoder layer lacks.
        setattr(parent, child_name, new_module)

    def _hidden_size(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)

    def _check_adapter_name(self, name: str) -> None:
        # PEFT tells adapters apart by finding `.name.` in state_dict keys: such a name would lose others' vectors.
        parts = {part for key, _ in self.model.named_modules() for part in key.split(".")}
        if not name or "." in name or name in parts | {"base_model", "steer_vector"}:
            raise ValueError(
                f"adapter name {name!r}: must be without dots and not the name of a module; choose another"
            )

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate one adapter or several; ValueError for an unknown name, where PEFT would run the base model."""
        for name in [adapter_name] if isinstance(adapter_name, str) else adapter_name:
            if name not in self.peft_config:
                raise ValueError(
                    f"adapter {name!r}: not in this model; choose from {', '.join(sorted(self.peft_config))}"
                )
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove one adapter; if it was the only active one, the first other by name becomes active, with a warning."""
        if adapter_name in self.active_adapters:
            # PEFT lets each layer choose a successor, which would differ between adapters on different layers.
            others = [name for name in self.active_adapters if name != adapter_name]
            if not others and len(self.peft_config) > 1:
                others = sorted(set(self.peft_config) - {adapter_name})[:1]
                warnings.warn(f"adapter {adapter_name} was active; {others[0]} is now", stacklevel=2)
            self.set_adapter(others)
        super().delete_adapter(adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        own = steer_vector(model, adapter_name)
        remapped: dict[str, torch.Tensor] = super()._remap_adapter_state_dict_for_load(
            model=model, config=config, adapter_name=adapter_name, state_dict=state_dict
        )
        if list(remapped) != [key for key, parameter in model.named_parameters() if parameter is own]:
            raise ValueError(
                f"adapter {adapter_name!r}: the weights hold {sorted(state_dict)}, not exactly the vector of layer "
                f"{config.layer}; load an adapter of that layer"
            )
        for key, vector in remapped.items():
            check_vector(vector, key, own.numel())
        return remapped


def _decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    # get_decoder is transformers' own answer to which part is the language model; a vision tower is never it.
    get_decoder = getattr(model, "get_decoder", lambda: None)
    layers = getattr(get_decoder(), "layers", None)
    for name, module in model.named_modules():
        if module is layers and isinstance(module, nn.ModuleList):
            return name, module
    raise ValueError(f"{type(model).__name__}: no decoder layers found to steer; give a transformers decoder model")


def steer_vector(model: nn.Module, adapter: str = "default") -> nn.Parameter:
    """The vector of one adapter: the float32 parameter of shape [hidden] itself, on its layer's device.

    ValueError if the model has no steer adapter of that name.
    """
    layers = [module for module in model.modules() if isinstance(module, SteerLayer)]
    for layer in layers:
        if adapter in layer.steer_vector:
            vector: nn.Parameter = layer.steer_vector[adapter]
            return vector
    known = ", ".join(sorted({name for layer in layers for name in layer.steer_vector})) or "none"
    raise ValueError(f"adapter {adapter!r}: not in this model, which has {known}; add or load it first")


def scale_to_norm(model: nn.Module, norm: float, adapter: str = "default") -> float:
    """Scale an adapter's vector in place to the Euclidean norm `norm` (METHOD section 4, step 5); the factor used.

    ValueError if `norm` is not a positive number, the vector is zero (it has no direction) or it is not finite.
    """
    vector = steer_vector(model, adapter)
    if not (math.isfinite(norm) and norm > 0):
        raise ValueError(f"norm {norm}: cannot scale adapter {adapter!r} to it; give a positive number")
    check_vector(vector.detach(), f"adapter {adapter!r}")
    current = float(vector.detach().double().norm())
    if current == 0:
        raise ValueError(f"adapter {adapter!r}: a zero vector cannot be scaled to norm {norm}; train it first")
    factor = norm / current
    with torch.no_grad():
        vector.mul_(factor)
    return factor


def load_adapter(model: PeftModel, path: str | Path, name: str, *, trainable: bool = False) -> None:
    """Add the adapter saved in the folder `path` to `model` as `name`, inactive; `set_adapter` activates it.

    Unlike `PeftModel.load_adapter` it never overwrites an adapter that is there already, so a name keeps its meaning.
    ValueError for that, for anything `read_adapter` refuses, and for an adapter that does not fit the model.
    """
    if name in model.peft_config:
        raise ValueError(f"adapter {name!r}: already in this model; delete it first or choose another name")
    read_adapter(path)
    try:
        model.load_adapter(str(path), name, is_trainable=trainable, torch_device="cpu")
    except ValueError:
        if name in model.peft_config:  # PEFT adds the adapter before it reads the weights
            model.delete_adapter(name)
        raise
