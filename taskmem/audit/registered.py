"""What the registry holds of a version: its promotions, the verdict, the manifest and the files, each against its digest."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskmem.audit.links import Link, Problem, compared
from taskmem.errors import UserError
from taskmem.evaluation.gate import Verdict
from taskmem.files import sha256_bytes
from taskmem.registry import Manifest, Promotion
from taskmem.registry.champion import promotions
from taskmem.registry.objects import file_key, parse, to_bytes, verdict_key, version_key
from taskmem.store import CorruptObject, KeyMissing, Store

LOG, PROMOTION, VERDICT, MANIFEST = "promotion log", "promotion", "verdict", "manifest"
NONE = "none"


@dataclass(frozen=True)
class Moves:
    """An environment's promotion log: its link, and the entries by digest, oldest first, none if it is broken."""

    link: Link
    entries: Mapping[str, Promotion]

    def first(self, version: str) -> tuple[str, Promotion] | None:
        """The entry that made `version` champion for the first time, with its digest; None if none did."""
        made = ((digest, entry) for digest, entry in self.entries.items() if entry.version == version)
        return next(made, None)

    def around(self, version: str) -> dict[str, str]:
        """What was champion before `version`, and after it: a version, none, or nothing where it still is."""
        log = list(self.entries.values())
        first = next((number for number, entry in enumerate(log) if entry.version == version), None)
        if first is None:
            return {}
        after = next((entry for entry in log[first + 1 :] if entry.version != version), None)
        said = {"before": log[first].replaced_version or NONE}
        return {**said, "after": (after.version or NONE) if after else "nothing, it is champion now"}


@dataclass(frozen=True)
class Object:
    """An object of the store as it was read: its bytes, and what is wrong with it."""

    key: str
    data: bytes | None = None
    problem: Problem | None = None

    @property
    def digest(self) -> str | None:
        """The SHA-256 of the bytes."""
        return None if self.data is None else sha256_bytes(self.data)


def read_object(store: Store, key: str) -> Object:
    """The object `key`; one that is missing or damaged is no error."""
    try:
        return Object(key, store.get(key).data)
    except KeyMissing:
        return Object(key, problem=Problem("missing", key, "the object is not in the store"))
    except CorruptObject:
        return Object(key, problem=Problem("damaged", key, "the object holds other bytes than were stored"))


def read_moves(store: Store, environment: str) -> Moves:
    """The environment's promotion log, every entry held against the digest in the one after it."""
    chain = promotions(environment)
    try:
        present = chain.present(store)
        entries = chain.log(store, present)
    except UserError as error:
        key, _, why = str(error).partition(": ")
        if not key.startswith("registry/"):  # the store itself cannot be read
            raise
        missing = "missing" in why.partition(";")[0]
        return Moves(Link(LOG, "missing" if missing else "damaged", key, "the champion's pointer", reason=why), {})
    head = present.pointer.entry if present.pointer else None
    last = list(entries)[-1] if entries else None
    facts = {
        "entries": len(entries),
        "champion": (present.pointer.version if present.pointer else None) or NONE,
        "moves": [_move(digest, entry) for digest, entry in entries.items()],
    }
    where = chain.entry_key(head) if head else chain.key
    return Moves(compared(LOG, where, "the champion's pointer", head, last, facts), entries)


def promotion_link(moves: Moves, version: str) -> Link | None:
    """The promotion of `version`, None if it never was champion."""
    found = moves.first(version)
    if found is None:
        return None
    digest, entry = found
    facts = {**_move(digest, entry), **moves.around(version)}
    where = f"entry {entry.number} of {promotions(entry.environment).folder}"
    named = f"the log's entry {entry.number + 1}" if entry.number < len(moves.entries) else "the champion's pointer"
    return compared(
        PROMOTION, where, named, digest, sha256_bytes(to_bytes(entry)), facts, rests_on=(LOG, VERDICT, MANIFEST)
    )


def _move(digest: str, entry: Promotion) -> dict[str, Any]:
    return {
        "number": entry.number,
        "action": entry.action,
        "by": entry.by,
        "time": entry.time.isoformat(),
        "from": entry.replaced_version or NONE,
        "to": entry.version or NONE,
        "reason": entry.reason,
        "verdict": entry.verdict,
        "entry": digest,
    }


def verdict_link(store: Store, entry: Promotion) -> Link:
    """The gate's verdict that a promotion names, with its numbers."""
    assert entry.verdict is not None
    read = read_object(store, verdict_key(entry.environment, entry.verdict))
    facts = verdict_facts(read.data) if read.digest == entry.verdict and read.data is not None else {}
    return compared(
        VERDICT, read.key, "the promotion", entry.verdict, read.digest, facts, rests_on=("feedback",),
        problems=_of(read), other="not the verdict that it was promoted on",
    )  # fmt: skip


def verdict_facts(data: bytes) -> dict[str, Any]:
    """What the gate found; the whole document where it is none of ours."""
    try:
        verdict = Verdict.model_validate_json(data)
    except ValueError:
        return {"document": json.loads(data)}
    wins, gold = verdict.win_test, verdict.gold
    return {
        "promote": verdict.promote,
        "reasons": list(verdict.reasons),
        "wins": wins.wins,
        "losses": wins.losses,
        "ties": wins.ties,
        "streams": wins.streams,
        "p_value": wins.p_value,
        "gold_questions": {"asked": gold.asked, "champion": gold.champion, "challenger": gold.challenger},
        "document": verdict.model_dump(mode="json", exclude={"schema_version", "environment", "promote", "reasons"}),
    }


@dataclass(frozen=True)
class Version:
    """A version's manifest: its link and, from a copy that can be relied on, the manifest and its bytes."""

    link: Link
    manifest: Manifest | None
    document: bytes | None


def manifest_link(
    store: Store,
    environment: str,
    version: str,
    named: Sequence[tuple[str, str | None]],
    copy: bytes | None,
) -> Version:
    """The manifest of a version, held against the first digest in `named`: pairs of who names it and which.

    `copy` are the bytes of another copy, which is read where the registry's cannot be relied on and this one can.
    """
    read = read_object(store, version_key(environment, version))
    named_by, expected = next(((who, digest) for who, digest in named if digest), ("", None))
    problems = _of(read)
    good = [data for data in (read.data, copy) if data is not None and expected in (None, sha256_bytes(data))]
    manifest = next((m for data in good if (m := _manifest(data, environment, version, read.key))), None)
    if not problems and manifest is None and expected == read.digest:
        problems = [Problem("damaged", read.key, f"no manifest of {environment}@{version}")]
    expected = expected or read.digest
    rests_on = ("policy", "pairs", "judges", "feedback", "settings", "code", "image")
    link = compared(
        MANIFEST, read.key, named_by or "nothing else", expected, read.digest, _facts(manifest), rests_on, problems,
        other="not the manifest that was published",
    )  # fmt: skip
    return Version(link, manifest, to_bytes(manifest) if manifest else None)


def _manifest(data: bytes, environment: str, version: str, key: str) -> Manifest | None:
    try:
        manifest = parse(data, Manifest, key)
    except UserError:
        return None
    return manifest if (manifest.environment, manifest.version) == (environment, version) else None


def _facts(manifest: Manifest | None) -> dict[str, Any]:
    if manifest is None:
        return {}
    said = manifest.model_dump(mode="json", include={"version", "parent", "layer", "size", "norm", "seed"})
    return {**said, "parent": said["parent"] or NONE}


def file_links(store: Store, manifest: Manifest) -> list[Link]:
    """The adapter's files in the registry, each against the manifest."""
    read = {name: read_object(store, file_key(manifest.environment, d)) for name, d in manifest.files.by_name().items()}
    return [_file_link(name, manifest.files.by_name()[name], object_) for name, object_ in read.items()]


def _file_link(name: str, digest: str, read: Object) -> Link:
    facts = {"bytes": len(read.data)} if read.data is not None else {}
    return compared(
        name,
        read.key,
        "the manifest",
        digest,
        read.digest,
        facts,
        (MANIFEST,),
        _of(read),
        "not the bytes that were published",
    )


def _of(read: Object) -> list[Problem]:
    return [read.problem] if read.problem else []
