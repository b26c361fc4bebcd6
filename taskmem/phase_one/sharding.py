"""A mixture of experts under DeepSpeed's ZeRO-3: its settings, and how its weights get in and out.

transformers 5.19 turns the experts' matrices round between file and model where their shapes differ, and takes a sharded
parameter's placeholder for its shape: sharded, it always turns. Nothing fails where a matrix is square. `turned` turns them
once more.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from taskmem.errors import UserError
from taskmem.records import one_line

EXPERTS = "transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe.Qwen3VLMoeTextSparseMoeBlock"
"""The module whose parameters are gathered at once. DeepSpeed 0.19's own list has qwen3_moe but not qwen3_vl_moe."""
LIVE_PARAMETERS = 2_000_000_000
"""Gathered at one time, of whatever layers: a layer's experts are 0.6e9, so two layers and what lies between them."""
BUCKET = 500_000_000
"""Elements of a gradient bucket and of the prefetched parameters."""
GROUP = 100_000_000
"""Elements of one step of the optimiser, whose gradients are brought to fp32 together."""


def deepspeed_config(accelerator: bool) -> dict[str, Any]:
    """The configuration that transformers' trainer completes ("auto"): ZeRO-3, no offload, weights saved whole.

    On an accelerator weights and gradients are bf16 and the optimiser holds the fp32 master; without one all is fp32.
    """
    return {
        "bf16": {"enabled": accelerator},
        "zero_optimization": {
            "stage": 3,
            "contiguous_gradients": True,
            "overlap_comm": accelerator,
            "reduce_bucket_size": BUCKET,
            "stage3_prefetch_bucket_size": BUCKET,
            "stage3_max_live_parameters": LIVE_PARAMETERS,
            "stage3_max_reuse_distance": LIVE_PARAMETERS,
            "stage3_param_persistence_threshold": "auto",  # ten times the hidden size: norms and biases stay whole
            "stage3_gather_16bit_weights_on_model_save": True,
            "sub_group_size": GROUP,
            "leaf_module": {"classes": [EXPERTS]},
        },
        # the optimiser is the same AdamW as without DeepSpeed
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "steps_per_print": 2**31,
    }


def turned(weights: Mapping[str, torch.Tensor], config: Qwen3VLMoeConfig) -> dict[str, torch.Tensor]:
    """`weights` with every expert matrix that lies as in the model, [experts, out, in], turned to [experts, in, out]."""
    text = config.text_config
    lying = {
        "mlp.experts.gate_up_proj": (2 * text.moe_intermediate_size, text.hidden_size),
        "mlp.experts.down_proj": (text.hidden_size, text.moe_intermediate_size),
    }

    def turn(name: str, tensor: torch.Tensor) -> torch.Tensor:
        shape = next((shape for part, shape in lying.items() if name.endswith(part)), None)
        return tensor.transpose(1, 2).contiguous() if shape == tuple(tensor.shape[1:]) else tensor

    return {name: turn(name, tensor) for name, tensor in weights.items()}


def load_sharded(path: Path, dtype: torch.dtype, reads: bool) -> Any:
    """The model of a checkpoint folder, each process holding its part of every weight. All processes call it.

    Only the process that `reads` takes the weights from the files; the others get theirs from it. Needs the trainer's settings,
    which say that ZeRO-3 is on, to exist. UserError if the folder is no checkpoint or not whole.
    """
    try:
        config = Qwen3VLMoeConfig.from_pretrained(path, local_files_only=True)
        weights = {}
        for file in sorted(path.glob("model*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - no mapping
                    weights[name] = opened.get_tensor(name) if reads else _shape(opened.get_slice(name))
        model, report = Qwen3VLMoeForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=turned(weights, config), dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be loaded ({one_line(str(error))}); copy the checkpoint again") from None
    if report["missing_keys"]:
        missing = sorted(map(str, report["missing_keys"]))
        raise UserError(f"{path}: {len(missing)} weights are missing, first {missing[0]}; copy the checkpoint again")
    return model


def _shape(weight: Any) -> torch.Tensor:
    return torch.empty(weight.get_shape(), device="meta")
