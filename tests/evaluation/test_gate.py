"""Who is promoted, and why not."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from taskmem.config import EvaluationSettings, GateSettings, load_profile
from taskmem.errors import UserError
from taskmem.evaluation.gate import GatedContext, Quality, Trial, Verdict, Winner, decide, sign_flip
from taskmem.evaluation.metrics import Graded, paired_difference
from taskmem.records import dump_record

GATE = GateSettings(
    confidence=0.95,
    least_wins=12,
    least_streams=6,
    least_gold=10,
    focus=0.25,
    format_fall=0.1,
    faithful_fall=0.1,
    non_redundant_fall=0.1,
    coverage_fall=0.3,
    unscored=0.2,
)
EVALUATION = EvaluationSettings(feedback_questions=5, bootstrap_samples=200, confidence=0.95)
GOOD = Quality(format=True, faithful=True, non_redundant=True)
WRONG = Quality(format=True, faithful=False, non_redundant=True)
REPEATED = Quality(format=True, faithful=True, non_redundant=False)
TOO_LONG = Quality(format=False, faithful=True, non_redundant=True)
BROKEN = Quality(format=False, faithful=None, non_redundant=None)
OUTCOMES: tuple[Winner, ...] = ("challenger", "champion", "tie")
STREAMS = 10


def context(stream: int, index: int, outcome: Winner, ours: Quality = GOOD, theirs: Quality = GOOD) -> GatedContext:
    return GatedContext(
        context=f"s{stream}:{index}",
        stream=f"s{stream}",
        index=index,
        decided_by="judge",
        outcome=outcome,
        champion=ours,
        challenger=theirs,
        first_order=outcome,
        second_order=outcome,
    )


def unscored(stream: int, index: int, reason: str) -> GatedContext:
    return GatedContext(context=f"s{stream}:{index}", stream=f"s{stream}", index=index, reason=reason)


def contexts(outcomes: Sequence[Winner], ours: Quality = GOOD, theirs: Quality = GOOD) -> list[GatedContext]:
    """The same outcomes in every one of the streams."""
    return [context(s, i, outcome, ours, theirs) for s in range(STREAMS) for i, outcome in enumerate(outcomes)]


def answers(right: int, wrong: int, silent: int, kind: str = "object", streams: int = STREAMS) -> list[Graded]:
    """So many questions of a type in every stream."""
    each = [(True, True)] * right + [(True, False)] * wrong + [(False, False)] * silent
    return [Graded(f"q{n}", f"s{s}", kind, "shop", *each[n]) for s in range(streams) for n in range(len(each))]


def weighed(**changed: Any) -> Trial:
    """A challenger that wins three contexts of four in every stream, is as good otherwise, and knows more of the task."""
    champion = [*answers(2, 1, 1), *answers(2, 0, 2, "door")]
    challenger = [*answers(3, 0, 1), *answers(1, 1, 2, "door")]
    parts: dict[str, Any] = {
        "environment": "shop",
        "contexts": contexts(["challenger", "challenger", "challenger", "champion"]),
        "champion": champion,
        "challenger": challenger,
        "asked": {"object"},
        "gold": {g.key for g in champion if g.type == "object"},
    }
    return Trial(**{**parts, **changed})


def swapped(trial: Trial) -> Trial:
    other: dict[Winner | None, Winner] = {"challenger": "champion", "champion": "challenger", "tie": "tie"}
    turned = [
        c
        if c.reason
        else context(int(c.stream[1:]), c.index, other[c.outcome], c.challenger or GOOD, c.champion or GOOD)
        for c in trial.contexts
    ]
    return replace(trial, contexts=turned, champion=trial.challenger, challenger=trial.champion)


def verdict(trial: Trial, gate: GateSettings = GATE) -> Verdict:
    return decide(trial, gate, EVALUATION, seed=0)


def strict(**changed: Any) -> GateSettings:
    return GATE.model_copy(update=changed)


qualities = st.sampled_from([GOOD, WRONG, REPEATED, TOO_LONG, BROKEN])
nets = st.lists(st.integers(-6, 6), max_size=8)


@st.composite
def trials(draw: st.DrawFn) -> Trial:
    places = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), unique=True, max_size=20))
    gated = [
        unscored(s, i, "the endpoint timed out")
        if draw(st.integers(0, 9)) == 0
        else context(s, i, draw(st.sampled_from(OUTCOMES)), draw(qualities), draw(qualities))
        for s, i in places
    ]
    grades = st.sampled_from([(True, True), (True, False), (False, False)])
    asked = draw(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["object", "door"])), max_size=20))
    arms = [
        [Graded(f"q{n}", f"s{s}", kind, "shop", *draw(grades)) for n, (s, kind) in enumerate(asked)] for _ in range(2)
    ]
    return weighed(contexts=gated, champion=arms[0], challenger=arms[1], gold={g.key for g in arms[0][::2]})


@given(nets)
def test_the_p_value_is_the_share_of_all_sign_flips_that_do_as_well(values: list[int]) -> None:
    totals = [sum(sign * value for sign, value in zip(signs, values, strict=True)) for signs in signs_of(values)]
    assert sign_flip(values) == sum(total >= sum(values) for total in totals) / len(totals)


def signs_of(values: Sequence[int]) -> list[tuple[int, ...]]:
    return list(product((1, -1), repeat=len(values)))


@given(nets, st.sampled_from([0.01, 0.05, 0.2, 0.5]))
@settings(max_examples=40)
def test_equal_arms_pass_at_most_as_often_as_the_level_says(values: list[int], level: float) -> None:
    flipped = [[sign * value for sign, value in zip(signs, values, strict=True)] for signs in signs_of(values)]
    assert sum(sign_flip(nights) <= level for nights in flipped) <= level * len(flipped)


@given(nets, st.integers(0, 7), st.integers(1, 4))
def test_more_wins_never_raise_the_p_value(values: list[int], at: int, more: int) -> None:
    better = [value + more * (n == at) for n, value in enumerate(values)]
    assert sign_flip(better) <= sign_flip(values)
    assert sign_flip([*values, more]) <= sign_flip(values)


def test_contexts_of_one_stream_do_not_count_as_independent() -> None:
    assert sign_flip([1] * 12) == 2**-12
    assert sign_flip([6, 6]) == 2**-2
    assert sign_flip([12]) == 2**-1


def test_a_thousand_streams_are_counted_exactly() -> None:
    assert sign_flip([1, -1] * 500) == pytest.approx(0.5 + 0.0126125, abs=1e-6)  # half, and half of P(500 of 1,000)
    assert sign_flip([3] * 1000) == 2**-1000


def test_a_challenger_that_wins_and_loses_nothing_is_promoted() -> None:
    result = verdict(weighed())
    assert (result.promote, result.reasons) == (True, ())
    test, gold = result.win_test, result.gold
    assert (test.wins, test.losses, test.ties, test.streams) == (30, 10, 0, STREAMS)
    assert test.p_value == 2**-STREAMS
    assert (gold.asked, gold.champion, gold.challenger, gold.difference) == (40, 0.5, 0.75, 0.25)
    assert result.coverage["door"].fall == 0.0
    assert list(result.coverage) == ["door"]


WIN: list[Winner] = ["challenger", "challenger", "challenger", "champion"]
LOSS: list[Winner] = ["champion", "champion", "champion", "challenger"]
FAILURES = [unscored(s, 9, "timed\nout") for s in range(STREAMS)] + [unscored(9, 8, "later")]
REFUSALS: list[tuple[str, dict[str, Any], GateSettings]] = [
    (
        r"too many contexts are unscored: 11 of 51, more than a share of 0.2; the first because: timed\nout",
        {"contexts": [*contexts(WIN), *FAILURES]},
        GATE,
    ),
    ("too little evidence: the judge decided 40 contexts for a side, fewer than 41", {}, strict(least_wins=41)),
    ("too little evidence: decided contexts come from 10 streams, fewer than 11", {}, strict(least_streams=11)),
    (
        r"the challenger does not win: 20 contexts won and 20 lost give p = 0.6230, more than 0.0500",
        {"contexts": [context(s, i, outcome) for s in range(STREAMS) for i, outcome in enumerate((WIN, LOSS)[s % 2])]},
        GATE,
    ),
    (
        "format falls from 1.000 to 0.000: by 1.000, more than 0.1",
        {"contexts": contexts(WIN, theirs=TOO_LONG)},
        GATE,
    ),
    ("faithful falls from 1.000 to 0.000", {"contexts": contexts(WIN, theirs=WRONG)}, GATE),
    ("non_redundant falls from 1.000 to 0.000", {"contexts": contexts(WIN, theirs=REPEATED)}, GATE),
    (
        "coverage of question type door falls from 0.500 to 0.000: by 0.500, more than 0.3",
        {"challenger": [*answers(3, 0, 1), *answers(0, 0, 4, "door")]},
        GATE,
    ),
    ("too few gold questions: 40 were asked, fewer than 41", {}, strict(least_gold=41)),
    (
        r"gold questions fall significantly, from 0.500 to 0.250: at confidence 0.95 the difference of -0.250 is at most -0",
        {"challenger": [*answers(1, 2, 1), *answers(2, 0, 2, "door")]},
        GATE,
    ),
]


@pytest.mark.parametrize(("reason", "changed", "gate"), REFUSALS, ids=[r[0][:40] for r in REFUSALS])
def test_every_requirement_refuses_alone_and_says_why(reason: str, changed: dict[str, Any], gate: GateSettings) -> None:
    result = verdict(weighed(**changed), gate)
    assert not result.promote
    assert len(result.reasons) == 1
    assert result.reasons[0].startswith(reason)
    assert "\n" not in result.reasons[0]


def test_every_requirement_that_fails_is_named() -> None:
    result = verdict(weighed(contexts=[], champion=[], challenger=[], gold=set()))
    assert [reason[:14] for reason in result.reasons] == [
        *("too little evi", "too little evi"),
        *("the challenger", "too few gold q"),
    ]


@given(trials())
def test_an_arm_against_itself_is_never_promoted(trial: Trial) -> None:
    same = [c if c.reason else c.model_copy(update={"outcome": "tie"}) for c in trial.contexts]
    result = verdict(replace(trial, contexts=same, challenger=trial.champion), strict(least_wins=1))
    assert not result.promote
    assert result.win_test.p_value == 1
    assert (result.gold.difference, result.gold.passed) == (0, True)
    assert all(bound.passed for bound in result.coverage.values())


@given(trials())
def test_swapping_the_arms_mirrors_the_numbers(trial: Trial) -> None:
    there, back = verdict(trial), verdict(swapped(trial))
    assert (there.win_test.wins, there.win_test.losses) == (back.win_test.losses, back.win_test.wins)
    assert (there.win_test.ties, there.win_test.streams) == (back.win_test.ties, back.win_test.streams)
    assert there.gold.difference == pytest.approx(-back.gold.difference)
    falls = [[b.fall for b in (*v.quality.values(), *v.coverage.values())] for v in (there, back)]
    assert falls[0] == [-fall for fall in falls[1]]


lenient = strict(least_wins=1, least_streams=1, least_gold=1)


@given(trials())
def test_of_two_arms_at_most_one_replaces_the_other(trial: Trial) -> None:
    assert not (verdict(trial, lenient).promote and verdict(swapped(trial), lenient).promote)


@pytest.mark.parametrize("profile", ["miniature", "qwen3-vl-30b"])
@given(st.lists(st.sampled_from(OUTCOMES), max_size=5), st.lists(st.booleans(), max_size=5), st.booleans())
@settings(max_examples=30)
def test_five_questions_alone_never_promote(
    profile: str, outcomes: list[Winner], right: list[bool], only_questions: bool
) -> None:
    few = [context(s, 0, outcome) for s, outcome in enumerate(outcomes)]
    champion = [Graded(f"q{n}", f"s{n}", "object", "shop", True, False) for n in range(len(right))]
    challenger = [replace(g, correct=r) for g, r in zip(champion, right, strict=True)]
    trial = weighed(champion=champion, challenger=challenger, gold={g.key for g in champion})
    if not only_questions:
        trial = weighed(contexts=few)
    assert not decide(trial, load_profile(profile).gate, EVALUATION, seed=0).promote


@given(trials(), st.randoms(use_true_random=False))
def test_the_order_of_the_evidence_does_not_matter(trial: Trial, rng: random.Random) -> None:
    def shuffled(items: Sequence[Any]) -> list[Any]:
        return rng.sample(list(items), len(items))

    other = replace(
        trial,
        contexts=shuffled(trial.contexts),
        champion=shuffled(trial.champion),
        challenger=shuffled(trial.challenger),
    )
    assert dump_record(verdict(other)) == dump_record(verdict(trial))


@given(trials())
def test_a_verdict_is_a_json_document(trial: Trial) -> None:
    result = verdict(trial)
    assert Verdict.model_validate_json(dump_record(result)) == result


def test_a_broken_output_falls_as_format_and_not_again_as_a_wrong_memory() -> None:
    quality = verdict(weighed(contexts=[*contexts(WIN), context(0, 9, "champion", GOOD, BROKEN)])).quality
    assert (quality["format"].challenger.count, quality["format"].challenger.of) == (40, 41)
    assert (quality["faithful"].challenger.count, quality["faithful"].challenger.of) == (40, 40)
    assert (quality["faithful"].champion.of, quality["faithful"].fall) == (41, 0.0)


def test_a_challenger_that_only_writes_broken_outputs_has_fallen_in_everything() -> None:
    result = verdict(weighed(contexts=contexts(WIN, GOOD, BROKEN)))
    assert [bound.fall for bound in result.quality.values()] == [1.0, 1.0, 1.0]


def test_an_unscored_context_counts_for_no_rate_and_no_side() -> None:
    with_failure = verdict(weighed(contexts=[*contexts(WIN), unscored(0, 9, "timed out")]))
    assert (with_failure.win_test, with_failure.quality) == (verdict(weighed()).win_test, verdict(weighed()).quality)
    assert (with_failure.unscored.contexts.count, with_failure.unscored.contexts.of) == (1, 41)
    assert (with_failure.promote, with_failure.unscored.reason) == (True, "timed out")


def test_a_fall_of_exactly_the_bound_is_allowed() -> None:
    champion, challenger = answers(8, 0, 2, "door"), answers(5, 0, 5, "door")
    task = answers(3, 0, 1)
    trial = weighed(champion=[*task, *champion], challenger=[*task, *challenger])
    assert verdict(trial).coverage["door"].fall == 0.3
    assert verdict(trial).promote


def test_a_type_that_the_environment_asks_for_has_no_bound_of_its_own() -> None:
    changed = {"challenger": [*answers(3, 0, 1), *answers(0, 0, 4, "door")], "asked": {"object", "door"}}
    assert verdict(weighed(**changed)).coverage == {}
    assert verdict(weighed(**changed)).promote


def test_what_is_not_gold_cannot_fall_as_gold() -> None:
    worse = [*answers(3, 0, 1), *answers(0, 2, 2, "door")]
    assert verdict(weighed(challenger=worse)).promote


def test_the_gold_questions_limits_are_one_sided_at_the_gate_s_confidence() -> None:
    trial = weighed()
    gold = [[g for g in arm if g.key in trial.gold] for arm in (trial.challenger, trial.champion)]
    mixed = [replace(g, answered=True, correct=int(g.stream[1:]) % 3 == 0) for g in gold[0]]
    two_sided = EVALUATION.model_copy(update={"confidence": 0.9})
    expected = paired_difference(mixed, gold[1], two_sided, seed=0)
    others = [g for g in trial.challenger if g.key not in trial.gold]
    result = verdict(weighed(challenger=[*mixed, *others])).gold
    assert result.interval == pytest.approx(expected.ci95)
    assert result.interval[0] < result.difference < result.interval[1]


def test_arms_that_were_asked_different_questions_are_not_compared() -> None:
    with pytest.raises(UserError, match="evaluate champion and challenger on the same"):
        verdict(weighed(challenger=answers(3, 0, 1)))


def test_a_context_counts_once() -> None:
    with pytest.raises(UserError, match="a held-out context is given twice"):
        verdict(weighed(contexts=[*contexts(WIN), context(0, 0, "challenger")]))


def test_a_context_has_an_outcome_or_a_reason_never_both() -> None:
    for part in ("outcome", "champion", "decided_by"):
        half = context(0, 0, "tie").model_dump() | {part: None}
        with pytest.raises(ValidationError, match="an outcome and both qualities, or a reason"):
            GatedContext(**half)
    with pytest.raises(ValidationError, match="an unscored context has a reason and no outcome"):
        GatedContext(**context(0, 0, "tie").model_dump() | {"reason": "timed out"})


def test_a_verdict_cannot_promote_against_its_reasons() -> None:
    for contradiction in ({"promote": False}, {"reasons": ("too little evidence",)}):
        with pytest.raises(ValidationError, match="promoted exactly where no requirement failed"):
            Verdict(**{**dict(verdict(weighed())), **contradiction})
