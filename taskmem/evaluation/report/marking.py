"""Marks in a memory's text: what the asked questions needed, what is wrong, and what is not there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from taskmem.evaluation.protocols import Evidence
from taskmem.evaluation.streaming import GradedAnswer
from taskmem.records import Question

Mark = Literal["", "task", "needed", "wrong"]


class AnswerText:
    """Evidence where no world is known: the true answer's own words. Implements `Evidence`; wrong facts stay unseen."""

    def moment(self, question: Question) -> float | None:
        """Not known."""
        return None

    def phrase(self, question: Question) -> str | None:
        """The true answer."""
        return question.answer

    def said(self, question: Question, memory: str) -> tuple[int, int] | None:
        """Where the true answer stands first as words of its own, in whatever case."""
        answer = (question.answer or "").casefold()
        if not answer or len(memory.casefold()) != len(memory):
            return None
        start = memory.casefold().find(answer)
        while start >= 0:
            end = start + len(answer)
            if not (memory[start - 1 : start].isalnum() or memory[end : end + 1].isalnum()):
                return start, end
            start = memory.casefold().find(answer, start + 1)
        return None


@dataclass(frozen=True)
class Piece:
    """A stretch of a memory's text and what it is to the questions."""

    text: str
    mark: Mark


@dataclass(frozen=True)
class Missing:
    """A phrase a question needed that the memory does not hold; `known` if another memory answered it all the same."""

    phrase: str
    of_task: bool
    known: bool


@dataclass(frozen=True)
class Marked:
    """A memory as the report shows it."""

    pieces: tuple[Piece, ...]
    missing: tuple[Missing, ...]

    @property
    def wrong(self) -> bool:
        """True if it states something wrong about what was asked."""
        return any(piece.mark == "wrong" for piece in self.pieces)


def mark(
    memory: str | None,
    questions: Sequence[Question],
    answers: Mapping[str, GradedAnswer],
    evidence: Evidence,
    task: str,
) -> Marked:
    """Mark what `memory` says to each of `questions`; `answers` are the arm's, by question id."""
    spans: dict[tuple[int, int], Mark] = {}
    missing: dict[str, Missing] = {}
    for question in questions:
        phrase = evidence.phrase(question)
        if phrase is None:
            continue
        span = evidence.said(question, memory) if memory else None
        right = span is not None and (memory or "")[slice(*span)].casefold() == phrase.casefold()
        if span is not None:
            kind: Mark = "wrong" if not right else "task" if question.type == task else "needed"
            spans[span] = _stronger(kind, spans.get(span, ""))
        if not right:
            known = answers[question.id].correct or (phrase in missing and missing[phrase].known)
            missing[phrase] = Missing(phrase, question.type == task, known)
    return Marked(_pieces(memory or "", spans), tuple(missing.values()))


def _stronger(one: Mark, other: Mark) -> Mark:
    order: tuple[Mark, ...] = ("", "wrong", "needed", "task")
    return max(one, other, key=order.index)


def _pieces(memory: str, spans: Mapping[tuple[int, int], Mark]) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    at = 0
    for (start, end), kind in sorted(spans.items()):
        if start < at:
            continue
        pieces += [Piece(memory[at:start], ""), Piece(memory[start:end], kind)]
        at = end
    pieces.append(Piece(memory[at:], ""))
    return tuple(piece for piece in pieces if piece.text)
