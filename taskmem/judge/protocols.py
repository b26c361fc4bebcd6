"""The judges' roles (METHOD sections 3 and 4). The HTTP client and the embedded world both implement them.

A judge that cannot give a verdict raises `JudgeError`; the caller leaves the sample unscored and says why. A failure is never
turned into a verdict.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from taskmem.records import Context, Judge, Question

Position = Literal["first", "second", "tie"]


class JudgeError(Exception):
    """The judge failed for good (after its own retries): the message is the reason that is recorded."""


@dataclass(frozen=True)
class Fidelity:
    """`faithful` to the pixels and subtitles of the current segment; `coherent` with the text before it."""

    faithful: bool
    coherent: bool


class FidelityJudge(Protocol):
    """Judges one memory with the video."""

    identity: Judge

    def fidelity(self, context: Context, memory: str) -> Fidelity:
        """Judge `memory` against the context's current segment; raises JudgeError."""
        ...


class RedundancyJudge(Protocol):
    """Judges one memory with the text alone."""

    identity: Judge

    def non_redundant(self, context: Context, memory: str) -> bool:
        """True if no atomic fact repeats a preceding memory and no forbidden phrase occurs; raises JudgeError."""
        ...


class RichnessJudge(Protocol):
    """Ranks the memories of one group."""

    identity: Judge

    def rank(self, context: Context, memories: Sequence[str]) -> list[float]:
        """Rank of each memory by unique, non-overlapping information: 1 is richest, ties share their mean rank.

        Raises JudgeError.
        """
        ...


class HelpfulnessJudge(Protocol):
    """R_task: which of two memories is more useful for questions like these."""

    identity: Judge

    def compare(self, context: Context, questions: Sequence[Question], first: str, second: str) -> Position:
        """Compare the two in the order shown; `questions` carry no answers. Raises JudgeError."""
        ...


@dataclass(frozen=True)
class Judges:
    """One judge per role."""

    fidelity: FidelityJudge
    redundancy: RedundancyJudge
    richness: RichnessJudge
    helpfulness: HelpfulnessJudge
