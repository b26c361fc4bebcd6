"""Scoring packed groups: the same as one row each with the plain model."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import get_peft_model
from policy_parts import Films

from taskmem.policy.encoding import Prompt, PromptEncoder
from taskmem.policy.packing import Packed, score_groups
from taskmem.policy.renderer import render
from taskmem.policy.transformers_policy import load_checkpoint
from taskmem.steer import SteerConfig

GROUPS = (((300, 20, 30, 2), (40, 41), (50,)), ((60, 61, 62), (300, 20, 30, 2), (70, 71, 72, 73, 74)))
"""Two groups of three completions, of unequal length; 2 ends the turn."""


def two_prompts(encoder: PromptEncoder, films: Films) -> list[Prompt]:
    contexts = [
        films.context(0),
        films.context(0, 1, 2, memories=["a red person", "shows three lamps"], task="which room?"),
    ]
    return [encoder.encode(context, render(context, encoder.settings)) for context in contexts]


def row(model: Any, encoder: PromptEncoder, prompt: Prompt, tokens: Sequence[int], temperature: float) -> torch.Tensor:
    """Log-probabilities over the vocabulary at each token of a completion that stands alone behind its prompt, [C, V]."""
    inputs, _ = encoder.batch([prompt], [tokens], side="right")
    logits: torch.Tensor = model(**inputs).logits[0, len(prompt.ids) - 1 : -1].float()
    return (logits / temperature).log_softmax(-1)


def rows(packed: Packed) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Log-probabilities and entropies of each completion's own tokens, in order."""
    flat = zip(packed.logps.flatten(0, 1), packed.entropies.flatten(0, 1), packed.mask.flatten(0, 1), strict=True)
    return [(logps[mask], entropies[mask]) for logps, entropies, mask in flat]


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.0])
def test_packed_scores_equal_those_of_one_row_each(
    model: Any, films: Films, encoder_of: Any, temperature: float
) -> None:
    encoder = encoder_of()
    prompts = two_prompts(encoder, films)
    with torch.no_grad():
        packed = score_groups(model, encoder, prompts, GROUPS, temperature)
        singles = [
            (row(model, encoder, prompt, tokens, temperature), torch.tensor(tokens))
            for prompt, group in zip(prompts, GROUPS, strict=True)
            for tokens in group
        ]
    for (logps, entropies), (every, tokens) in zip(rows(packed), singles, strict=True):
        torch.testing.assert_close(logps, every.gather(1, tokens[:, None])[:, 0], atol=1e-4, rtol=0)
        torch.testing.assert_close(entropies, -(every.exp() * every).sum(-1), atol=1e-4, rtol=0)


def test_gradients_equal_those_of_one_row_each(model: Any, films: Films, encoder_of: Any) -> None:
    encoder = encoder_of()
    prompts = two_prompts(encoder, films)
    weight = {(p, g): 0.5 + p - 0.7 * g for p in range(2) for g in range(3)}
    parameters = [p for p in model.parameters() if p.requires_grad]
    packed = score_groups(model, encoder, prompts, GROUPS)
    together = torch.stack([w * packed.logps[p, g].sum() for (p, g), w in weight.items()]).sum()
    apart = torch.stack(
        [
            w * row(model, encoder, prompts[p], GROUPS[p][g], 1.0).gather(1, torch.tensor(GROUPS[p][g])[:, None]).sum()
            for (p, g), w in weight.items()
        ]
    ).sum()
    got = torch.autograd.grad(together, parameters, allow_unused=True)
    wanted = torch.autograd.grad(apart, parameters, allow_unused=True)
    assert any(g is not None and g.abs().max() > 1e-2 for g in wanted)
    for a, b in zip(got, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_nothing_is_scored_behind_a_completions_end(model: Any, films: Films, encoder_of: Any) -> None:
    encoder = encoder_of()
    with torch.no_grad():
        packed = score_groups(model, encoder, two_prompts(encoder, films), GROUPS)
    assert packed.mask.shape == packed.logps.shape == packed.entropies.shape == (2, 3, 5)
    assert packed.mask.sum(-1).tolist() == [[len(tokens) for tokens in group] for group in GROUPS]
    assert (packed.logps[~packed.mask] == 0).all()
    assert (packed.entropies[~packed.mask] == 0).all()
    assert (packed.logps[packed.mask] < 0).all()
    assert (packed.entropies[packed.mask] > 0).all()


def test_a_completion_does_not_see_the_others_of_its_group(model: Any, films: Films, encoder_of: Any) -> None:
    encoder = encoder_of()
    prompt = two_prompts(encoder, films)[1]
    with torch.no_grad():
        one = score_groups(model, encoder, [prompt], [[(60, 61, 62), (10, 11)]])
        other = score_groups(model, encoder, [prompt], [[(60, 61, 62), (90, 91, 92, 93)]])
    torch.testing.assert_close(one.logps[0, 0, :3], other.logps[0, 0, :3], atol=1e-5, rtol=0)


def test_entropies_carry_no_gradient(model: Any, films: Films, encoder_of: Any) -> None:
    encoder = encoder_of()
    packed = score_groups(model, encoder, two_prompts(encoder, films), GROUPS)
    assert packed.logps.requires_grad
    assert not packed.entropies.requires_grad


def test_scores_do_not_depend_on_the_attention_implementation(checkpoint: Any, films: Films, encoder_of: Any) -> None:
    encoder, (model, _) = encoder_of(), load_checkpoint(checkpoint)
    prompts = two_prompts(encoder, films)
    with torch.no_grad():
        sdpa = score_groups(model, encoder, prompts, GROUPS).logps
        model.set_attn_implementation("eager")
        eager = score_groups(model, encoder, prompts, GROUPS).logps
    torch.testing.assert_close(eager, sdpa, atol=1e-4, rtol=0)


def test_a_completion_with_a_placeholder_in_it_can_be_scored(model: Any, films: Films, encoder_of: Any) -> None:
    encoder = encoder_of()
    prompt = two_prompts(encoder, films)[0]
    with torch.no_grad():
        packed = score_groups(model, encoder, [prompt], [[(60, encoder.video_id, 62)]])
    assert packed.logps.isfinite().all()


def test_a_steered_model_is_scored_with_its_vector(checkpoint: Any, films: Films, encoder_of: Any) -> None:
    encoder, (model, _) = encoder_of(), load_checkpoint(checkpoint)
    prompt = two_prompts(encoder, films)[1]
    with torch.no_grad():
        plain = score_groups(model, encoder, [prompt], GROUPS[:1]).logps
    steered = get_peft_model(model, SteerConfig(layer=2))
    with torch.no_grad():
        for parameter in steered.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.linspace(-2, 2, parameter.numel()).view_as(parameter))
        packed = score_groups(model, encoder, [prompt], GROUPS[:1])
        singles = [row(model, encoder, prompt, tokens, 1.0) for tokens in GROUPS[0]]
    assert (packed.logps - plain).abs().max() > 0.1
    for (logps, _), every, tokens in zip(rows(packed), singles, GROUPS[0], strict=True):
        torch.testing.assert_close(logps, every.gather(1, torch.tensor(tokens)[:, None])[:, 0], atol=1e-4, rtol=0)
