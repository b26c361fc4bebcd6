"""Sampling several completions behind one prefill."""

from typing import Any

import pytest
import torch
from policy_parts import Films
from transformers.generation.logits_process import TopPLogitsWarper

from taskmem.policy.encoding import Prompt, PromptEncoder
from taskmem.policy.packing import sample_groups
from taskmem.policy.renderer import render


def three_prompts(encoder: PromptEncoder, films: Films) -> list[Prompt]:
    contexts = [
        films.context(0),
        films.context(0, 1, 2, memories=["a red person, in the kitchen", "shows three lamps"]),
        films.context(5, 6, task="how many lamps at 01:05?"),
    ]
    return [encoder.encode(context, render(context, encoder.settings)) for context in contexts]


@torch.no_grad()
def first_token_probabilities(model: Any, encoder: PromptEncoder, prompt: Prompt) -> torch.Tensor:
    """The softmax that the plain model gives for the first token, [V], at the encoder's temperature."""
    inputs, _ = encoder.batch([prompt])
    logits: torch.Tensor = model(**inputs).logits[0, -1]
    return (logits / encoder.settings.sampling.temperature).softmax(-1)


def first_tokens(model: Any, encoder: PromptEncoder, prompt: Prompt, n: int, seed: int = 0) -> torch.Tensor:
    (group,) = sample_groups(model, encoder, [prompt], n, [seed])
    return torch.tensor([tokens[0] for tokens in group])


def test_the_same_seed_gives_the_same_completions_and_another_seed_others(
    model: Any, films: Films, encoder_of: Any
) -> None:
    encoder = encoder_of(max_completion_tokens=10)
    prompts = three_prompts(encoder, films)
    first = sample_groups(model, encoder, prompts, 4, [1, 2, 3])
    assert sample_groups(model, encoder, prompts, 4, [1, 2, 3]) == first
    assert sample_groups(model, encoder, prompts, 4, [4, 5, 6]) != first


def test_the_completions_of_one_prompt_differ(model: Any, films: Films, encoder_of: Any) -> None:
    encoder = encoder_of(max_completion_tokens=10)
    for group in sample_groups(model, encoder, three_prompts(encoder, films), 6, [1, 2, 3]):
        assert len(set(group)) == 6


def test_completions_depend_neither_on_the_batch_nor_on_its_order(model: Any, films: Films, encoder_of: Any) -> None:
    encoder = encoder_of(max_completion_tokens=16)
    prompts, seeds = three_prompts(encoder, films), [11, 12, 13]
    together = sample_groups(model, encoder, prompts, 5, seeds)
    alone = [sample_groups(model, encoder, [p], 5, [s])[0] for p, s in zip(prompts, seeds, strict=True)]
    backwards = sample_groups(model, encoder, prompts[::-1], 5, seeds[::-1])[::-1]
    assert together == alone == backwards


def test_the_likeliest_tokens_are_those_of_transformers_own_generate(model: Any, films: Films, encoder_of: Any) -> None:
    encoder = encoder_of({"top_k": 1}, max_completion_tokens=16)
    prompts = three_prompts(encoder, films)
    groups = sample_groups(model, encoder, prompts, 2, [1, 2, 3])
    for prompt, group in zip(prompts, groups, strict=True):
        inputs, _ = encoder.batch([prompt])
        generated = model.generate(**inputs, do_sample=False, max_new_tokens=16)[0, len(prompt.ids) :]
        assert [list(tokens) for tokens in group] == [generated.tolist()] * 2


def test_a_low_temperature_comes_to_the_same_as_the_likeliest_token(model: Any, films: Films, encoder_of: Any) -> None:
    greedy, cold = encoder_of({"top_k": 1}), encoder_of({"temperature": 1e-4})
    prompts = three_prompts(greedy, films)
    assert sample_groups(model, cold, prompts, 1, [1, 2, 3]) == sample_groups(model, greedy, prompts, 1, [4, 5, 6])


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.5}, {"top_k": 2}, {"top_k": 12, "temperature": 2.0}])
def test_tokens_are_drawn_as_often_as_the_softmax_says(
    model: Any, films: Films, encoder_of: Any, sampling: dict[str, Any]
) -> None:
    encoder = encoder_of(sampling, max_completion_tokens=1)
    prompt, draws = three_prompts(encoder, films)[0], 3000
    probabilities = first_token_probabilities(model, encoder, prompt)
    if "top_k" in sampling:
        kept = probabilities.topk(sampling["top_k"]).indices
        probabilities = torch.zeros_like(probabilities).index_copy(0, kept, probabilities[kept])
    expected = draws * probabilities / probabilities.sum()
    counts = torch.cat([first_tokens(model, encoder, prompt, 1000, seed) for seed in range(3)]).bincount(
        minlength=len(expected)
    )
    frequent = expected >= 5
    rest = torch.stack([counts[~frequent].sum(), expected[~frequent].sum()])
    observed = torch.cat([counts[frequent], rest[:1]])
    wanted = torch.cat([expected[frequent], rest[1:]]).clamp_min(1e-9)
    statistic = float(((observed - wanted) ** 2 / wanted).sum())
    freedom = len(observed) - 1
    # chi-squared: mean = freedom, variance = 2 freedom; four standard deviations
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def test_top_k_keeps_the_k_likeliest_tokens_and_reaches_all_of_them(model: Any, films: Films, encoder_of: Any) -> None:
    encoder = encoder_of({"top_k": 3, "temperature": 3.0}, max_completion_tokens=1)
    prompt = three_prompts(encoder, films)[1]
    likeliest = first_token_probabilities(model, encoder, prompt).topk(3).indices
    assert set(first_tokens(model, encoder, prompt, 300).tolist()) == set(likeliest.tolist())


def test_top_p_keeps_the_smallest_set_of_tokens_that_reaches_p(model: Any, films: Films, encoder_of: Any) -> None:
    encoder = encoder_of({"top_p": 0.3}, max_completion_tokens=1)
    prompt = three_prompts(encoder, films)[1]
    ordered, tokens = first_token_probabilities(model, encoder, prompt).sort(descending=True)
    size = int((ordered.cumsum(0) < 0.3).sum()) + 1
    assert 1 < size < len(tokens) / 4
    assert set(first_tokens(model, encoder, prompt, 1000).tolist()) == set(tokens[:size].tolist())


def test_temperature_is_applied_before_top_p(model: Any, films: Films, encoder_of: Any) -> None:
    encoder = encoder_of({"top_p": 0.5, "temperature": 0.5}, max_completion_tokens=1)
    prompt = three_prompts(encoder, films)[2]
    logits = first_token_probabilities(model, encoder, prompt).log()[None]
    kept = TopPLogitsWarper(0.5)(None, logits)[0].isfinite().nonzero()[:, 0]
    assert set(first_tokens(model, encoder, prompt, 1000).tolist()) == set(kept.tolist())


def test_completions_end_with_the_end_of_turn_or_at_the_limit(model: Any, films: Films, encoder_of: Any) -> None:
    encoder = encoder_of({"temperature": 3.0}, max_completion_tokens=20)
    groups = sample_groups(model, encoder, three_prompts(encoder, films), 60, [1, 2, 3])
    completions = [tokens for group in groups for tokens in group]
    assert all(encoder.end_id not in tokens[:-1] for tokens in completions)
    assert all(tokens[-1] == encoder.end_id or len(tokens) == 20 for tokens in completions)
    assert {len(tokens) == 20 for tokens in completions} == {True, False}


def test_sampling_stops_once_every_completion_has_ended(model: Any, films: Films, encoder_of: Any) -> None:
    encoder = encoder_of({"top_k": 1}, max_completion_tokens=50)
    prompt = three_prompts(encoder, films)[0]
    greedy = sample_groups(model, encoder, [prompt], 1, [0])[0][0]
    # the likeliest first token ends the turn here, so that one step is enough
    encoder.end_id = greedy[0]
    assert sample_groups(model, encoder, [prompt], 3, [0]) == [[greedy[:1]] * 3]


def test_sampling_leaves_no_gradient(model: Any, films: Films, encoder_of: Any) -> None:
    encoder = encoder_of(max_completion_tokens=2)
    model.zero_grad(set_to_none=True)
    sample_groups(model, encoder, three_prompts(encoder, films), 1, [1, 2, 3])
    assert all(p.grad is None for p in model.parameters())


def test_no_completion_holds_a_placeholder(model: Any, processor: Any, films: Films, encoder_of: Any) -> None:
    encoder = encoder_of({"temperature": 5.0}, max_completion_tokens=20)
    groups = sample_groups(model, encoder, three_prompts(encoder, films), 40, [1, 2, 3])
    drawn = {token for group in groups for tokens in group for token in tokens}
    assert not drawn & {processor.video_token_id, processor.image_token_id}
