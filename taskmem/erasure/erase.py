"""A stream or a source is forgotten: everywhere, in an order in which a killed erasure can be run again.

1. the tombstone: from now on collectors refuse the target's events
2. everything is read: what the target's records say, what quotes them, which adapters rest on them; all this goes into the
   tombstone, and the feedback of these adapters' environments is made free
3. what is known by its text alone is erased first
4. then the lineage repository gets a head without the target, and after that its remote loses the objects
5. then the object store, the folders, the feedback's parts and its logs: the records that the rest is known from go last
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from taskmem.erasure.adapters import affected, free, published, what_vectors_keep
from taskmem.erasure.contents import Eraser
from taskmem.erasure.dvc_objects import Doomed, Pairs
from taskmem.erasure.folders import Folder, Plan
from taskmem.erasure.known import Known
from taskmem.erasure.lineage import Lineage
from taskmem.erasure.logs import Logs
from taskmem.erasure.needles import LEAST
from taskmem.erasure.parts import PARTS, StoredParts
from taskmem.erasure.stored import StoredObjects, stored_objects
from taskmem.erasure.target import Target
from taskmem.erasure.tombstones import Count, Stone, read_tombstone
from taskmem.progress import Note, unheard
from taskmem.registry import Manifest
from taskmem.store import Store, open_store

STORE, REMOTE, HEAD, FOLDERS, LOGS = (
    *(
        "object store",
        "remote of the lineage",
        "rewritten in the lineage's head",
        "folders and caches",
        "feedback logs",
    ),
)


@dataclass(frozen=True)
class Places:
    """Where to look: the object store, the lineage repository, the folder of feedback logs, run folders and caches."""

    store: str
    lineage: str | None = None
    events: Path | None = None
    folders: Sequence[Path] = ()


@dataclass(frozen=True)
class Erasure:
    """What was erased by place (or is to be), which adapters rest on it, which files went as a whole, and what remains.

    `again` is set where an earlier erasure had left nothing to do.
    """

    target: Target
    erased: dict[str, Count]
    adapters: tuple[str, ...]
    files: tuple[str, ...]
    remaining: tuple[str, ...]
    again: bool = False


def preview(target: Target, places: Places) -> Erasure:
    """What `erase` would do; nothing is touched. UserError as `erase`."""
    with tempfile.TemporaryDirectory(prefix="taskmem-erase-") as work:
        return _Survey(target, places, Path(work)).report()


def erase(
    target: Target, places: Places, by: str, time: datetime, reason: str | None = None, note: Note = unheard
) -> Erasure:
    """Erase the target wherever `places` lead; its tombstone stays. `note` is told of every change.

    Killed at any point and called again it completes; called once more it changes nothing. UserError for a place that cannot be
    reached, read or written, and for a log that an agent has open.
    """
    store = open_store(places.store)
    stone = Stone(store, target, by, time, reason)
    note("tombstone")
    with tempfile.TemporaryDirectory(prefix="taskmem-erase-") as work:
        survey = _Survey(target, places, Path(work))
        if survey.logs:
            survey.logs.check_unused()
        found = survey.report()
        stone.begin(found.erased, found.adapters, survey.doomed_objects, found.remaining)
        note("survey")
        again = stone.now.state == "erased"
        if not again:
            _mark(store, stone, note)
            survey.erase(stone.now.target, store, note)
            stone.finish()
            note("erased")
    done = stone.now
    return Erasure(target, dict(done.erased), done.adapters, found.files, done.remaining, again)


def _mark(store: Store, stone: Stone, note: Note) -> None:
    names = sorted({name.rpartition("@")[0] for name in stone.now.adapters} - set(stone.now.retraining))
    for name in names:
        free(store, name)
        note(f"feedback of {name} is free")
    stone.mark(names)


@dataclass
class _Survey:
    """Everything that there is of a target, and how to be rid of it."""

    target: Target
    places: Places
    work: Path
    pairs: Pairs = field(default_factory=Pairs)

    def __post_init__(self) -> None:
        places = self.places
        self._store = open_store(places.store)
        self._stored: StoredObjects = stored_objects(places.store)
        self._parts = StoredParts(places.store)
        self.logs = Logs(places.events) if places.events else None
        self._folders = [Folder(folder, places.events) for folder in places.folders]
        self._lineage = Lineage(places.lineage, self.work / "lineage") if places.lineage else None
        self._remotes = self._lineage.remotes if self._lineage else []
        known = Known(self.target)
        for place in (self._stored, *self._remotes, *self._folders, self._parts, *((self.logs,) if self.logs else ())):
            place.gather(known)
        self._eraser = Eraser(known)
        self._doomed: list[Doomed] = [remote.doomed(self._eraser, self.pairs) for remote in self._remotes]
        self._keys = self._stored.doomed(self._eraser)
        self._plans: list[Plan] = [folder.plan(self._eraser, self.pairs) for folder in self._folders]

    @property
    def doomed_objects(self) -> list[str]:
        """The MD5s of what will go from DVC's remotes."""
        return [name for doomed in self._doomed for name in doomed.objects]

    def report(self) -> Erasure:
        """What was found."""
        before = read_tombstone(self._store, self.target)
        manifests = [*published(self._store), *(self._lineage.manifests() if self._lineage else ())]
        known = affected(manifests, self.pairs)
        names = (*(before.adapters if before else ()), *(manifest.name for manifest in known.resting))
        unknown = [manifest for manifest in known.unknown if manifest.name not in names]
        counts = {STORE: Count(files=len(self._keys))}
        if self._lineage:
            counts[REMOTE] = _sum(doomed.count for doomed in self._doomed)
            counts[HEAD] = Count(files=self._lineage.head_changes(self._eraser))
        if self._folders:
            counts[FOLDERS] = _sum(plan.count for plan in self._plans)
        if self._parts:
            counts[PARTS] = self._parts.found(self._eraser)
        if self.logs:
            counts[LOGS] = self.logs.found(self._eraser)
        remaining = [*what_vectors_keep(self._store, known.resting), *self._remaining(unknown)]
        adapters = tuple(dict.fromkeys(names))
        return Erasure(self.target, counts, adapters, tuple(self._whole()), tuple(remaining))

    def erase(self, tombstone: str, store: Store, note: Note) -> None:
        """Be rid of it."""
        for folder in self._folders:
            folder.erase_quotes(self._eraser, note)
        if self._lineage:
            self._lineage.rewrite_head(self._eraser, tombstone, note)
            needed = self._lineage.needed()
            for remote, doomed in zip(self._remotes, self._doomed, strict=True):
                remote.erase([name for name in doomed.objects if name not in needed], note)
        self._stored.erase(self._keys, note)
        for folder, plan in zip(self._folders, self._plans, strict=True):
            folder.erase(self._eraser, plan, note)
        self._parts.erase(self._eraser, note)
        if self.logs:
            self.logs.erase(self._eraser, store, note)

    def _whole(self) -> Iterator[str]:
        """The files that go as a whole though they are no records and no frames."""
        for folder, plan in zip(self._folders, self._plans, strict=True):
            for path, erased in plan.files.items():
                if erased.data is None and not erased.sealed and not self._eraser.owns(path):
                    yield str(folder.root / path)

    def _remaining(self, unknown: Sequence[Manifest]) -> Iterator[str]:
        for manifest in unknown:
            yield (
                f"{manifest.name}: its preference pairs are in none of the places given, so that nothing tells whether it rests "
                f"on it; give them, or retire it with `taskmem registry rollback {manifest.environment} --to none`"
            )
        for key in self._stored.quoted(self._eraser):
            yield f"{key}: quotes it, and belongs to a chain of digests that would break"
        for objects in (self._stored.objects, self._parts.objects, *(remote.objects for remote in self._remotes)):
            if objects.kept_versions:
                yield f"{objects.where}: the bucket may keep old versions, and does not let us list them; let it expire them"
        for doomed in self._doomed:
            yield from (f"{path}: an archive that cannot be looked into; delete it by hand" for path in doomed.sealed)
        for plan in self._plans:
            yield from (f"{path}: an archive that cannot be looked into; delete it by hand" for path in plan.sealed)
        if self._lineage:
            yield "the lineage repository's git: digests, names and numbers of earlier runs, which every later commit rests on"
        else:
            yield "the lineage repository was not given, and nothing in its remote was erased; give --lineage"
        if not self.logs:
            yield "the feedback logs were not given, and nothing in them was erased; give --events"
        yield from _of_a_stream(self.target)
        yield f"texts of less than {LEAST} bytes, or that others have written too, where no record says whose they are"
        yield "backups, copies made elsewhere and logs of other systems, which nothing here reaches"


def _of_a_stream(target: Target) -> Iterator[str]:
    if target.environment is not None:
        yield (
            f"segments, memories and candidates of streams called {target.name}, and what quotes them: they name no environment; "
            f"erase {target.name} if no other environment has a stream of that name"
        )
    if target.kind == "stream":
        yield "what the weights of a policy learned, if it was trained on the stream; train it anew without"


def _sum(counts: Iterator[Count]) -> Count:
    total = Count()
    for count in counts:
        total = total.plus(count)
    return total
