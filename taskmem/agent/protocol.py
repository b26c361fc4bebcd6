"""What every agent offers, in this process or behind a network: the deployment works through nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from taskmem.records import FeedbackEvent, Memory, Question, Segment


@dataclass(frozen=True)
class Served:
    """What a ready agent writes memories with: the policy's digest and its adapter (name@version or none)."""

    policy: str
    adapter: str


@dataclass(frozen=True)
class Answer:
    """`text` is None for "insufficient information"; `memories` are the ids `stream:index` of those that were read for it."""

    text: str | None
    memories: tuple[str, ...]


class Agent(Protocol):
    """Watches streams, answers questions about them from memory and keeps the feedback; works inside a `with` block only."""

    def __enter__(self) -> Self:
        """Start the agent; UserError if it cannot start."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it; feedback that was accepted is kept."""
        ...

    def ready(self) -> Served:
        """What is being served; UserError saying what is missing if segments or questions cannot be taken now."""
        ...

    def remember(self, segments: Sequence[Segment]) -> list[Memory]:
        """Write the memory of the newest segment of each of several streams; memories in the order of `segments`.

        The segments of one stream come one call after the other, in order. UserError, and nothing is remembered, if a stream
        comes twice in one call or a segment is not later than the last of its stream.
        """
        ...

    def answer(self, question: Question) -> Answer:
        """Answer from the memories of the question's stream that had ended when it was asked."""
        ...

    def feedback(self, event: FeedbackEvent) -> bool:
        """Keep `event` durably with its environment's: true if it is new, false if it is there already.

        EventConflictError if its id is taken by other content.
        """
        ...
