"""What changed from one adapter to another: feedback, pairs, judges, settings, policy, code, image, and the vectors."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskmem.audit.adapter import Traced, trace
from taskmem.audit.data import Data, remote_of
from taskmem.audit.evidence import FEEDBACK, JUDGES, PAIRS, PREFERENCES_FILE, Evidence, question_ids
from taskmem.audit.history import History
from taskmem.audit.links import Link, split_name
from taskmem.audit.recorded import SETTINGS, settings_link, settings_of
from taskmem.audit.vectors import Distance, distance, lay_files
from taskmem.feedback import read_collection
from taskmem.records import Preference, read_records
from taskmem.registry import Manifest
from taskmem.registry.versions import read_files
from taskmem.store import Store

KEPT = ("preferences", "feedback")
TOLD = ("policy", "commit", "image", "seed", "parent", "layer", "norm")


@dataclass(frozen=True)
class Side:
    """One adapter: its links, and what of it could be relied on; None for what could not."""

    name: str
    links: tuple[Link, ...]
    manifest: Manifest | None
    feedback: tuple[str, ...] | None
    pairs: tuple[tuple[str, int, int], ...] | None
    settings: Mapping[str, Any] | None
    files: Path | None


@dataclass(frozen=True)
class Change:
    """The members of two lists: how many both have, and those that only one has."""

    same: int
    added: tuple[Any, ...]
    removed: tuple[Any, ...]

    @classmethod
    def of(cls, before: Sequence[Hashable], after: Sequence[Hashable]) -> "Change":
        """From `before` to `after`."""
        old, new = set(before), set(after)
        return cls(len(old & new), tuple(x for x in after if x not in old), tuple(x for x in before if x not in new))

    def document(self) -> dict[str, Any]:
        """The change as JSON."""
        return {"same": self.same, "added": list(self.added), "removed": list(self.removed)}


@dataclass(frozen=True)
class Diff:
    """Two adapters, and what changed from the first to the second; a part that one of them has lost is None."""

    sides: tuple[Side, Side]
    feedback: Change | None
    pairs: Change | None
    judges: Change | None
    settings: Mapping[str, tuple[Any, Any]] | None
    told: Mapping[str, tuple[Any, Any]]
    vectors: Distance | None

    @property
    def broken(self) -> list[tuple[str, Link]]:
        """The links of either side that do not hold, by its name."""
        return [(side.name, link) for side in self.sides for link in side.links if not link.holds]

    def document(self) -> dict[str, Any]:
        """The difference as JSON."""
        lists = {FEEDBACK: self.feedback, PAIRS: self.pairs, JUDGES: self.judges}
        return {
            "schema": 1,
            "from": self.sides[0].name,
            "to": self.sides[1].name,
            **{name: change.document() if change else None for name, change in lists.items()},
            "settings": None if self.settings is None else _pairs(self.settings),
            **_pairs(self.told),
            "vectors": self.vectors.document() if self.vectors else None,
            "broken": [f"{name}: {link.line}" for name, link in self.broken],
        }


def diff(store: Store, lineage: str, one: str, other: str, work: Path) -> Diff:
    """What changed from the version `one` to `other`, each environment@version; `other` may be a version alone.

    What is fetched lies below the new folder `work`. UserError as `trace`, and for a remote that gives nothing.
    """
    environment, _ = split_name(one)
    names = (one, other if "@" in other else f"{environment}@{other}")
    history = History(lineage, work / "lineage")
    a, b = (_side(store, trace(store, history, name), work / f"{number}") for number, name in enumerate(names))
    manifests = (a.manifest, b.manifest)
    return Diff(
        (a, b),
        _change(a.feedback, b.feedback),
        _change(a.pairs, b.pairs),
        _change(*(_judges(manifest) for manifest in manifests)),
        _changed(a.settings, b.settings) if a.settings is not None and b.settings is not None else None,
        _changed(*(_told(manifest) for manifest in manifests)),
        distance(a.files, b.files) if a.files and b.files else None,
    )


def _side(store: Store, traced: Traced, work: Path) -> Side:
    manifest, recorded, links = traced.version.manifest, traced.recorded, list(traced.links)
    if manifest is None:
        return Side(traced.name, tuple(links), None, None, None, None, None)
    broken = {link.name for link in traced.broken}
    whole = broken.isdisjoint(manifest.files.by_name())
    files = lay_files(read_files(store, manifest), work / "files") if whole else None
    if recorded is None:
        return Side(traced.name, tuple(links), manifest, None, None, None, files)
    evidence = Evidence(recorded, Data(remote_of(recorded.history), work / "dvc", traced.erased), work / "data", KEPT)
    links += [
        evidence.pairs(manifest),
        evidence.judges(manifest),
        evidence.feedback(manifest),
        settings_link(recorded, manifest),
    ]
    holds = {link.name for link in links if link.holds}
    pairs, feedback = (evidence.part(name).whole for name in KEPT)
    return Side(
        traced.name,
        tuple(links),
        manifest,
        tuple(question_ids(read_collection(feedback), manifest.environment))
        if feedback and FEEDBACK in holds
        else None,
        _preferences(pairs) if pairs and PAIRS in holds else None,
        flattened(settings_of(recorded)) if SETTINGS in holds else None,
        files,
    )


def _preferences(folder: Path) -> tuple[tuple[str, int, int], ...]:
    return tuple((p.context, p.chosen, p.rejected) for p in read_records(folder / PREFERENCES_FILE, Preference))


def _judges(manifest: Manifest | None) -> tuple[str, ...] | None:
    if manifest is None:
        return None
    return tuple(f"{judge.role}, {judge.model}, prompt {judge.prompt_sha256}" for judge in manifest.judges)


def _told(manifest: Manifest | None) -> dict[str, Any]:
    return manifest.model_dump(mode="json", include=set(TOLD)) if manifest else {}


def _change(before: Sequence[Hashable] | None, after: Sequence[Hashable] | None) -> Change | None:
    return None if before is None or after is None else Change.of(before, after)


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The values that differ, by key, in order of key."""
    keys = sorted({*before, *after})
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def _pairs(changes: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    return {key: {"from": before, "to": after} for key, (before, after) in changes.items()}


def flattened(value: Any, path: str = "") -> dict[str, Any]:
    """A document's values by dotted key; a list is a value."""
    if not isinstance(value, Mapping):
        return {path: value}
    parts = (flattened(inner, f"{path}.{key}" if path else str(key)) for key, inner in value.items())
    return {key: inner for part in parts for key, inner in part.items()}
