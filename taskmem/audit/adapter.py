"""The chain of one adapter: who made it champion on what evidence, and what it was trained on."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from taskmem.audit.data import Data, remote_of
from taskmem.audit.evidence import Evidence
from taskmem.audit.history import History
from taskmem.audit.links import Chain, Link, split_name
from taskmem.audit.recorded import (
    MANIFEST_FILE,
    PROMOTION_FILE,
    RUN,
    Recorded,
    copy_link,
    find,
    origin_links,
    run_link,
    settings_link,
    tag_link,
)
from taskmem.audit.registered import (
    LOG,
    MANIFEST,
    PROMOTION,
    Moves,
    Version,
    file_links,
    manifest_link,
    promotion_link,
    read_moves,
    verdict_link,
)
from taskmem.erasure import erased_objects
from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.registry.objects import key_of, version_number
from taskmem.store import Store

DIRTY = "-dirty"


@dataclass(frozen=True)
class Traced:
    """A version in the registry and in the lineage: the links between both, and all that one needs to go on from there."""

    name: str
    links: tuple[Link, ...]
    version: Version
    moves: Moves
    recorded: Recorded | None
    erased: Collection[str]

    @property
    def broken(self) -> tuple[Link, ...]:
        """The links that do not hold."""
        return tuple(link for link in self.links if not link.holds)


def trace(store: Store, history: History, name: str) -> Traced:
    """Find the version `name` in the registry and in the lineage repository.

    UserError for a name that is none, for one that neither has heard of, and where the repository cannot be read.
    """
    environment, version = split_name(name)
    version_number(version)
    if next(iter(store.list(key_of(environment, ""))), None) is None:
        raise UserError(f"environment {environment}: not in the registry; see `taskmem registry list`")
    moves = read_moves(store, environment)
    first = moves.first(version)
    promised = first[1].manifest if first else None
    own = manifest_link(store, environment, version, [("the promotion", promised)], None)
    recorded = find(history, name, own.document)
    if recorded is None and own.manifest is None:
        raise UserError(
            f"{name}: neither in the registry nor in {history.shown}; see `taskmem registry show {environment}`"
        )
    copy = recorded.read(MANIFEST_FILE) if recorded else None
    named = [("the promotion", promised), ("the lineage", sha256_bytes(copy) if copy else None)]
    made = manifest_link(store, environment, version, named, copy)
    links = [moves.link, *_promoted(store, moves, version, recorded), made.link]
    if made.manifest is not None:
        links += file_links(store, made.manifest)
    links += _in_lineage(history, name, moves, made, recorded)
    return Traced(name, tuple(links), made, moves, recorded, erased_objects(store))


def audit_adapter(store: Store, lineage: str, name: str, work: Path, show_text: bool = False) -> Chain:
    """The whole chain of the version `name`, environment@version; what is fetched lies below the new folder `work`.

    What is damaged or missing is a link that does not hold, and no error; UserError as `trace`, and for a remote that gives
    nothing. With `show_text` it has the texts of the questions.
    """
    traced = trace(store, History(lineage, work / "lineage"), name)
    links, texts = list(traced.links), {}
    recorded, manifest = traced.recorded, traced.version.manifest
    if manifest is not None:
        links += origin_links(recorded, manifest)
    if manifest is not None and recorded is not None:
        links.append(settings_link(recorded, manifest))
        data = Data(remote_of(recorded.history), work / "dvc", traced.erased)
        evidence = Evidence(recorded, data, work / "data")
        links += evidence.links(manifest)
        texts = evidence.texts(manifest.environment) if show_text else {}
    return Chain(name, tuple(links), tuple(_notes(traced)), texts)


def _promoted(store: Store, moves: Moves, version: str, recorded: Recorded | None) -> list[Link]:
    promotion = promotion_link(moves, version)
    first = moves.first(version)
    if promotion is None or first is None:
        if recorded is None or not recorded.promoted or not moves.link.holds:
            return []
        why = f"{recorded.where} promotes the version, the log does not: an entry is gone, or the pointer was set back"
        return [Link(PROMOTION, "missing", LOG, "the lineage", reason=why, rests_on=(LOG,))]
    return [promotion, verdict_link(store, first[1])]


def _in_lineage(history: History, name: str, moves: Moves, made: Version, recorded: Recorded | None) -> list[Link]:
    environment, version = split_name(name)
    first = moves.first(version)
    document = made.document
    tag = tag_link(history, name, sha256_bytes(document) if document else None)
    links = [tag] if tag else []
    if recorded is None:
        why = "no commit records the version"
        return [*links, Link(RUN, "missing", history.shown, "the registry", reason=why)]
    links.append(run_link(recorded, environment, first[1] if first else None))
    expected = sha256_bytes(document) if document else made.link.expected
    links.append(copy_link(MANIFEST, recorded, MANIFEST_FILE, expected, "the registry", "not the registry's manifest"))
    if first is not None and recorded.promoted:
        links.append(
            copy_link(PROMOTION, recorded, PROMOTION_FILE, first[0], "the promotion log", "not the entry in the log")
        )
    return links


def _notes(traced: Traced) -> list[str]:
    notes = []
    manifest, moves = traced.version.manifest, traced.moves
    if moves.link.holds and manifest is not None and moves.first(manifest.version) is None:
        notes.append(
            f"{traced.name} has never been champion: there is no promotion, no verdict in the registry and no tag"
        )
    if manifest is not None and (manifest.commit == "unknown" or manifest.commit.endswith(DIRTY)):
        notes.append(f"the code that trained it was no commit ({manifest.commit}): it cannot be checked out again")
    if manifest is not None and manifest.image == "local":
        notes.append("it was trained outside of an image")
    return notes
