"""What streaming evaluation needs from outside: an answerer that reads memory, and a grader of its answers."""

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


class Grader(Protocol):
    """Decides whether an answer is right."""

    def correct(self, question: Question, answer: str) -> bool:
        """True if `answer` is right; `question` carries its true answer."""
        ...


class FactChecker(Protocol):
    """Counts what a memory states and how much of it is wrong; needs ground truth, so only benchmarks have one."""

    def check(self, stream: str, index: int, memory: str) -> tuple[int, int]:
        """Facts stated, and those of them that are wrong."""
        ...
