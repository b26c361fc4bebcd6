"""The tiny policy's tokenizer, processor and random weights."""

import random
from typing import Any

import pytest
import torch

from taskmem.policy.grammar import CLOSE, OPEN, completion_for
from taskmem.world.checkpoint import CONTROL, build_model, build_processor, build_tokenizer
from taskmem.world.facts import TYPES, describe, sample_facts
from taskmem.world.questions import question_text


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


def test_the_tokenizer_is_the_same_each_time(tokenizer: Any) -> None:
    assert build_tokenizer().backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


@pytest.mark.parametrize("token", [*CONTROL, OPEN, CLOSE])
def test_every_tag_is_one_token(tokenizer: Any, token: str) -> None:
    assert tokenizer.tokenize(f"a{token}b") == ["a", token, "b"]


def test_the_end_of_turn_ends_and_padding_is_another_token(tokenizer: Any) -> None:
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


@pytest.mark.parametrize(
    "text", ["a red person , in the kitchen .", "[12:07] 42", "naïve café \u4f60\u597d", " two  spaces\n\n"]
)
def test_any_text_comes_back_unchanged(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_memories_of_the_world_are_short_and_questions_are_not_split_much(tokenizer: Any) -> None:
    rng = random.Random(9)
    memories = [describe(sample_facts(rng)) for _ in range(50)]
    assert max(len(tokenizer(memory).input_ids) for memory in memories) <= 25
    assert max(len(tokenizer(completion_for(memory)).input_ids) for memory in memories) < 40
    assert max(len(tokenizer(question_text(kind, 605)).input_ids) for kind in TYPES) <= 15


def test_digits_stand_alone(tokenizer: Any) -> None:
    assert tokenizer.tokenize("2026") == ["2", "0", "2", "6"]


def test_the_template_writes_turns_and_one_placeholder_per_video(tokenizer: Any) -> None:
    content = [
        {"type": "text", "text": "[00:00]"},
        {"type": "video", "video": "a.mp4"},
        {"type": "image", "image": "b.png"},
    ]
    text = build_processor(tokenizer).apply_chat_template(
        [{"role": "system", "content": "Watch."}, {"role": "user", "content": content}], add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nWatch.<|im_end|>\n<|im_start|>user\n"
        "[00:00]<|vision_start|><|video_pad|><|vision_end|><|vision_start|><|image_pad|><|vision_end|><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n"
    )


def test_a_model_is_fixed_by_its_seed(tokenizer: Any) -> None:
    one, same, other = (build_model(tokenizer, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_the_model_is_tiny_and_of_the_real_class(tokenizer: Any) -> None:
    model = build_model(tokenizer, seed=0)
    assert type(model).__name__ == "Qwen3VLMoeForConditionalGeneration"
    assert 0.5e6 < sum(p.numel() for p in model.parameters()) < 1e6
    assert model.config.text_config.head_dim == 32
    assert model.config.text_config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_building_a_model_leaves_the_global_generator_alone(tokenizer: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_model(tokenizer, seed=0)
    assert torch.equal(torch.rand(3), expected)
