"""Judgements of a group: rules, verdicts, and failures that leave a sample unscored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from taskmem.judge.protocols import Fidelity, FidelityJudge, JudgeError, Judges, RedundancyJudge
from taskmem.judge.scoring import judge_group
from taskmem.records import Context, ContextMemory, Segment
from taskmem.world.facts import describe
from taskmem.world.judges import Truth, WorldTruth, world_judges

FACTS = {"figure": "red", "room": "kitchen", "object": "cup", "door": "opens", "lamps": "two"}
TRUE = describe(FACTS, ("figure", "object"))
WRONG = "a blue person, carries a cup"
REPEATED = "a red person, in the kitchen"
BUDGET = 20
TIMEOUT = "the endpoint timed out three times"


@dataclass
class Candidate:
    memory: str | None
    memory_tokens: int = 10


class Fickle:
    """The world's own judges, failing for the memories in `failing`; notes what each role was asked about."""

    def __init__(
        self, judge: FidelityJudge | RedundancyJudge, failing: Sequence[str] = (), reason: str = TIMEOUT
    ) -> None:
        self.identity = judge.identity
        self.asked: list[str] = []
        self._judge: Any = judge
        self._failing = failing
        self._reason = reason

    def _note(self, memory: str) -> None:
        self.asked.append(memory)
        if memory in self._failing:
            raise JudgeError(self._reason)

    def fidelity(self, context: Context, memory: str) -> Fidelity:
        self._note(memory)
        verdict: Fidelity = self._judge.fidelity(context, memory)
        return verdict

    def non_redundant(self, context: Context, memory: str) -> bool:
        self._note(memory)
        return bool(self._judge.non_redundant(context, memory))


def segment(index: int) -> Segment:
    return Segment(
        stream="s",
        index=index,
        start_s=index * 10.0,
        end_s=index * 10.0 + 10,
        source="s.mp4",
        clip=f"s/{index}.mp4",
        fps=0.2,
        width=64,
        height=64,
        sha256=f"{index:064d}",
    )


@pytest.fixture
def context() -> Context:
    return Context(segments=(segment(0), segment(1)), memories=(ContextMemory(index=0, text="in the kitchen"),))


@pytest.fixture
def judges() -> Judges:
    return world_judges(WorldTruth([Truth(stream="s", index=1, facts=FACTS)]))


def group(*memories: str | None) -> list[Candidate]:
    return [Candidate(memory) for memory in memories]


def test_each_candidate_gets_one_judgement_in_order(context: Context, judges: Judges) -> None:
    judgements = judge_group(context, group(WRONG, None, TRUE, REPEATED), judges, BUDGET)
    assert [j.candidate for j in judgements] == [0, 1, 2, 3]
    assert {j.context for j in judgements} == {context.id}
    assert [j.quality_ok for j in judgements] == [False, False, True, False]


def test_every_verdict_says_which_judge_gave_it(context: Context, judges: Judges) -> None:
    (judgement,) = judge_group(context, group(TRUE), judges, BUDGET)
    assert judgement.judges == (judges.fidelity.identity, judges.redundancy.identity)
    assert [j.role for j in judgement.judges] == ["fidelity", "redundancy"]


@pytest.mark.parametrize(
    ("memory", "faithful", "coherent", "non_redundant"),
    [
        (TRUE, True, True, True),
        (WRONG, False, True, True),
        (REPEATED, True, True, False),
        ("something happens", True, False, True),
        ("a red person, a red person", True, False, True),
    ],
)
def test_each_fault_is_its_own_verdict(
    context: Context, judges: Judges, memory: str, faithful: bool, coherent: bool, non_redundant: bool
) -> None:
    (judgement,) = judge_group(context, group(memory), judges, BUDGET)
    assert (judgement.format_ok, judgement.within_budget, judgement.unscored) == (True, True, False)
    assert (judgement.faithful, judgement.coherent, judgement.non_redundant) == (faithful, coherent, non_redundant)


def test_a_broken_format_is_judged_by_rule_alone(context: Context, judges: Judges) -> None:
    fidelity = Fickle(judges.fidelity)
    (judgement,) = judge_group(context, group(None), replace(judges, fidelity=fidelity), BUDGET)
    assert not fidelity.asked
    assert (judgement.format_ok, judgement.unscored, judgement.faithful, judgement.judges) == (False, False, None, ())
    assert not judgement.quality_ok


@pytest.mark.parametrize(("tokens", "within"), [(1, True), (BUDGET, True), (BUDGET + 1, False)])
def test_a_memory_over_its_budget_fails_and_keeps_its_verdicts(
    context: Context, judges: Judges, tokens: int, within: bool
) -> None:
    (judgement,) = judge_group(context, [Candidate(TRUE, tokens)], judges, BUDGET)
    assert judgement.within_budget is judgement.quality_ok is within
    assert (judgement.faithful, judgement.coherent, judgement.non_redundant) == (True, True, True)


@pytest.mark.parametrize(("tag", "coherent"), [("<face_3>", True), ("face_3", False), ("<face_x>", False)])
def test_a_broken_face_tag_makes_a_memory_incoherent_whatever_the_judge_says(
    context: Context, judges: Judges, tag: str, coherent: bool
) -> None:
    class Lenient:
        identity = judges.fidelity.identity

        def fidelity(self, context: Context, memory: str) -> Fidelity:
            return Fidelity(faithful=True, coherent=True)

    lenient = replace(judges, fidelity=Lenient())
    (judgement,) = judge_group(context, group(f"{tag} waits"), lenient, BUDGET)
    assert judgement.coherent is judgement.quality_ok is coherent


def failing_fidelity(judges: Judges, memories: Sequence[str]) -> Judges:
    return replace(judges, fidelity=Fickle(judges.fidelity, memories))


def failing_redundancy(judges: Judges, memories: Sequence[str]) -> Judges:
    return replace(judges, redundancy=Fickle(judges.redundancy, memories))


@pytest.mark.parametrize("fail", [failing_fidelity, failing_redundancy])
def test_a_failing_judge_leaves_exactly_its_samples_unscored(
    context: Context, judges: Judges, fail: Callable[[Judges, Sequence[str]], Judges]
) -> None:
    candidates = group(TRUE, WRONG, None, REPEATED, WRONG)
    sound = judge_group(context, candidates, judges, BUDGET)
    judgements = judge_group(context, candidates, fail(judges, [WRONG]), BUDGET)
    assert [j.unscored for j in judgements] == [False, True, False, False, True]
    assert [judgements[i] for i in (0, 2, 3)] == [sound[i] for i in (0, 2, 3)]
    for judgement in (judgements[1], judgements[4]):
        assert judgement.reason == TIMEOUT
        assert (judgement.faithful, judgement.coherent, judgement.non_redundant) == (None, None, None)
        assert (judgement.format_ok, judgement.within_budget, judgement.quality_ok) == (True, True, False)


def test_a_segment_the_judges_do_not_know_leaves_all_memories_unscored(context: Context) -> None:
    judgements = judge_group(context, group(TRUE, WRONG, None), world_judges(WorldTruth([])), BUDGET)
    assert [j.reason for j in judgements] == ["the world has not rendered segment 1 of stream s"] * 2 + [None]


def test_equal_memories_are_judged_once(context: Context, judges: Judges) -> None:
    fidelity, redundancy = Fickle(judges.fidelity), Fickle(judges.redundancy)
    noting = replace(judges, fidelity=fidelity, redundancy=redundancy)
    judgements = judge_group(context, group(TRUE, WRONG, TRUE, TRUE), noting, BUDGET)
    assert fidelity.asked == redundancy.asked == [TRUE, WRONG]
    assert [j.candidate for j in judgements] == [0, 1, 2, 3]
    assert judgements[0] == judgements[2].model_copy(update={"candidate": 0})


def test_an_empty_group_has_no_judgements(context: Context, judges: Judges) -> None:
    assert judge_group(context, [], judges, BUDGET) == []


def test_a_failure_without_a_message_is_still_recorded(context: Context, judges: Judges) -> None:
    mute = replace(judges, fidelity=Fickle(judges.fidelity, [TRUE], reason=""))
    (judgement,) = judge_group(context, group(TRUE), mute, BUDGET)
    assert judgement.unscored


def test_the_budget_is_each_candidates_own(context: Context, judges: Judges) -> None:
    judgements = judge_group(context, [Candidate(TRUE, BUDGET), Candidate(TRUE, BUDGET + 1)], judges, BUDGET)
    assert [j.within_budget for j in judgements] == [True, False]
