"""Every pair of a context's candidates before the helpfulness judge, in both orders (METHOD section 4, step 2)."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from taskmem.config import MiningSettings
from taskmem.errors import UserError
from taskmem.judge.protocols import HelpfulnessJudge, JudgeError, Position
from taskmem.preferences._draw import ticket
from taskmem.preferences.candidates import MinedCandidate, distinct, mined_candidates
from taskmem.records import Comparison, Context, Index, Judgement, Order, Question, Record, Rollouts


class ComparisonFailure(Record):
    """A pair that was not compared because the judge failed for good, and its reason."""

    context: str
    a: Index
    b: Index
    reason: str


@dataclass(frozen=True)
class ComparisonOutcome:
    """What became of one context: who could be compared, what the judge said, and where it failed."""

    candidates: tuple[MinedCandidate, ...]
    comparisons: tuple[Comparison, ...]
    failures: tuple[ComparisonFailure, ...]


def draw_questions(
    questions: Sequence[Question],
    context: str,
    shown: int,
    seed: int,
    sources: Mapping[str, Sequence[str]] | None = None,
) -> list[Question]:
    """min(`shown`, n) of the questions, without answers, drawn from the seed and the context's id.

    With the `sources` of each question, one or more, one of every source is drawn before a second of any: who asks more often
    is not heard more often. The draw and its order do not depend on the order of `questions`, nor on other contexts.
    """
    drawn = sorted(questions, key=lambda question: ticket(seed, "questions", context, question.id))
    if sources is not None:
        turns = _turns(drawn, context, seed, sources)
        drawn.sort(key=lambda question: turns[question.id])
    return [question.without_answer() for question in drawn[:shown]]


def _turns(
    drawn: Sequence[Question], context: str, seed: int, sources: Mapping[str, Sequence[str]]
) -> dict[str, tuple[int, str]]:
    """Of each question how many of its source come before it, and the source's own ticket; of several sources the first."""
    asked: Counter[str] = Counter()
    turns = {}
    for question in drawn:
        of = sources[question.id]
        turns[question.id] = min((asked[source], ticket(seed, "sources", context, source)) for source in of)
        asked.update(of)
    return turns


def _named(position: Position, first: Order, second: Order) -> Order:
    answers: dict[Position, Order] = {"first": first, "second": second, "tie": "tie"}
    return answers[position]


def compare_candidates(
    context: Context,
    rollouts: Rollouts,
    judgements: Iterable[Judgement],
    questions: Sequence[Question],
    judge: HelpfulnessJudge,
    settings: MiningSettings,
    seed: int,
    sources: Mapping[str, Sequence[str]] | None = None,
) -> ComparisonOutcome:
    """Ask the judge about every pair of different memories of one context, twice, the order swapped the second time.

    `questions` are the recent ones; `questions_shown` of them are drawn for this context, source by source where `sources` names
    those of each, and shown without answers.
    Memories with the same text are compared once, under their lowest index. A `JudgeError` in either order makes the
    pair a failure with the judge's reason; it is then no comparison at all. METHOD section 4, step 2
    (arXiv:2605.31075).

    Raises UserError if there are no questions, if the rollouts are another context's or as `mined_candidates` does.
    """
    if not questions:
        raise UserError("no recent questions to mine with; collect feedback first")
    if rollouts.context != context.id:
        raise UserError(
            f"rollouts of context {rollouts.context}: given for context {context.id}; build the cache again"
        )
    candidates = mined_candidates(rollouts, judgements, settings)
    shown = draw_questions(questions, context.id, settings.questions_shown, seed, sources)
    comparisons, failures = [], []
    for a, b in combinations(distinct(candidates).values(), 2):
        try:
            first_order = _named(judge.compare(context, shown, a.memory, b.memory), "a", "b")
            second_order = _named(judge.compare(context, shown, b.memory, a.memory), "b", "a")
        except JudgeError as error:
            failures.append(ComparisonFailure(context=context.id, a=a.index, b=b.index, reason=str(error)))
            continue
        comparisons.append(
            Comparison(
                context=context.id,
                a=a.index,
                b=b.index,
                questions=tuple(question.id for question in shown),
                first_order=first_order,
                second_order=second_order,
                judge=judge.identity,
            )
        )
    return ComparisonOutcome(candidates, tuple(comparisons), tuple(failures))
