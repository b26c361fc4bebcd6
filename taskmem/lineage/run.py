"""A finished run, as the lineage repository records it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from taskmem.files import canonical_json, sha256_bytes
from taskmem.lineage.layout import Member, shared_of
from taskmem.lineage.outcome import OUTCOMES, Outcome
from taskmem.lineage.record import RECORD
from taskmem.records import read_json, read_records


@dataclass(frozen=True)
class Run:
    """A run by its record's folder, the folders of what it used and made by kind, and its environments by adapter.

    UserError for a kind of which there are too few folders, or too many.
    """

    record: Path
    artifacts: Mapping[str, Sequence[Path]]
    members: Mapping[str, Member]

    def __post_init__(self) -> None:
        shared_of(self.artifacts)

    @property
    def shared(self) -> dict[str, Path]:
        """The folder of each kind that all environments use."""
        return shared_of(self.artifacts)

    @cached_property
    def outcomes(self) -> list[Outcome]:
        """What became of every environment, with the reasons in full."""
        return read_records(self.record / OUTCOMES, Outcome)

    @cached_property
    def told(self) -> list[Outcome]:
        """The outcomes as git keeps them. The gate's reasons are numbers; others may quote what people wrote."""
        return [o if o.status in ("kept", "promoted") else _withheld(o) for o in self.outcomes]

    @cached_property
    def document(self) -> dict[str, Any]:
        """The record as git keeps it, and its id: the first digits of the SHA-256 of all the rest."""
        told = [outcome.model_dump(mode="json", exclude={"schema_version"}) for outcome in self.told]
        content = {**read_json(self.record / RECORD), "environments": told}
        return {"id": sha256_bytes(canonical_json(content))[:16], **content}

    @property
    def id(self) -> str:
        """The run's id."""
        return str(self.document["id"])


def _withheld(outcome: Outcome) -> Outcome:
    digest = f"sha256:{sha256_bytes(outcome.reason)}"
    return outcome.model_copy(update={"reason": digest}) if outcome.reason else outcome
