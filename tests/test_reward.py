"""The reward: METHOD section 3's table, its edges, and properties over random groups."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskmem.config import RewardSettings, load_profile
from taskmem.records import Judgement
from taskmem.reward import Reward, Sample, advantages, length_term, rewards, richness_pool

PAPER = load_profile("qwen3-vl-30b").reward
MINIATURE = load_profile("miniature").reward
PROFILES = pytest.mark.parametrize("settings", [PAPER, MINIATURE], ids=["qwen3-vl-30b", "miniature"])


def judgement(verdict: str = "good") -> Judgement:
    given_up = {"faithful": None, "coherent": None, "non_redundant": None}
    good = {"format_ok": True, "within_budget": True, "faithful": True, "coherent": True, "non_redundant": True}
    changes = {
        "good": {},
        "bad": {"faithful": False},
        "broken": {"format_ok": False, "within_budget": False, **given_up},
        "unscored": {**given_up, "unscored": True, "reason": "the judge did not answer"},
    }[verdict]
    return Judgement(context="s:0:c", candidate=0, **{**good, **changes})


def sample(verdict: str = "good", think: int = 0, memory: int = 0) -> Sample:
    return Sample(judgement(verdict), think, memory)


def with_nsr_gate(settings: RewardSettings, gate: bool) -> RewardSettings:
    return settings.model_copy(update={"nsr_gate": gate})


def mean_ranks(scores: list[int]) -> list[float]:
    """Rank 1 for the highest score, ties sharing their mean rank."""
    return [sum(s > x for s in scores) + (1 + sum(s == x for s in scores)) / 2 for x in scores]


verdicts = st.sampled_from(["good", "bad", "broken", "unscored"])
samples = st.builds(sample, verdicts, st.integers(0, 4000), st.integers(0, 60))


@st.composite
def ranked_groups(draw, settings: RewardSettings):
    """A group and ranks for its pool, or None where the richness judge failed or had nothing to rank."""
    group = draw(st.lists(samples, min_size=1, max_size=8))
    pool = richness_pool([s.judgement for s in group], settings)
    scores = draw(st.lists(st.integers(0, 3), min_size=len(pool), max_size=len(pool)))
    return group, (mean_ranks(scores) if pool and draw(st.integers(0, 4)) else None)


totals = st.one_of(st.none(), st.floats(-1.5, 0.55, allow_nan=False))


def reward(total: float | None) -> Reward:
    return Reward(scored=False) if total is None else Reward(quality=total)


@pytest.mark.parametrize(
    ("tokens", "value"), [(0, 0), (1200, 0), (1201, -1 / 1200), (1500, -0.25), (1800, -0.5), (2400, -1), (9999, -1)]
)
def test_the_length_term_is_the_papers(tokens, value):
    assert length_term(tokens, PAPER.length) == value


@given(st.integers(0, 5000))
def test_the_length_term_equals_methods_formula_at_every_length(tokens):
    soft = 1200
    expected = 0 if tokens <= soft else -1 if tokens >= 2 * soft else -(tokens - soft) / soft
    assert length_term(tokens, PAPER.length) == expected


@PROFILES
@given(a=st.integers(0, 5000), b=st.integers(0, 5000))
def test_a_longer_output_never_gets_a_better_length_term(settings, a, b):
    assert length_term(max(a, b), settings.length) <= length_term(min(a, b), settings.length)


def test_length_is_measured_on_thinking_or_on_memory_as_the_profile_says():
    group = [sample(think=2400, memory=0), sample(think=0, memory=MINIATURE.length.hard)]
    assert [r.length for r in rewards(group, [1.0, 2.0], PAPER)] == [-1.0, 0.0]
    assert [r.length for r in rewards(group, [1.0, 2.0], MINIATURE)] == [1.0, 0.0]


def test_the_best_and_the_worst_sample_of_the_paper_get_0_55_and_minus_1_5():
    group = [sample("good"), sample("good", think=2400), sample("bad", think=2400), sample("broken")]
    assert [r.total for r in rewards(group, [1.0, 2.0], PAPER)] == pytest.approx([0.55, -0.5, -1.5, -1.5])


@given(ranked_groups(PAPER))
def test_every_reward_of_the_paper_lies_between_minus_1_5_and_0_55(ranked):
    for each in rewards(*ranked, PAPER):
        assert each.total is None or -1.5 <= each.total <= 0.55


@given(ranked_groups(MINIATURE))
def test_every_term_of_the_miniature_lies_between_0_and_1(ranked):
    for each in rewards(*ranked, MINIATURE):
        assert all(0 <= term <= 1 for term in (each.format, each.length, each.quality, each.richness))


@PROFILES
@given(data=st.data())
def test_a_format_violation_zeroes_every_other_term(settings, data):
    group, ranks = data.draw(ranked_groups(settings))
    for each, result in zip(group, rewards(group, ranks, settings), strict=True):
        if not each.judgement.format_ok:
            assert result == Reward(settings.format.violation, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("failed", ["within_budget", "faithful", "coherent", "non_redundant"])
def test_one_negative_verdict_is_enough_to_fail_quality(failed):
    bad = Sample(judgement().model_copy(update={failed: False}), 0, 0)
    assert rewards([bad], None, PAPER)[0].quality == -0.5
    assert rewards([sample()], None, PAPER)[0].quality == 0.5


def test_a_negative_verdict_decides_quality_even_where_another_was_not_asked_for():
    bad = Sample(judgement().model_copy(update={"faithful": False, "non_redundant": None}), 0, 0)
    assert rewards([bad], None, PAPER)[0].quality == -0.5


@PROFILES
def test_a_missing_verdict_that_would_decide_quality_is_an_error_not_a_failure(settings):
    silent = Sample(judgement().model_copy(update={"coherent": None}), 0, 0)
    with pytest.raises(ValueError, match="verdict is missing"):
        rewards([silent], None, settings)


def test_only_valid_samples_are_ranked_with_the_papers_pool_and_all_formatted_ones_with_the_miniatures():
    group = [judgement(v) for v in ("good", "bad", "broken", "unscored", "good")]
    assert richness_pool(group, PAPER) == [0, 4]
    assert richness_pool(group, MINIATURE) == [0, 1, 4]


@pytest.mark.parametrize("group", [["good", "bad"], ["broken", "unscored"], []])
def test_fewer_than_two_valid_samples_are_not_ranked_and_get_no_richness(group):
    assert richness_pool([judgement(v) for v in group], PAPER) == []
    assert all(r.richness == 0 for r in rewards([sample(v) for v in group], None, PAPER))


def test_no_rank_is_asked_for_where_richness_weighs_nothing():
    settings = PAPER.model_copy(update={"richness": PAPER.richness.model_copy(update={"weight": 0.0})})
    group = [sample(), sample()]
    assert richness_pool([s.judgement for s in group], settings) == []
    assert [r.total for r in rewards(group, None, settings)] == [0.5, 0.5]


def test_richness_falls_evenly_from_the_richest_to_the_poorest():
    result = rewards([sample()] * 5, [1.0, 2.0, 3.0, 4.0, 5.0], MINIATURE)
    assert [r.richness for r in result] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_tied_samples_share_the_mean_of_their_ranks():
    assert [r.richness for r in rewards([sample()] * 3, [2.0, 2.0, 2.0], MINIATURE)] == [0.5, 0.5, 0.5]
    assert [r.richness for r in rewards([sample()] * 3, [1.5, 1.5, 3.0], MINIATURE)] == [0.75, 0.75, 0.0]


def test_ranks_belong_to_the_pool_in_its_order():
    group = [sample("broken"), sample("good"), sample("bad"), sample("good")]
    assert [r.richness for r in rewards(group, [2.0, 1.0], PAPER)] == [0, 0, 0, 0.05]


@pytest.mark.parametrize("ranks", [[], [1.0], [1.0, 2.0, 3.0], [0.0, 1.0], [1.0, 3.0], [1.0, math.nan]])
def test_ranks_that_do_not_fit_the_pool_are_refused(ranks):
    with pytest.raises(ValueError, match="ranked from 1 to 2"):
        rewards([sample(), sample()], ranks, PAPER)


def test_a_failed_richness_judge_leaves_the_pool_unscored_and_the_rest_scored():
    group = [sample("good"), sample("bad"), sample("good"), sample("broken")]
    assert [r.total for r in rewards(group, None, PAPER)] == [None, -0.5, None, -1.5]


@PROFILES
@given(data=st.data())
def test_an_unscored_sample_has_no_terms_and_no_total(settings, data):
    group, ranks = data.draw(ranked_groups(settings))
    for each, result in zip(group, rewards(group, ranks, settings), strict=True):
        if each.judgement.unscored:
            assert result == Reward(0.0, 0.0, 0.0, 0.0, scored=False)
            assert result.total is None


@PROFILES
@given(data=st.data())
def test_reordering_a_group_reorders_its_rewards_and_advantages(settings, data):
    group, ranks = data.draw(ranked_groups(settings))
    order = data.draw(st.permutations(range(len(group))))
    shuffled = [group[i] for i in order]
    reranked = None
    if ranks is not None:
        rank_of = dict(zip(richness_pool([s.judgement for s in group], settings), ranks, strict=True))
        reranked = [rank_of[i] for i in order if i in rank_of]
    before, after = rewards(group, ranks, settings), rewards(shuffled, reranked, settings)
    assert after == [before[i] for i in order]
    values = advantages(before, settings)
    assert advantages(after, settings) == [values[i] for i in order]


@given(st.lists(totals, max_size=10))
def test_advantages_without_the_gate_are_the_standard_scores_of_the_scored_samples(values):
    result = advantages([reward(v) for v in values], with_nsr_gate(PAPER, False))
    scored = [v for v in values if v is not None]
    expected = [0.0] * len(values)
    if len(scored) >= 2 and len(set(scored)) > 1:
        scale = max(float(np.std(scored, ddof=1)), PAPER.std_floor)
        expected = [0.0 if v is None else (v - float(np.mean(scored))) / scale for v in values]
    assert result == pytest.approx(expected, abs=1e-7)


@given(st.lists(totals, max_size=10))
def test_advantages_without_the_gate_have_mean_zero(values):
    assert math.fsum(advantages([reward(v) for v in values], with_nsr_gate(PAPER, False))) == pytest.approx(0, abs=1e-9)


@given(st.lists(totals, max_size=10))
def test_the_gate_zeroes_exactly_the_negative_advantages_of_rewards_that_are_not_negative(values):
    group = [reward(v) for v in values]
    free, gated = (advantages(group, with_nsr_gate(PAPER, gate)) for gate in (False, True))
    for value, before, after in zip(values, free, gated, strict=True):
        assert after == (0.0 if value is not None and before < 0 <= value else before)


def test_the_gate_spares_a_positive_reward_below_the_mean_and_not_a_negative_one():
    group = [reward(v) for v in (0.5, 0.0, -1.0)]
    assert [math.copysign(1, a) if a else 0 for a in advantages(group, PAPER)] == [1, 1, -1]
    group = [reward(v) for v in (0.5, 0.5, 0.1, -0.1)]
    assert [math.copysign(1, a) if a else 0 for a in advantages(group, PAPER)] == [1, 1, 0, -1]


@PROFILES
@given(values=st.lists(totals, max_size=8), data=st.data())
def test_unscored_samples_change_no_other_advantage(settings, values, data):
    scored = [reward(v) for v in values if v is not None]
    mixed = list(scored)
    for _ in range(data.draw(st.integers(1, 3))):
        mixed.insert(data.draw(st.integers(0, len(mixed))), reward(None))
    result = advantages(mixed, settings)
    assert [a for r, a in zip(mixed, result, strict=True) if r.scored] == advantages(scored, settings)
    assert all(a == 0 for r, a in zip(mixed, result, strict=True) if not r.scored)


@PROFILES
@pytest.mark.parametrize("values", [[], [0.3], [None, -1.5], [0.1, 0.1, 0.1], [-1.5] * 7])
def test_a_group_without_a_difference_teaches_nothing(settings, values):
    assert advantages([reward(v) for v in values], settings) == [0.0] * len(values)


def test_the_floor_keeps_a_small_difference_small():
    group = [reward(0.0), reward(0.1)]
    assert advantages(group, MINIATURE) == pytest.approx([-0.1, 0.1])
    assert advantages(group, with_nsr_gate(PAPER, False)) == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)])


def test_a_floor_of_zero_divides_by_the_deviation_however_small():
    settings = PAPER.model_copy(update={"std_floor": 0.0, "nsr_gate": False})
    assert advantages([reward(0.0), reward(1e-200)], settings) == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)])
