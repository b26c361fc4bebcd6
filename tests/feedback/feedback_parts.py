"""Events for the tests of this folder, and a store that counts."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

from taskmem.feedback import FeedbackParts
from taskmem.files import sha256_bytes
from taskmem.records import FeedbackEvent
from taskmem.store import Store


def event(number: int, **changes: Any) -> FeedbackEvent:
    """Event e<number>: question q<number> of a source of its own about the stream `hall`."""
    fields: dict[str, Any] = {
        "id": f"e{number}",
        "environment": "door",
        "source": sha256_bytes(str(number)),
        "time": datetime(2026, 1, 1, tzinfo=UTC),
        "question": f"q{number}",
        "stream": "hall",
        "asked_at_s": float(number),
        "type": "colour",
        "text": f"Which colour was bag {number}?",
        "answer": None,
        "outcome": "unknown",
        "consent": True,
    }
    return FeedbackEvent(**{**fields, **changes})


def shipped(store: Store, *batches: list[int]) -> FeedbackParts:
    """The parts of `door`, one for each list of numbers of events."""
    parts = FeedbackParts(store, "door")
    for numbers in batches:
        parts.append([event(number) for number in numbers])
    return parts


def event_ids(parts: FeedbackParts) -> list[list[str]]:
    """The ids of all shipped events, by part."""
    return [[FeedbackEvent.model_validate_json(line).id for line in part.lines] for part in parts.read()]


class Counting:
    """A store that counts its calls by name, and notes the keys that were read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.calls: Counter[str] = Counter()
        self.read: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            self.calls[name] += 1
            if name == "get":
                self.read.append(args[0])
            return getattr(self._store, name)(*args)

        return call
