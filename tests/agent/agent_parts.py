"""A policy and an answerer whose words a test decides, and what they are told about."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from taskmem.files import sha256_bytes
from taskmem.policy.protocols import Completion
from taskmem.records import Context, FeedbackEvent, Memory, Question, Segment


def segment(stream: str, index: int) -> Segment:
    return Segment(
        stream=stream,
        index=index,
        start_s=index * 10.0,
        end_s=index * 10.0 + 10,
        source=f"{stream}.mp4",
        clip=f"clips/{stream}/{index:06d}.mp4",
        fps=0.2,
        width=64,
        height=64,
        sha256=sha256_bytes(f"{stream} {index}"),
    )


def question(number: int, **changes: Any) -> Question:
    fields: dict[str, Any] = {
        "id": f"q{number}",
        "environment": "door",
        "stream": "a",
        "asked_at_s": 100.0,
        "type": "door",
        "text": f"question {number}?",
    }
    return Question(**{**fields, **changes})


def event(number: int, environment: str = "door", **changes: Any) -> FeedbackEvent:
    fields: dict[str, Any] = {
        "id": f"e{number}",
        "environment": environment,
        "source": sha256_bytes("somebody"),
        "time": datetime(2026, 1, 1, tzinfo=UTC),
        "question": f"q{number}",
        "stream": "a",
        "asked_at_s": 100.0,
        "type": "door",
        "text": f"question {number}?",
        "answer": None,
        "outcome": "unknown",
        "consent": True,
    }
    return FeedbackEvent(**{**fields, **changes})


def told(context: Context) -> str | None:
    """What it sees, and what it remembers of the segments before."""
    return f"{context.current.stream}{context.current.index} after {[memory.text for memory in context.memories]}"


class Scribe:
    """A policy that writes what `say` gives for a context (None: a broken output)."""

    def __init__(self, say: Callable[[Context], str | None] = told, adapter: str = "none") -> None:
        self.digest = "d" * 64
        self.adapter = adapter
        self.batches: list[list[Context]] = []
        self._say = say

    def write(self, contexts: Sequence[Context], n: int, seed: int) -> list[list[Completion]]:
        self.batches.append(list(contexts))
        return [[Completion(text or "", (), 0, text, 3)] * n for text in map(self._say, contexts)]


class Reader:
    """An answerer that tells what it was given; of nothing it answers nothing."""

    def __init__(self) -> None:
        self.asked: list[Question] = []

    def answer(self, question: Question, memories: Sequence[Memory]) -> str | None:
        self.asked.append(question)
        return " | ".join(memory.text or "?" for memory in memories) or None
