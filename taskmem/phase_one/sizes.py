"""What a policy of a configuration weighs, and what its layers keep for the backward pass: bytes, without making it.

Parameters are counted on the meta device. What layers keep was read off saved tensors in bf16 with grouped experts (transformers
5.19, torch 2.13); a test reads it off again.
"""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.records import read_json

TRUE_CONFIG = "qwen3-vl-30b-a3b.json"
STAMP_TOKENS = 12
"""Tokens of the time before each step of a video, and of the marks around it."""


@dataclass(frozen=True)
class Sizes:
    """Counts of a configuration: `parameters` in all, `leaf` those of a layer's experts and router.

    Bytes: `layer` and `vision_layer` are kept a token (patch) for backward, `carried` and `vision_carried` enter a layer, `cache`
    is a token's keys and values in all layers, in bf16.
    """

    parameters: int
    leaf: int
    layers: int
    vision_layers: int
    vocabulary: int
    layer: int
    carried: int
    vision_layer: int
    vision_carried: int
    pixels: int
    cache: int
    patch: int
    merge: int
    temporal: int


def true_config() -> Qwen3VLMoeConfig:
    """The real Qwen3-VL-30B-A3B, 48 layers; the class's own defaults have 24."""
    return read_config(Path(str(resources.files("taskmem.phase_one").joinpath(TRUE_CONFIG))))


def read_config(path: Path) -> Qwen3VLMoeConfig:
    """A policy's config.json; UserError if it is none."""
    document = read_json(path)
    if not isinstance(document, dict) or document.get("model_type") != Qwen3VLMoeConfig.model_type:
        raise UserError(
            f"{path}: not the configuration of a {Qwen3VLMoeConfig.model_type} model; give a policy's folder"
        )
    return Qwen3VLMoeConfig(**{key: value for key, value in document.items() if key != "model_type"})


def sizes_of(config: Qwen3VLMoeConfig) -> Sizes:
    """The sizes of a configuration."""
    with torch.device("meta"):
        model = Qwen3VLMoeForConditionalGeneration(config)
    text, vision = config.text_config, config.vision_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Sizes(
        parameters=_count(model),
        leaf=max(_count(layer.mlp) for layer in model.model.language_model.layers),
        layers=text.num_hidden_layers,
        vision_layers=vision.depth,
        vocabulary=text.vocab_size,
        layer=text_layer_bytes(text, head),
        carried=2 * text.hidden_size,
        vision_layer=vision_layer_bytes(vision),
        vision_carried=2 * vision.hidden_size,
        pixels=4 * vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
        cache=2 * 2 * text.num_hidden_layers * text.num_key_value_heads * head,
        patch=vision.patch_size,
        merge=vision.spatial_merge_size,
        temporal=vision.temporal_patch_size,
    )


def text_layer_bytes(text: Any, head: int) -> int:
    """Bytes a token that a decoder layer keeps for backward, in bf16.

    Norms keep their input in fp32; keys and values are kept for every query head; a token passes `num_experts_per_tok` experts.
    """
    hidden, queries, keys = text.hidden_size, text.num_attention_heads * head, text.num_key_value_heads * head
    norms = 2 * (8 * hidden + 4) + 6 * (queries + keys) + 4 * (text.num_attention_heads + text.num_key_value_heads)
    attention = 8 * queries + 4 * text.num_attention_heads
    router = 4 * text.num_experts + 4
    experts = text.num_experts_per_tok * (4 * hidden + 8 * text.moe_intermediate_size + 38)
    return int(norms + attention + router + experts)


def vision_layer_bytes(vision: Any) -> int:
    """Bytes a patch that a layer of the vision tower keeps for backward, in bf16."""
    return int(22 * vision.hidden_size + 4 * vision.num_heads + 8 + 4 * vision.intermediate_size)


def _count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass(frozen=True)
class Context:
    """The longest context that a profile allows: tokens of its prompt and patches of its video."""

    tokens: int
    patches: int


def longest_context(sizes: Sizes, profile: Profile) -> Context:
    """With square frames of the longest side, every memory as long as its budget, and the whole window."""
    video, policy = profile.video, profile.policy
    frames = round(video.segment_seconds * video.fps)
    steps = policy.window * -(-frames // sizes.temporal)
    side = -(-video.longest_side // (sizes.patch * sizes.merge)) * sizes.merge
    memories = (policy.window - 1) * (profile.reward.quality.memory_budget + STAMP_TOKENS)
    words = len(policy.instruction) // 3
    return Context(steps * (side**2 // sizes.merge**2 + STAMP_TOKENS) + memories + words, steps * side**2)
