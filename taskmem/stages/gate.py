"""gate: does a challenger replace the champion? Two evaluated arms and recent questions in, a verdict out."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeVar

from taskmem.backends import Backends
from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.evaluation.gate import GatedContext, Quality, QuestionKey, Trial, Verdict, Winner, decide
from taskmem.evaluation.metrics import Graded
from taskmem.feedback import read_collection
from taskmem.judge.protocols import HelpfulnessJudge, JudgeError, Judges, Position
from taskmem.judge.scoring import judge_group
from taskmem.policy.stream import by_stream, window_context
from taskmem.preferences import check_questions, draw_questions
from taskmem.progress import Progress, silent
from taskmem.records import Context, Judgement, Memory, Question, Segment, read_records, write_json, write_records
from taskmem.stages.common import GRADED, MEMORIES, footage, questions_about, read_graded

VERDICT = "verdict.json"
CONTEXTS = "contexts.jsonl"
GOLD = ("environment", "user_correction")


def gate(
    champion: Path,
    challenger: Path,
    segments: Path,
    questions: Path,
    feedback: Path,
    environment: str,
    backends: Backends,
    profile: Profile,
    seed: int,
    out: Path,
    progress: Progress = silent,
) -> Verdict:
    """Decide whether `challenger` becomes the champion of an environment; both are output folders of streaming_eval.

    Writes `out`/verdict.json and `out`/contexts.jsonl, every held-out context with its outcome, and returns the verdict.
    Raises UserError as `weigh`.
    """
    trial = weigh(
        champion, challenger, segments, questions, feedback, environment, backends.judges, profile, seed, progress
    )
    verdict = decide(trial, profile.gate, profile.evaluation, seed)
    write_records(out / CONTEXTS, trial.contexts)
    write_json(out / VERDICT, verdict.model_dump(mode="json"))
    return verdict


def weigh(
    champion: Path,
    challenger: Path,
    segments: Path,
    questions: Path,
    feedback: Path,
    environment: str,
    judges: Judges,
    profile: Profile,
    seed: int,
    progress: Progress = silent,
) -> Trial:
    """Put both arms' memories of every held-out segment before the judges, and pair their graded answers.

    Each memory's quality is judged in its own arm's context. The task judge sees the champion's context, and questions drawn
    from the environment's recent ones as when mining, source by source. Raises UserError if the environment has no recent
    questions, or an arm does not cover exactly these segments and questions.
    """
    recent, sources = recent_questions(feedback, environment)
    film = footage(segments, profile).segments
    held_out = questions_about(questions, film)
    if shared := sorted({q.stream for q in recent} & {s.stream for s in film}):
        raise UserError(
            f"{segments}: people asked about stream {shared[0]} of it; the gate needs streams that nothing was mined from"
        )
    arms = [_memories(arm, film) for arm in (champion, challenger)]
    graded = [_answers(arm, held_out) for arm in (champion, challenger)]
    contexts: list[GatedContext] = []
    for stream in by_stream(film).values():
        for position in range(len(stream)):
            ours, theirs = (_side(stream, position, memories, profile.policy.window) for memories in arms)
            shown = draw_questions(recent, ours.context.id, profile.mining.questions_shown, seed, sources)
            contexts.append(_gated(ours, theirs, shown, judges, profile.mining.memory_budget))
            progress(len(contexts), len(film))
    return Trial(
        environment=environment,
        contexts=contexts,
        champion=graded[0],
        challenger=graded[1],
        asked=_focus(recent, sources, profile.gate.focus),
        gold={_key(q) for q in held_out if q.environment == environment and q.origin in GOLD},
    )


def recent_questions(feedback: Path, environment: str) -> tuple[Sequence[Question], Mapping[str, Sequence[str]]]:
    """What an environment asked recently, and the sources of each question; UserError if it asked nothing."""
    collected = read_collection(feedback)
    recent = collected.questions.get(environment, ())
    if not recent:
        known = ", ".join(name for name, asked in collected.questions.items() if asked) or "none"
        raise UserError(f"{feedback}: no questions of environment {environment}; it has those of: {known}")
    sources = collected.sources.get(environment, {})
    check_questions(recent, sources)
    return recent, sources


Memories = dict[tuple[str, int], Memory]
K = TypeVar("K", tuple[str, int], QuestionKey)


@dataclass(frozen=True)
class _Side:
    """One arm at one held-out segment, as `judge_group` takes it."""

    context: Context
    memory: str | None
    memory_tokens: int


@dataclass(frozen=True)
class _Comparison:
    """How one context was decided; the orders and questions are there where the judge was asked."""

    decided_by: Literal["judge", "text", "grammar"]
    outcome: Winner
    first_order: Winner | None = None
    second_order: Winner | None = None
    questions: tuple[str, ...] = ()


def _focus(recent: Sequence[Question], sources: Mapping[str, Sequence[str]], least: float) -> set[str]:
    """The types that make up a share of at least `least` of the recent questions, where every source counts alike.

    So neither one stray question nor one source that asks often lifts a bound.
    """
    asked = Counter(source for question in recent for source in sources[question.id])
    shares: dict[str, Fraction] = defaultdict(Fraction)
    for question in recent:
        shares[question.type] += sum(Fraction(1, asked[source] * len(asked)) for source in sources[question.id])
    return {kind for kind, share in shares.items() if float(share) >= least}


def _key(question: Question) -> QuestionKey:
    return question.environment, question.stream, question.type, question.id


def _first_odd(found: Sequence[K], wanted: Sequence[K]) -> K | None:
    """The first key that is missing, foreign or there twice."""
    there, due = Counter(found), Counter(wanted)
    return min((key for key in there.keys() | due.keys() if there[key] != due[key]), default=None)


def _memories(arm: Path, film: Sequence[Segment]) -> Memories:
    memories = read_records(arm / MEMORIES, Memory)
    found = [(m.stream, m.index) for m in memories]
    if odd := _first_odd(found, [(s.stream, s.index) for s in film]):
        raise UserError(
            f"{arm / MEMORIES}: not one memory for each of these segments, see segment {odd[1]} of stream {odd[0]}; "
            "evaluate champion and challenger on the segments given here"
        )
    return dict(zip(found, memories, strict=True))


def _answers(arm: Path, held_out: Sequence[Question]) -> list[Graded]:
    graded = read_graded(arm)
    if odd := _first_odd([g.key for g in graded], [_key(q) for q in held_out]):
        raise UserError(
            f"{arm / GRADED}: not one answer for each of these questions, see {'/'.join(odd)}; "
            "evaluate champion and challenger on the questions given here"
        )
    return graded


def _side(stream: Sequence[Segment], position: int, memories: Memories, window: int) -> _Side:
    written = [(s.index, memories[s.stream, s.index].text) for s in stream[:position]]
    kept = {index: text for index, text in written if text is not None}
    current = stream[position]
    memory = memories[current.stream, current.index]
    return _Side(window_context(stream, kept, position, window), memory.text, memory.memory_tokens)


def _gated(champion: _Side, challenger: _Side, shown: Sequence[Question], judges: Judges, budget: int) -> GatedContext:
    context = champion.context
    stream, index = context.current.stream, context.current.index
    try:
        ours, theirs = _qualities(champion, challenger, judges, budget)
        comparison = _compare(champion, challenger, shown, judges.helpfulness)
    except JudgeError as error:
        return GatedContext(context=context.id, stream=stream, index=index, reason=str(error) or type(error).__name__)
    return GatedContext(
        context=context.id, stream=stream, index=index, champion=ours, challenger=theirs, **vars(comparison)
    )


def _qualities(champion: _Side, challenger: _Side, judges: Judges, budget: int) -> list[Quality]:
    """Both qualities, each in its arm's own context; JudgeError where either is unscored."""
    if champion.context.id == challenger.context.id:
        # in one context equal memories are judged once
        judged = judge_group(champion.context, [champion, challenger], judges, budget)
    else:
        judged = [judge_group(side.context, [side], judges, budget)[0] for side in (champion, challenger)]
    for judgement in judged:
        if judgement.unscored:
            raise JudgeError(judgement.reason)
    return [_quality(judgement) for judgement in judged]


def _quality(judgement: Judgement) -> Quality:
    if not judgement.format_ok:
        return Quality(format=False, faithful=None, non_redundant=None)
    return Quality(
        format=judgement.within_budget,
        faithful=judgement.faithful is True and judgement.coherent is True,
        non_redundant=judgement.non_redundant is True,
    )


def _compare(champion: _Side, challenger: _Side, shown: Sequence[Question], judge: HelpfulnessJudge) -> _Comparison:
    if champion.memory is None or challenger.memory is None:
        kept: Winner = "champion" if challenger.memory is None else "challenger"
        return _Comparison("grammar", "tie" if champion.memory == challenger.memory else kept)
    if champion.memory == challenger.memory:
        return _Comparison("text", "tie")
    first = judge.compare(champion.context, shown, champion.memory, challenger.memory)
    second = judge.compare(champion.context, shown, challenger.memory, champion.memory)
    orders = _named(first, "champion", "challenger"), _named(second, "challenger", "champion")
    outcome = orders[0] if orders[0] == orders[1] else "tie"
    return _Comparison("judge", outcome, *orders, tuple(question.id for question in shown))


def _named(position: Position, first: Winner, second: Winner) -> Winner:
    winners: dict[Position, Winner] = {"first": first, "second": second, "tie": "tie"}
    return winners[position]
