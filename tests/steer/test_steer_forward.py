"""h <- h + a after one decoder layer, and nothing else."""

import copy
from typing import Any

import pytest
import torch
from conftest import HIDDEN, VIDEO_TOKEN, VISION_END, VISION_START
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from taskmem.steer import SteerConfig, SteerLayer, scale_to_norm, steer_vector


def logits(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=tokens).logits
    return result


def steered(base: PreTrainedModel, layer: int = 1) -> PeftModel:
    model = get_peft_model(base, SteerConfig(layer=layer))
    fill(model)
    return model


def fill(model: nn.Module, adapter: str = "default", seed: int = 0) -> None:
    steer_vector(model, adapter).data.normal_(generator=torch.Generator().manual_seed(seed))


def gradient(model: nn.Module) -> torch.Tensor:
    found = steer_vector(model).grad
    assert found is not None
    return found


def with_hook(base: PreTrainedModel, layer: int, vector: torch.Tensor) -> PreTrainedModel:
    """The definition, written independently: a forward hook on the untouched decoder layer."""
    base.get_decoder().layers[layer].register_forward_hook(lambda module, args, output: output + vector)
    return base


def test_a_new_adapter_leaves_every_bit_of_the_output_as_it_was(
    any_base: PreTrainedModel, tokens: torch.Tensor
) -> None:
    before = logits(any_base, tokens)
    model = get_peft_model(any_base, SteerConfig(layer=1))
    assert torch.count_nonzero(steer_vector(model)) == 0
    assert torch.equal(logits(model, tokens), before)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_vector_is_added_after_the_chosen_layer(
    any_base: PreTrainedModel, tokens: torch.Tensor, layer: int
) -> None:
    reference, before = copy.deepcopy(any_base), logits(any_base, tokens)
    model = steered(any_base, layer)
    after = logits(model, tokens)
    assert not torch.allclose(after, before, atol=1e-3)
    assert torch.equal(after, logits(with_hook(reference, layer, steer_vector(model).detach()), tokens))


def test_only_the_language_model_is_steered(base: PreTrainedModel) -> None:
    model = get_peft_model(base, SteerConfig(layer=0))
    names = [name for name, module in model.named_modules() if isinstance(module, SteerLayer)]
    assert names == ["base_model.model.model.language_model.layers.0"]


def test_video_tokens_are_steered_like_any_other(base: PreTrainedModel) -> None:
    patches = torch.randn(16, 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(2))
    tokens = torch.tensor([[5, 6, VISION_START, *[VIDEO_TOKEN] * 4, VISION_END, 7]])
    video = {
        "input_ids": tokens,
        "pixel_values_videos": patches,
        "video_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (tokens == VIDEO_TOKEN).int() * 2,
    }
    reference = copy.deepcopy(base)
    with torch.no_grad():
        before = base(**video).logits
        model = get_peft_model(base, SteerConfig(layer=1))
        assert torch.equal(model(**video).logits, before)
        fill(model)
        after = model(**video).logits
        assert not torch.allclose(after[:, 4], before[:, 4], atol=1e-3)
        assert torch.equal(after, with_hook(reference, 1, steer_vector(model).detach())(**video).logits)


@pytest.mark.parametrize("layer", [-1, 3, 22])
def test_a_layer_outside_the_model_is_refused_with_the_valid_range(any_base: PreTrainedModel, layer: int) -> None:
    with pytest.raises(ValueError, match=rf"layer {layer}: this model has decoder layers 0 to 2"):
        get_peft_model(any_base, SteerConfig(layer=layer))
    assert not any(isinstance(module, SteerLayer) for module in any_base.modules())


@pytest.mark.parametrize("layer", [1.0, "1", True, None])
def test_a_layer_that_is_no_integer_is_refused(layer: Any) -> None:
    with pytest.raises(ValueError, match="index of a decoder layer"):
        SteerConfig(layer=layer)


def test_a_model_without_decoder_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="no decoder layers found"):
        get_peft_model(nn.Sequential(nn.Linear(2, 2)), SteerConfig(layer=0))


class TupleLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.attention_type = "full_attention"

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, str]:
        return self.linear(hidden), "weights"


def test_of_a_tuple_only_the_first_element_is_steered() -> None:
    layer, hidden = SteerLayer(TupleLayer(), "default", 4), torch.randn(2, 3, 4)
    layer.steer_vector["default"].data.fill_(0.5)
    output = layer(hidden)
    assert type(output) is tuple
    assert output[1] == "weights"
    assert torch.equal(output[0], layer.base_layer(hidden)[0] + 0.5)


def test_attributes_of_the_decoder_layer_are_reachable_but_not_private_ones() -> None:
    inner = TupleLayer()
    inner.__dict__["_hf_hook"] = "belongs to the inner layer"
    layer = SteerLayer(inner, "default", 4)
    assert layer.attention_type == "full_attention"
    assert layer.linear is inner.linear
    assert not hasattr(layer, "_hf_hook")
    with pytest.raises(AttributeError, match="absent"):
        _ = layer.absent


def test_gradient_reaches_the_vector_and_nothing_else(any_base: PreTrainedModel, tokens: torch.Tensor) -> None:
    model = steered(any_base)
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        name for name, p in model.named_parameters() if p.grad is not None
    ]
    assert [p for p in model.parameters() if p.grad is not None] == [steer_vector(model)]
    assert gradient(model).norm() > 0


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradient(
    base: PreTrainedModel, tokens: torch.Tensor, use_reentrant: bool
) -> None:
    model = steered(base).train()
    model(input_ids=tokens, labels=tokens).loss.backward()
    plain = gradient(model).clone()
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert base.get_decoder().layers[1].gradient_checkpointing
    assert base.get_decoder().layers[1].base_layer.gradient_checkpointing
    model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    torch.testing.assert_close(gradient(model), plain)


def test_generation_with_a_cache_follows_the_steered_model(base: PreTrainedModel, tokens: torch.Tensor) -> None:
    before = base.generate(input_ids=tokens, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    model = steered(base)
    scale_to_norm(model, 20.0)
    cached = model.generate(input_ids=tokens, max_new_tokens=6, min_new_tokens=6, do_sample=False, use_cache=True)
    expected = tokens
    for _ in range(6):
        scores = logits(model, expected)[:, -1]
        scores[:, 0] = -torch.inf  # min_new_tokens forbids the end token
        expected = torch.cat([expected, scores.argmax(-1, keepdim=True)], 1)
    assert torch.equal(cached, expected)
    assert not torch.equal(cached, before)


def test_in_a_bf16_model_the_vector_stays_fp32_and_the_sum_is_bf16(base: PreTrainedModel, tokens: torch.Tensor) -> None:
    base = base.to(torch.bfloat16)
    reference, before = copy.deepcopy(base), logits(base, tokens)
    model = get_peft_model(base, SteerConfig(layer=1))
    assert torch.equal(logits(model, tokens), before)
    fill(model)
    assert steer_vector(model).dtype == torch.float32
    after = logits(model, tokens)
    assert after.dtype == torch.bfloat16
    rounded = steer_vector(model).detach().to(torch.bfloat16)
    assert torch.equal(after, logits(with_hook(reference, 1, rounded), tokens))


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16, torch.float64])
def test_casting_the_model_keeps_every_bit_of_the_vector(base: PreTrainedModel, cast: torch.dtype) -> None:
    model = steered(base)
    vector = steer_vector(model).detach().clone()
    model.to(dtype=cast)
    assert base.get_input_embeddings().weight.dtype == cast
    assert torch.equal(steer_vector(model), vector)
    assert steer_vector(model).requires_grad
    assert model.to("meta").get_submodule("base_model.model.lm_head").weight.is_meta
    assert steer_vector(model).is_meta
    assert steer_vector(model).dtype == torch.float32


def test_a_copy_is_equal_and_independent(base: PreTrainedModel, tokens: torch.Tensor) -> None:
    model = steered(base)
    twin, before = copy.deepcopy(model), logits(model, tokens)
    assert torch.equal(logits(twin, tokens), before)
    steer_vector(twin).data.zero_()
    assert not torch.equal(logits(twin, tokens), before)
    assert torch.equal(logits(model, tokens), before)


def test_scaling_gives_the_norm_and_keeps_the_direction(base: PreTrainedModel) -> None:
    model = steered(base)
    vector = steer_vector(model)
    before = vector.detach().clone()
    factor = scale_to_norm(model, 0.3)
    assert float(vector.detach().norm()) == pytest.approx(0.3, rel=1e-6)
    assert torch.allclose(vector, before * factor)
    assert steer_vector(model) is vector
    assert vector.shape == (HIDDEN,)


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan"), float("inf")])
def test_a_norm_that_is_no_positive_number_is_refused(base: PreTrainedModel, norm: float) -> None:
    with pytest.raises(ValueError, match="give a positive number"):
        scale_to_norm(steered(base), norm)


def test_a_zero_or_broken_vector_cannot_be_scaled(base: PreTrainedModel) -> None:
    model = get_peft_model(base, SteerConfig(layer=1))
    with pytest.raises(ValueError, match="a zero vector cannot be scaled"):
        scale_to_norm(model, 0.3)
    steer_vector(model).data[0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity"):
        scale_to_norm(model, 0.3)
