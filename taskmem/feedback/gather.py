"""Which lines of a feed count, and which questions are the recent ones."""

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field

from taskmem.config import MiningSettings
from taskmem.feedback.collection import ERASED, NO_CONSENT, Collection, is_erased
from taskmem.feedback.feed import Feed, Line
from taskmem.records import FeedbackEvent, Question, Refusal


def to_question(event: FeedbackEvent) -> Question:
    """The question of an event as mining may see it: no answer, no correction, no outcome."""
    return Question(
        id=event.question,
        environment=event.environment,
        stream=event.stream,
        asked_at_s=event.asked_at_s,
        type=event.type,
        text=event.text,
        options=event.options,
    )


@dataclass
class _Asked:
    """Questions of one environment by id, and who asked which, the latest last: number and place of the line, and how many."""

    questions: dict[str, Question] = field(default_factory=dict)
    by: dict[tuple[str, str], tuple[int, str, int]] = field(default_factory=dict)


@dataclass
class _Recent:
    """An environment's recent questions with their sources, the newest first, while they are chosen."""

    most: int
    of_one_source: int | None
    chosen: dict[str, tuple[Question, set[str]]] = field(default_factory=dict)
    carried: int = 0
    _by_source: dict[str, set[str]] = field(default_factory=dict)

    def within(self, question: str, source: str) -> bool:
        """Whether a source's question, the next older one, is among so many of its own as count; it counts from now on."""
        own = self._by_source.setdefault(source, set())
        if question not in own and self.of_one_source is not None and len(own) >= self.of_one_source:
            return False
        own.add(question)
        return True

    def add(self, question: Question, source: str) -> bool:
        """Take a question in, if there is room for it; true if it was not there yet."""
        known = self.chosen.get(question.id)
        if known is not None:
            if known[0] == question:
                known[1].add(source)
            return False
        if self.full:
            return False
        self.chosen[question.id] = question, {source}
        return True

    @property
    def full(self) -> bool:
        """True if there are as many as wanted."""
        return len(self.chosen) >= self.most


class Gathered:
    """Questions, sources and refusals while a feed is read; `known` says where an event stands before the watermark."""

    def __init__(
        self, environment: str | None, erased: Container[str], known: Callable[[FeedbackEvent], str | None]
    ) -> None:
        self._environment, self._erased, self._known = environment, erased, known
        self._spots: dict[str, str] = {}  # event id -> where it is
        self._asked: dict[str, _Asked] = {}
        self._refused: list[tuple[int, Refusal]] = []
        self._read = self._events = 0

    def take(self, line: Line) -> None:
        """A new line, in its order."""
        self._read += 1
        event = line.event
        if event is None:
            return
        why = event if isinstance(event, str) else self._objection(line, event)
        if why is not None:
            self._refuse(self._read, line.place, why)

    def collection(self, settings: MiningSettings, feed: Feed) -> Collection:
        """What is to be handed on, filled up from the lines before the watermark."""
        most, cap = settings.recent_questions, settings.questions_per_source
        recent = {environment: _Recent(most, cap) for environment in self._asked}
        for environment, asked in self._asked.items():
            self._choose(asked, recent[environment])
        if self._environment is not None:
            recent.setdefault(self._environment, _Recent(most, cap))
        for event in self._older(feed, recent):
            own = recent.setdefault(event.environment, _Recent(most, cap))
            if not own.full and own.within(event.question, event.source):
                own.carried += own.add(to_question(event), event.source)
        kept = {environment: list(reversed(recent[environment].chosen.values())) for environment in sorted(recent)}
        kept = {environment: rows for environment, rows in kept.items() if rows}
        return Collection(
            questions={environment: tuple(question for question, _ in rows) for environment, rows in kept.items()},
            sources={e: {question.id: tuple(sorted(named)) for question, named in rows} for e, rows in kept.items()},
            refused=tuple(refusal for _, refusal in sorted(self._refused, key=lambda numbered: numbered[0])),
            watermark=feed.watermark,
            events=self._events,
            carried={environment: recent[environment].carried for environment in kept if recent[environment].carried},
        )

    def _objection(self, line: Line, event: FeedbackEvent) -> str | None:
        """Why an event does not count; None if it does, and is noted."""
        if self._environment not in (None, event.environment):
            # one tenant's collection does not say who the other is
            return f"event {event.id} names another environment than the log's"
        if is_erased(event, self._erased):
            # its id may say whose it was
            return ERASED
        earlier = self._known(event) or self._spots.get(event.id)
        if earlier is not None:
            return f"event {event.id} is already {earlier}"
        self._spots[event.id] = line.spot
        return self._noted(line, event) if event.consent else NO_CONSENT

    def _noted(self, line: Line, event: FeedbackEvent) -> str | None:
        asked = self._asked.setdefault(event.environment, _Asked())
        question = to_question(event)
        if asked.questions.setdefault(question.id, question) != question:
            return f"question {question.id} differs from an earlier one with the same id"
        # taken out and put back, it is the latest
        _, _, before = asked.by.pop((question.id, event.source), (0, "", 0))
        asked.by[question.id, event.source] = self._read, line.place, before + 1
        self._events += 1
        return None

    def _choose(self, asked: _Asked, recent: _Recent) -> None:
        for (question, source), (number, place, events) in reversed(asked.by.items()):
            if recent.within(question, source):
                recent.add(asked.questions[question], source)
            else:
                self._events -= events
                self._refuse(number, place, f"its source has asked {recent.of_one_source} questions after this one")

    def _older(self, feed: Feed, recent: Mapping[str, _Recent]) -> Iterator[FeedbackEvent]:
        """The events before the watermark that count, the newest first, as long as they are needed."""
        wanted = recent[self._environment] if self._environment is not None else None
        if wanted is not None and wanted.full:
            return
        for line in feed.old():
            event = line.event
            if not isinstance(event, FeedbackEvent) or not event.consent or is_erased(event, self._erased):
                continue
            if self._environment in (None, event.environment):
                yield event
            if wanted is not None and wanted.full:
                return

    def _refuse(self, number: int, place: str, reason: str) -> None:
        self._refused.append((number, Refusal(file=place, reason=reason)))
