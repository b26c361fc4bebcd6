"""Tiny random models: the real classes, a few kilobytes of weights."""

import copy

import pytest
import torch
from transformers import (
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

HIDDEN = 64
VIDEO_TOKEN, VISION_START, VISION_END = 120, 121, 122
TEXT = {
    "vocab_size": 128,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def vl_moe() -> PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_interleaved": True, "mrope_section": [6, 5, 5]}
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 8,
        "out_hidden_size": HIDDEN,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLMoeConfig(
        text_config={**TEXT, **EXPERTS, "rope_parameters": rope},
        vision_config=vision,
        image_token_id=123,
        video_token_id=VIDEO_TOKEN,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    return Qwen3VLMoeForConditionalGeneration(config)


def moe_lm() -> PreTrainedModel:
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**TEXT, **EXPERTS))


def dense_lm() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**TEXT))


@pytest.fixture(scope="session")
def originals() -> dict[str, PreTrainedModel]:
    models = {}
    for build in (vl_moe, moe_lm, dense_lm):
        torch.manual_seed(0)
        models[build.__name__] = build().eval()
    return models


@pytest.fixture(params=["vl_moe", "moe_lm", "dense_lm"])
def any_base(request: pytest.FixtureRequest, originals: dict[str, PreTrainedModel]) -> PreTrainedModel:
    return copy.deepcopy(originals[request.param])


@pytest.fixture
def base(originals: dict[str, PreTrainedModel]) -> PreTrainedModel:
    return copy.deepcopy(originals["vl_moe"])


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(1, 100, (2, 7), generator=torch.Generator().manual_seed(1))
