"""What evaluation needs from outside, besides an agent and its answerer."""

from typing import Protocol

from taskmem.records import Question


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


class Evidence(Protocol):
    """Knows what a memory must say so that a question can be answered from it; the report marks it there."""

    def moment(self, question: Question) -> float | None:
        """What second of its stream `question` asks about; None where it names none."""
        ...

    def phrase(self, question: Question) -> str | None:
        """The words a memory must contain; None for a question that carries no answer or is not understood."""
        ...

    def said(self, question: Question, memory: str) -> tuple[int, int] | None:
        """Start and end, in characters, of what `memory` says about what `question` asks for, right or wrong; else None."""
        ...
