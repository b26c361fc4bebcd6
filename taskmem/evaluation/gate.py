"""The gate: does a challenger adapter replace the champion? Numbers in, verdict out.

A challenger is promoted if every one of these holds (`GateSettings`):

- its memories win against the champion's on held-out contexts: the task judge, asked in both orders, names it more often than
  chance explains (`sign_flip`), over enough decided contexts from enough streams;
- no share of good memories (format, faithful, non-redundant) falls beyond its bound;
- the coverage of no question type that the environment did not ask for falls beyond its bound;
- its accuracy on enough gold questions does not fall significantly;
- the judges left few contexts unscored.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from taskmem.config import EvaluationSettings, GateSettings
from taskmem.errors import UserError
from taskmem.evaluation.metrics import Graded, Interval, paired_difference
from taskmem.records import Index, Name, Part, Record, one_line

Winner = Literal["challenger", "champion", "tie"]
QuestionKey = tuple[str, str, str, str]
"""`Graded.key`: environment, stream, type, question."""


class Quality(Part):
    """One memory: `format` is the grammar and the token budget, by rule; the judges' verdicts are null of a broken output.

    `faithful` is the whole verdict of the fidelity judge: faithful to the segment and coherent.
    """

    format: bool
    faithful: bool | None
    non_redundant: bool | None


class GatedContext(Record):
    """The champion's and the challenger's memory of one held-out segment, before the judges.

    `decided_by` says how the outcome came about: "judge", asked in both orders (a tie where they do not name the same winner);
    "text", a tie of equal memories; "grammar", where an output was broken: it remembers nothing, so the side that kept the
    grammar wins without asking, and two broken outputs tie. Where a judge failed for good the whole context is unscored:
    `outcome` is null, `reason` says why, and it counts neither for a rate nor for a side.
    """

    context: str  # the champion's, which the task judge saw
    stream: Name
    index: Index
    decided_by: Literal["judge", "text", "grammar"] | None = None
    outcome: Winner | None = None
    champion: Quality | None = None
    challenger: Quality | None = None
    first_order: Winner | None = None  # the winner with the champion's memory shown first
    second_order: Winner | None = None  # and with the challenger's
    questions: tuple[str, ...] = ()
    reason: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        scored = (self.outcome, self.champion, self.challenger, self.decided_by)
        if self.reason is not None:
            if any(part is not None for part in scored):
                raise ValueError("an unscored context has a reason and no outcome")
        elif any(part is None for part in scored):
            raise ValueError("a context has an outcome and both qualities, or a reason why it is unscored")
        return self


@dataclass(frozen=True)
class Trial:
    """One night: all that a verdict rests on. Both arms answered the same held-out questions.

    `asked` are the question types of the environment's feedback; `gold` names the questions of this environment whose answer
    comes from the environment or from a user's correction. Other environments' questions are never gold here: this adapter
    will not answer them, and what focus may cost other types is `coverage_fall`'s to say.
    """

    environment: str
    contexts: Sequence[GatedContext]
    champion: Sequence[Graded]
    challenger: Sequence[Graded]
    asked: AbstractSet[str]
    gold: AbstractSet[QuestionKey]


class Rate(Part):
    """`count` of `of`; the share is 0 where there is nothing to count."""

    count: Index
    of: Index
    share: float


class Bound(Part):
    """A share that may fall by `bound` at most; `fall` is champion minus challenger."""

    champion: Rate
    challenger: Rate
    fall: float
    bound: float
    passed: bool


class Wins(Part):
    """The win test. `streams` counts those with a decided context; `by_grammar` how many of both sides' wins no judge saw.

    `p_value` is `sign_flip` over the streams' wins minus losses; `passed` if it is at most 1 - confidence.
    """

    wins: Index
    losses: Index
    ties: Index
    by_grammar: Index
    streams: Index
    least_wins: int
    least_streams: int
    p_value: Annotated[float, Field(ge=0, le=1)]
    passed: bool


class Gold(Part):
    """Accuracy on the gold questions: `difference` is challenger minus champion, each end of `interval` a one-sided limit.

    `passed` unless the interval lies wholly below zero.
    """

    asked: Index
    least: int
    champion: float
    challenger: float
    difference: float
    interval: Interval
    passed: bool


class Unscored(Part):
    """Contexts that a judge left without a verdict, and the first reason; `passed` if their share is at most `bound`."""

    contexts: Rate
    bound: float
    reason: str | None
    passed: bool


class Verdict(Record):
    """Promote or not, with every number it rests on. `reasons` has a sentence for every requirement that failed.

    `confidence` is that of the win test and of the gold questions, both one-sided; `coverage` has every question type that
    the environment did not ask for.
    """

    environment: Name
    promote: bool
    reasons: tuple[str, ...]
    confidence: float
    seed: int
    unscored: Unscored
    win_test: Wins
    quality: dict[str, Bound]
    coverage: dict[str, Bound]
    gold: Gold

    @model_validator(mode="after")
    def _says_why(self) -> Self:
        if self.promote == bool(self.reasons):
            raise ValueError("a challenger is promoted exactly where no requirement failed")
        return self


def sign_flip(nets: Sequence[int]) -> float:
    """One-sided p-value of wins minus losses per stream, if the arms of any stream could as well be swapped.

    Contexts of one stream share memories and are not independent, so whole streams change sign. A flip of all streams in a
    set makes the total at least as high exactly if their sum is at most 0: the p-value is the share of all subsets whose sum
    is. Their sums are counted exactly, stream by stream, so nothing is drawn: steps = streams x decided contexts. No streams
    give 1; a stream of net 0 changes nothing; a higher net never raises the p-value.
    """
    below = -sum(net for net in nets if net < 0)
    chance = np.zeros(sum(abs(net) for net in nets) + 1)  # chance[below + s]: a random subset sums to s
    chance[below] = 1.0
    for net in nets:
        flipped = np.zeros_like(chance)
        start, stop = max(net, 0), len(chance) + min(net, 0)
        flipped[start:stop] = chance[start - net : stop - net]
        chance = (chance + flipped) / 2
    return min(1.0, float(chance[: below + 1].sum()))


def decide(trial: Trial, gate: GateSettings, evaluation: EvaluationSettings, seed: int) -> Verdict:
    """The verdict on `trial`; the same trial and seed give the same verdict, whatever the order of its parts.

    `evaluation` gives the number of bootstrap samples. Raises UserError where the arms were not asked the same questions, each
    once, or a context is given twice.
    """
    contexts = sorted(trial.contexts, key=lambda c: (c.stream, c.index))
    if len({(c.stream, c.index) for c in contexts}) != len(contexts):
        raise UserError("a held-out context is given twice; judge every segment once")
    scored = [c for c in contexts if c.reason is None]
    unscored, win_test = _unscored(contexts, gate), _win_test(scored, gate)
    quality, coverage = _quality(scored, gate), _coverage(trial, gate)
    gold = _gold(trial, gate, evaluation, seed)
    reasons = (
        *_judge_failures(unscored),
        *_no_win(win_test, gate.confidence),
        *_falls("{}", quality),
        *_falls("coverage of question type {}", coverage),
        *_gold_fall(gold, gate.confidence),
    )
    return Verdict(
        environment=trial.environment,
        promote=not reasons,
        reasons=reasons,
        confidence=gate.confidence,
        seed=seed,
        unscored=unscored,
        win_test=win_test,
        quality=quality,
        coverage=coverage,
        gold=gold,
    )


def _unscored(contexts: Sequence[GatedContext], gate: GateSettings) -> Unscored:
    rate = _rate(c.reason is not None for c in contexts)
    first = next((one_line(c.reason) for c in contexts if c.reason is not None), None)
    return Unscored(contexts=rate, bound=gate.unscored, reason=first, passed=rate.share <= gate.unscored)


def _win_test(contexts: Sequence[GatedContext], gate: GateSettings) -> Wins:
    counts = {"challenger": 0, "champion": 0, "tie": 0}
    nets: dict[str, int] = {}
    for context in contexts:
        counts[str(context.outcome)] += 1
        if context.outcome != "tie":
            nets[context.stream] = nets.get(context.stream, 0) + (1 if context.outcome == "challenger" else -1)
    p_value = sign_flip(list(nets.values()))
    return Wins(
        wins=counts["challenger"],
        losses=counts["champion"],
        ties=counts["tie"],
        by_grammar=sum(c.decided_by == "grammar" and c.outcome != "tie" for c in contexts),
        # a stream of net zero changes nothing in the test
        streams=sum(net != 0 for net in nets.values()),
        least_wins=gate.least_wins,
        least_streams=gate.least_streams,
        p_value=p_value,
        passed=p_value <= 1 - gate.confidence,
    )


def _rate(verdicts: Iterable[bool]) -> Rate:
    held = list(verdicts)
    return Rate(count=sum(held), of=len(held), share=sum(held) / len(held) if held else 0.0)


def _bound(champion: Rate, challenger: Rate, bound: float) -> Bound:
    # rounded, so that a fall of exactly the bound does not fail by the last bit
    fall = round(champion.share - challenger.share, 12)
    return Bound(champion=champion, challenger=challenger, fall=fall, bound=bound, passed=fall <= bound)


def _quality(contexts: Sequence[GatedContext], gate: GateSettings) -> dict[str, Bound]:
    """Format counts every memory; the judges' rates those that kept the grammar, lest one broken output fall thrice."""
    champion = [c.champion for c in contexts if c.champion is not None]
    challenger = [c.challenger for c in contexts if c.challenger is not None]
    bounds = {
        "format": gate.format_fall,
        "faithful": gate.faithful_fall,
        "non_redundant": gate.non_redundant_fall,
    }
    return {name: _bound(_share(champion, name), _share(challenger, name), most) for name, most in bounds.items()}


def _share(memories: Sequence[Quality], name: str) -> Rate:
    verdicts: list[bool | None] = [getattr(memory, name) for memory in memories]
    return _rate(v for v in verdicts if v is not None)


def _coverage(trial: Trial, gate: GateSettings) -> dict[str, Bound]:
    champion, challenger = trial.champion, trial.challenger
    if sorted(g.key for g in champion) != sorted(g.key for g in challenger):
        raise UserError("the arms were asked different questions; evaluate champion and challenger on the same")
    types = sorted({g.type for g in champion} - trial.asked)
    return {kind: _bound(_answered(champion, kind), _answered(challenger, kind), gate.coverage_fall) for kind in types}


def _answered(graded: Sequence[Graded], kind: str) -> Rate:
    return _rate(g.answered for g in graded if g.type == kind)


def _gold(trial: Trial, gate: GateSettings, evaluation: EvaluationSettings, seed: int) -> Gold:
    champion = [g for g in trial.champion if g.key in trial.gold]
    challenger = [g for g in trial.challenger if g.key in trial.gold]
    difference, interval = 0.0, (0.0, 0.0)
    if champion:
        # one-sided at `confidence`: the upper end of the two-sided interval at 2 x confidence - 1
        two_sided = evaluation.model_copy(update={"confidence": 2 * gate.confidence - 1})
        paired = paired_difference(challenger, champion, two_sided, seed)
        difference, interval = paired.mean, paired.ci95
    return Gold(
        asked=len(champion),
        least=gate.least_gold,
        champion=_rate(g.correct for g in champion).share,
        challenger=_rate(g.correct for g in challenger).share,
        difference=difference,
        interval=interval,
        passed=interval[1] >= 0,
    )


def _judge_failures(unscored: Unscored) -> Iterable[str]:
    if not unscored.passed:
        count, of = unscored.contexts.count, unscored.contexts.of
        yield (
            f"too many contexts are unscored: {count} of {of}, more than a share of {unscored.bound:g}; "
            f"the first because: {unscored.reason}"
        )


def _no_win(test: Wins, confidence: float) -> Iterable[str]:
    judged = test.wins + test.losses - test.by_grammar
    if judged < test.least_wins:
        yield f"too little evidence: the judge decided {judged} contexts for a side, fewer than {test.least_wins}"
    if test.streams < test.least_streams:
        yield f"too little evidence: decided contexts come from {test.streams} streams, fewer than {test.least_streams}"
    if not test.passed:
        yield (
            f"the challenger does not win: {test.wins} contexts won and {test.losses} lost give p = {test.p_value:.4f}, "
            f"more than {1 - confidence:.4f}"
        )


def _falls(named: str, bounds: Mapping[str, Bound]) -> Iterable[str]:
    for name, b in bounds.items():
        if not b.passed:
            shares = f"from {b.champion.share:.3f} to {b.challenger.share:.3f}"
            yield f"{named.format(name)} falls {shares}: by {b.fall:.3f}, more than {b.bound:g}"


def _gold_fall(gold: Gold, confidence: float) -> Iterable[str]:
    if gold.asked < gold.least:
        yield f"too few gold questions: {gold.asked} were asked, fewer than {gold.least}"
    if not gold.passed:
        yield (
            f"gold questions fall significantly, from {gold.champion:.3f} to {gold.challenger:.3f}: at confidence "
            f"{confidence:g} the difference of {gold.difference:+.3f} is at most {gold.interval[1]:+.3f}"
        )
