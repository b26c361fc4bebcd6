"""Questions answered from memory text alone (METHOD section 1)."""

from collections.abc import Sequence
from typing import Protocol

from taskmem.records import Memory, Question


class Answerer(Protocol):
    """Answers from memory text only, never from video."""

    def answer(self, question: Question, memories: Sequence[Memory]) -> str | None:
        """The answer, or None for "insufficient information".

        `question` carries no answer; `memories` are those of its stream that ended by the time it was asked, oldest first.
        """
        ...


def visible(memories: Sequence[Memory], question: Question) -> list[Memory]:
    """The memories of the question's stream that had ended when it was asked, oldest first."""
    return [
        m for m in memories if m.stream == question.stream and m.end_s <= question.asked_at_s and m.text is not None
    ]
