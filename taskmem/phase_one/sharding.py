"""DeepSpeed's settings for ZeRO-3 on a mixture of experts."""

from typing import Any

EXPERTS = "transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe.Qwen3VLMoeTextSparseMoeBlock"
"""The module whose parameters are gathered at once. DeepSpeed 0.19's own list has qwen3_moe but not qwen3_vl_moe."""
LIVE_PARAMETERS = 2_000_000_000
"""Gathered at one time, of whatever layers: a layer's experts are 0.6e9, so two layers and what lies between them."""
BUCKET = 500_000_000
"""Elements of a gradient bucket and of the prefetched parameters."""
GROUP = 100_000_000
"""Elements of one step of the optimiser, whose gradients are brought to fp32 together."""
PERSISTENT = 100_000
"""Parameters up to so many elements (norms, biases) are never sharded."""


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
            "stage3_param_persistence_threshold": PERSISTENT,
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
