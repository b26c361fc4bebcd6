"""Preferences joined with what they are about."""

import pytest
from phase_two_parts import POLICY, context, preference, rollouts

from taskmem.errors import UserError
from taskmem.phase_two.train import Pair, load_pairs
from taskmem.policy.grammar import completion_for

CONTEXTS = [context(0), context(1)]
CACHED = [rollouts(CONTEXTS[0], ["a", "b", "c"]), rollouts(CONTEXTS[1], ["d", "e"])]


def test_a_preference_becomes_its_context_and_the_two_completions_it_names() -> None:
    preferences = [preference(CONTEXTS[1]), preference(CONTEXTS[0], chosen=2, rejected=0)]
    assert load_pairs(preferences, CACHED[::-1], CONTEXTS, POLICY) == [
        Pair(CONTEXTS[1], completion_for("d"), completion_for("e")),
        Pair(CONTEXTS[0], completion_for("c"), completion_for("a")),
    ]


def test_candidates_are_found_by_their_index_not_their_place() -> None:
    shuffled = CACHED[0].model_copy(update={"candidates": CACHED[0].candidates[::-1]})
    (pair,) = load_pairs([preference(CONTEXTS[0])], [shuffled], CONTEXTS, POLICY)
    assert (pair.chosen, pair.rejected) == (completion_for("a"), completion_for("b"))


def test_several_pairs_of_one_context_are_all_kept() -> None:
    preferences = [preference(CONTEXTS[0]), preference(CONTEXTS[0], chosen=1, rejected=2)]
    assert len(load_pairs(preferences, CACHED, CONTEXTS, POLICY)) == 2


def test_a_pair_carries_what_its_preference_rests_on_and_all_candidates_of_the_context() -> None:
    named = preference(CONTEXTS[0]).model_copy(update={"questions": ("q1", "q2"), "sources": ("s",)})
    (pair,) = load_pairs([named], CACHED, CONTEXTS, POLICY)
    assert (pair.questions, pair.sources) == (("q1", "q2"), ("s",))
    assert pair.candidates == tuple(completion_for(memory) for memory in "abc")


def test_no_preferences_are_no_pairs() -> None:
    assert load_pairs([], CACHED, CONTEXTS, POLICY) == []


def test_a_preference_without_rollouts_is_refused() -> None:
    with pytest.raises(UserError, match=f"{CONTEXTS[1].id}.*not in the rollout cache") as refusal:
        load_pairs([preference(CONTEXTS[0]), preference(CONTEXTS[1])], CACHED[:1], CONTEXTS, POLICY)
    assert "\n" not in str(refusal.value)


def test_a_preference_without_a_context_is_refused() -> None:
    with pytest.raises(UserError, match=CONTEXTS[1].id):
        load_pairs([preference(CONTEXTS[1])], CACHED, CONTEXTS[:1], POLICY)


@pytest.mark.parametrize(("chosen", "rejected"), [(0, 2), (2, 0), (7, 8)])
def test_a_preference_for_a_candidate_that_was_not_cached_is_refused(chosen: int, rejected: int) -> None:
    with pytest.raises(UserError, match="no such candidate"):
        load_pairs([preference(CONTEXTS[1], chosen, rejected)], CACHED, CONTEXTS, POLICY)


def test_rollouts_of_another_policy_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"written by policy 000000000000, not by 111111111111; build the rollout cache"
    ):
        load_pairs([preference(CONTEXTS[0])], CACHED, CONTEXTS, "1" * 64)


def test_a_refusal_says_whether_the_rollouts_or_the_segments_are_missing() -> None:
    with pytest.raises(UserError) as refusal:
        load_pairs([preference(CONTEXTS[1])], CACHED, CONTEXTS[:1], POLICY)
    assert "segments" in str(refusal.value)
