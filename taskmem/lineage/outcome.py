"""What became of an environment in a run."""

from collections.abc import Sequence
from typing import Literal, get_args

from taskmem.records import Name, Record

OUTCOMES = "outcomes.jsonl"
Status = Literal["ready", "skipped", "failed", "kept", "promoted"]


class Outcome(Record):
    """What became of one environment up to `stage`, and why. Only `ready` goes on to the next stage."""

    environment: Name
    name: Name
    stage: str
    status: Status
    reason: str
    version: str | None = None  # the champion after promotion


def counts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """How many environments ended in each status."""
    return {status: sum(o.status == status for o in outcomes) for status in get_args(Status)}
