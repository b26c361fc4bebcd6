"""Shards, and the event logs that a night starts from."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from taskmem.config import Profile
from taskmem.feedback import Collection, EventLog, read_collection
from taskmem.lineage.outcome import Outcome
from taskmem.records import FeedbackEvent
from taskmem.registry import advance, watermark
from taskmem.stages.nightly import collect_shard
from taskmem.stages.shard import Shard
from taskmem.store import LocalStore

TASK = "object"
NEEDED = 5


def shard(*environments: str | dict[str, Any]) -> Shard:
    specs = [spec if isinstance(spec, dict) else {"environment": spec} for spec in environments]
    return Shard.parse({"name": "one", "environments": specs})


def event(environment: str, number: int, **changes: Any) -> FeedbackEvent:
    fields: dict[str, Any] = {
        "id": f"q{number}",
        "environment": environment,
        "source": "a" * 64,
        "time": datetime(2026, 1, 1, 0, number % 60, tzinfo=UTC),
        "question": f"q{number}",
        "stream": "deployment-s0-000",
        "asked_at_s": float(number),
        "type": TASK,
        "text": f"what was carried at 00:{number:02d}?",
        "answer": None,
        "outcome": "unknown",
        "consent": True,
    }
    return FeedbackEvent(**{**fields, **changes})


def brief(outcomes: Sequence[Outcome]) -> list[tuple[str, str, str]]:
    return [(o.name, o.status, o.reason) for o in outcomes]


@dataclass(frozen=True)
class Logs:
    """Event logs, the store with their watermarks, and what is collected from them."""

    root: Path
    profile: Profile

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.root / "store")

    def ask(self, environment: str, numbers: range, **changes: Any) -> None:
        with EventLog(self.root / "events" / f"{environment}.jsonl") as log:
            for number in numbers:
                log.append(event(environment, number, **changes))

    def collect(self, *environments: str | dict[str, Any], store: bool = True, out: str = "out") -> list[Outcome]:
        url = str(self.root / "store") if store else ""
        outcomes = collect_shard(shard(*environments), self.root / "events", url, self.profile, self.root / out)
        assert {o.stage for o in outcomes} == {"feedback_collection"}
        return outcomes

    def collected(self, environment: str, out: str = "out") -> Collection:
        return read_collection(self.root / out / environment)

    def use(self, environment: str) -> None:
        """What promotion does when the environment's night is over."""
        known = watermark(self.store, environment)
        advance(self.store, environment, self.collected(environment).watermark.model_dump(mode="json"), known)
