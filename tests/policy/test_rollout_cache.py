"""Candidates of every context, sampled once from the frozen policy."""

from collections.abc import Sequence
from typing import Any

import pytest
from policy_parts import Films, Scribe

from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.policy.protocols import Completion
from taskmem.policy.rollout_cache import CONTEXTS_AT_ONCE, build_rollouts
from taskmem.policy.stream import by_stream, watch
from taskmem.policy.transformers_policy import TransformersPolicy
from taskmem.records import Context, Segment, dump_record


@pytest.fixture
def segments(films: Films) -> list[Segment]:
    return [*films.stream("b", 2), *films.stream("a", 4)]


def changed(profile: Profile, **mining: Any) -> Profile:
    return profile.model_copy(update={"mining": profile.mining.model_copy(update=mining)})


def told(context: Context) -> str:
    return f"{context.current.stream} {context.current.index}"


def test_every_context_gets_its_candidates(
    policy: TransformersPolicy, segments: list[Segment], profile: Profile
) -> None:
    cached, contexts = build_rollouts(policy, segments, changed(profile, contexts=None, candidates=3), seed=2)
    assert [(r.stream, r.index) for r in cached] == [("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 0), ("b", 1)]
    for rollouts, context in zip(cached, contexts, strict=True):
        assert (rollouts.context, rollouts.memories) == (context.id, context.memories)
        assert (rollouts.policy, rollouts.seed) == (policy.digest, 2)
        assert [c.index for c in rollouts.candidates] == [0, 1, 2]


def test_candidates_are_what_the_policy_writes_for_the_context(
    policy: TransformersPolicy, segments: list[Segment], profile: Profile
) -> None:
    cached, contexts = build_rollouts(policy, segments, changed(profile, contexts=None, candidates=3), seed=2)
    groups = policy.write(contexts, 3, seed=2)
    assert [[(c.text, c.memory, c.think_tokens, c.memory_tokens) for c in r.candidates] for r in cached] == [
        [(c.text, c.memory, c.think_tokens, c.memory_tokens) for c in group] for group in groups
    ]


def test_the_preceding_memories_are_the_policys_own(segments: list[Segment], profile: Profile) -> None:
    scribe = Scribe(told)
    cached, _ = build_rollouts(scribe, segments, changed(profile, contexts=None), seed=0)
    _, contexts = watch(scribe, by_stream(segments), profile.policy.window, seed=0)
    assert [r.context for r in cached] == [c.id for c in contexts]
    assert [m.text for m in cached[3].memories] == ["a 1", "a 2"]


def test_the_same_inputs_and_seed_give_the_same_bytes(
    policy: TransformersPolicy, segments: list[Segment], profile: Profile
) -> None:
    small = changed(profile, contexts=4, candidates=2)
    once, again = (build_rollouts(policy, order, small, seed=5)[0] for order in (segments, segments[::-1]))
    assert [dump_record(r) for r in once] == [dump_record(r) for r in again]
    other, _ = build_rollouts(policy, segments, small, seed=6)
    assert [r.candidates for r in other] != [r.candidates for r in once]


def test_an_adapter_is_refused(segments: list[Segment], profile: Profile) -> None:
    with pytest.raises(UserError, match="adapter door@3 is on; the cache is built with the frozen policy alone"):
        build_rollouts(Scribe(told, adapter="door@3"), segments, profile, seed=0)


def test_contexts_are_drawn_by_the_seed_and_stay_in_order(films: Films, profile: Profile) -> None:
    stream = films.stream("a", 30)
    drawn = {
        seed: [r.index for r in build_rollouts(Scribe(told), stream, changed(profile, contexts=6), seed)[0]]
        for seed in (0, 1, 2)
    }
    assert all(len(set(chosen)) == 6 and chosen == sorted(chosen) for chosen in drawn.values())
    assert len({tuple(chosen) for chosen in drawn.values()}) == 3


@pytest.mark.parametrize("wanted", [None, 6, 100])
def test_all_contexts_are_kept_where_no_fewer_are_wanted(
    segments: list[Segment], profile: Profile, wanted: int | None
) -> None:
    cached, contexts = build_rollouts(Scribe(told), segments, changed(profile, contexts=wanted), seed=0)
    assert len(cached) == len(contexts) == 6


def test_a_broken_candidate_is_kept_without_a_memory(segments: list[Segment], profile: Profile) -> None:
    cached, _ = build_rollouts(Scribe(lambda _: None), segments, changed(profile, contexts=1), seed=0)
    assert {(c.text, c.memory, c.memory_tokens) for c in cached[0].candidates} == {("no tags", None, 0)}


def test_progress_counts_contexts(films: Films, profile: Profile) -> None:
    seen: list[tuple[int, int]] = []
    total = CONTEXTS_AT_ONCE + 3
    stream = films.stream("a", total)
    build_rollouts(Scribe(told), stream, profile, seed=0, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(CONTEXTS_AT_ONCE, total), (total, total)]


class Recorder:
    """Passes everything on to a policy and keeps the first completion of each context, by the number asked for."""

    def __init__(self, policy: TransformersPolicy) -> None:
        self.digest, self.adapter = policy.digest, policy.adapter
        self.first: dict[tuple[str, int], Completion] = {}
        self._policy = policy

    def write(self, contexts: Sequence[Context], n: int, seed: int) -> list[list[Completion]]:
        written = self._policy.write(contexts, n, seed)
        self.first.update({(c.id, n): group[0] for c, group in zip(contexts, written, strict=True)})
        return written


def test_candidates_are_drawn_independently_of_the_memory(
    policy: TransformersPolicy, segments: list[Segment], profile: Profile
) -> None:
    recorder = Recorder(policy)
    _, contexts = build_rollouts(recorder, segments, changed(profile, candidates=4), seed=0)
    watched = [recorder.first[context.id, 1].tokens[0] for context in contexts]
    cached = [recorder.first[context.id, 4].tokens[0] for context in contexts]
    assert sum(a == b for a, b in zip(watched, cached, strict=True)) < len(contexts)
