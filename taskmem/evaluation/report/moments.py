"""Which segments the report shows: chosen by rule, the same for the same run, and never only those that flatter."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from taskmem.evaluation.protocols import Evidence
from taskmem.evaluation.report.inputs import AFTER, BASE, BEFORE, Watched
from taskmem.evaluation.report.marking import Marked, mark
from taskmem.evaluation.streaming import GradedAnswer
from taskmem.records import Question, Segment


@dataclass(frozen=True)
class Remembered:
    """What one arm kept of a segment. `written` is False where its output broke the grammar; answers are in question order."""

    arm: str
    written: bool
    marked: Marked
    answers: tuple[GradedAnswer, ...]


@dataclass(frozen=True)
class Moment:
    """A segment, the questions about it (the task's first), and what every arm remembered of it."""

    segment: Segment
    questions: tuple[Question, ...]
    arms: Mapping[str, Remembered]
    task: str

    def right(self, arm: str) -> int:
        """How many of the questions the arm answered rightly."""
        return sum(answer.correct for answer in self.arms[arm].answers)

    def turned(self, before: str, after: str) -> tuple[Question, ...]:
        """The questions that `before` did not answer rightly and `after` did."""
        pairs = zip(self.questions, self.arms[before].answers, self.arms[after].answers, strict=True)
        return tuple(q for q, b, a in pairs if a.correct and not b.correct)

    @property
    def gained(self) -> bool:
        """True if Phase Two answers a question of the task that Phase One does not."""
        return any(q.type == self.task for q in self.turned(BEFORE, AFTER))

    @property
    def lost(self) -> tuple[Question, ...]:
        """The questions that Phase One answers and Phase Two does not: what the focus cost here."""
        return self.turned(AFTER, BEFORE)

    @property
    def task_right(self) -> int:
        """In how many arms a question of the task was answered rightly."""
        return sum(
            any(a.correct and a.type == self.task for a in remembered.answers) for remembered in self.arms.values()
        )


@dataclass(frozen=True)
class Rule:
    """A kind of segment worth seeing. The first `shown` by `rank`, the lowest first, are shown."""

    name: str
    holds: Callable[[Moment], bool]
    rank: Callable[[Moment], int]
    shown: int


@dataclass(frozen=True)
class Chosen:
    """A moment, the rule that chose it, and how many segments the rule holds for."""

    moment: Moment
    rule: str
    like_it: int


def _misleads(moment: Moment) -> bool:
    pairs = zip(moment.questions, moment.arms[AFTER].answers, strict=True)
    return any(q.type == moment.task and a.answer is not None and not a.correct for q, a in pairs)


RULES = (
    Rule(
        "The focus paid off: Phase Two knows what the task asks, Phase One does not",
        lambda m: m.gained and not m.lost,
        lambda m: m.task_right,
        2,
    ),
    Rule(
        "The focus paid off, at a price: the task's answer is won, another is lost",
        lambda m: m.gained and bool(m.lost),
        lambda m: -len(m.lost),
        1,
    ),
    Rule(
        "The focus only cost: Phase One knew what Phase Two no longer does",
        lambda m: bool(m.lost) and not m.gained,
        lambda m: -len(m.lost),
        1,
    ),
    Rule(
        "Misled: Phase Two answers the task's question wrongly",
        _misleads,
        lambda m: -m.right(BEFORE),
        1,
    ),
    Rule(
        "Phase One learned: the base knows less",
        lambda m: m.right(BEFORE) > m.right(BASE),
        lambda m: m.right(BASE) - m.right(BEFORE),
        1,
    ),
)
ANY = Rule("Nothing above holds here", lambda _: True, lambda m: -m.task_right, 4)


def all_moments(watched: Watched, evidence: Evidence, task: str) -> list[Moment]:
    """Every segment that some question asks about, in the order of the segments."""
    asked: dict[tuple[str, int], list[Question]] = {}
    for question in watched.questions:
        segment = _asked_about(watched.segments, question, evidence.moment(question))
        if segment is not None:
            asked.setdefault((segment.stream, segment.index), []).append(question)
    moments = []
    for segment in watched.segments:
        key = (segment.stream, segment.index)
        questions = sorted(asked.get(key, ()), key=lambda q: (q.type != task, q.type, q.id))
        if questions:
            arms = {arm: _remembered(arm, watched, key, questions, evidence, task) for arm in watched.memories}
            moments.append(Moment(segment, tuple(questions), arms, task))
    return moments


def _asked_about(segments: Sequence[Segment], question: Question, moment: float | None) -> Segment | None:
    """The segment of the moment a question names; of one that names none, the last that had ended when it was asked."""
    own = [s for s in segments if s.stream == question.stream]
    if moment is not None:
        return next((s for s in own if s.start_s <= moment < s.end_s), None)
    return next((s for s in reversed(own) if s.end_s <= question.asked_at_s), None)


def _remembered(
    arm: str, watched: Watched, key: tuple[str, int], questions: Sequence[Question], evidence: Evidence, task: str
) -> Remembered:
    text, answers = watched.memories[arm][key].text, watched.graded[arm]
    marked = mark(text, questions, answers, evidence, task)
    return Remembered(arm, text is not None, marked, tuple(answers[q.id] for q in questions))


def choose(moments: Sequence[Moment], least: int = 4) -> list[Chosen]:
    """The moments of every rule, streams that were not yet shown first; `least` in all as far as there are so many."""
    chosen: list[Chosen] = []
    for rule in RULES:
        chosen += _by_rule(rule, moments, chosen, rule.shown)
    return chosen + _by_rule(ANY, moments, chosen, max(0, least - len(chosen)))


def _by_rule(rule: Rule, moments: Sequence[Moment], before: Sequence[Chosen], shown: int) -> list[Chosen]:
    found = [m for m in moments if rule.holds(m)]
    taken = {(c.moment.segment.stream, c.moment.segment.index) for c in before}
    streams = {stream for stream, _ in taken}
    picked: list[Chosen] = []
    for _ in range(shown):
        left = [m for m in found if (m.segment.stream, m.segment.index) not in taken]
        if not left:
            break
        # the sort is stable: among equals the first segment of the split is taken
        best = min(left, key=lambda m: (m.segment.stream in streams, rule.rank(m)))
        picked.append(Chosen(best, rule.name, len(found)))
        taken.add((best.segment.stream, best.segment.index))
        streams.add(best.segment.stream)
    return picked
