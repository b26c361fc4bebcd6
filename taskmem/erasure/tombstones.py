"""What is left in the object store of an erased target: that it was erased, when, by whom, and what could not be."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from taskmem.erasure.target import Target
from taskmem.errors import UserError
from taskmem.feedback.collection import Erasable
from taskmem.records import Index, Part, Record, Sha256
from taskmem.registry.log import Author, Reason
from taskmem.registry.objects import parse, stored, to_bytes
from taskmem.store import Conflict, Store

FOLDER = "tombstones"


class Count(Part):
    """How many records and whole files were erased in one place."""

    records: Index = 0
    files: Index = 0

    def plus(self, other: "Count") -> "Count":
        """Both together."""
        return Count(records=self.records + other.records, files=self.files + other.files)


class Tombstone(Record):
    """An erased stream or source: `target` is its `tombstone_of`, which does not tell its name.

    `adapters` rest on it (environment@version), the feedback of `retraining` was made free so that they are made again;
    `objects` has the MD5s of what DVC kept and does no longer; `remaining` says what could not be erased, and why.
    """

    kind: Erasable
    target: Sha256
    state: Literal["erasing", "erased"]
    time: AwareDatetime
    by: Author
    reason: Reason | None = None
    erased: dict[str, Count] = Field(default_factory=dict)
    adapters: tuple[str, ...] = ()
    retraining: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    remaining: tuple[Annotated[str, Field(min_length=1)], ...] = ()


def tombstones(store: Store) -> frozenset[str]:
    """All erased streams and sources, each as its `tombstone_of`: what collectors refuse."""
    return frozenset(key.removeprefix(f"{FOLDER}/") for key in store.list(f"{FOLDER}/"))


def erased_objects(store: Store) -> frozenset[str]:
    """The MD5s of all objects that erasures took from DVC's remotes: that these are missing is no damage."""
    stones = (stored(store, key) for key in store.list(f"{FOLDER}/"))
    found = (parse(stone.data, Tombstone, FOLDER) for stone in stones if stone)
    return frozenset(name for stone in found for name in stone.objects)


def read_tombstone(store: Store, target: Target) -> Tombstone | None:
    """The target's tombstone, None where it was never erased; UserError if it is damaged."""
    object_ = stored(store, _key(target))
    return parse(object_.data, Tombstone, _key(target)) if object_ else None


class Stone:
    """The tombstone of one target, while it is written; UserError if somebody else erases the same at the same time."""

    def __init__(self, store: Store, target: Target, by: str, time: datetime, reason: str | None) -> None:
        self._store, self._key = store, _key(target)
        object_ = stored(store, self._key)
        self._etag = object_.etag if object_ else None
        self._before = parse(object_.data, Tombstone, self._key) if object_ else None
        self.now = self._before or Tombstone(
            kind=target.kind, target=target.digest, state="erasing", time=time, by=by, reason=reason
        )
        if object_ is None:
            self._write(self.now)

    def begin(
        self,
        found: Mapping[str, Count],
        adapters: Iterable[str] = (),
        objects: Iterable[str] = (),
        remaining: Iterable[str] = (),
    ) -> None:
        """Before anything is erased: what will be, and which adapters rest on it."""
        done = self.now.state == "erased"
        if done and not any(count != Count() for count in found.values()) and set(adapters) <= set(self.now.adapters):
            return
        places = [*self.now.erased, *(name for name in found if name not in self.now.erased)]
        both = {name: (self.now.erased.get(name, Count()), found.get(name, Count())) for name in places}
        # what a killed run had not erased yet is found again; what came since is new
        counts = {name: old.plus(new) if done else _larger(old, new) for name, (old, new) in both.items()}
        self._change(
            state="erasing",
            erased=counts,
            adapters=_joined(self.now.adapters, adapters),
            objects=_joined(self.now.objects, objects),
            remaining=_joined(self.now.remaining, remaining),
        )

    def mark(self, environments: Iterable[str]) -> None:
        """Environments whose feedback was made free."""
        self._change(retraining=_joined(self.now.retraining, environments))

    def finish(self) -> None:
        """Everything that could be erased is."""
        self._change(state="erased")

    def _change(self, **fields: object) -> None:
        self._write(Tombstone.model_validate({**dict(self.now), **fields}))

    def _write(self, new: Tombstone) -> None:
        if new == self._before:
            return
        try:
            self._etag = self._store.compare_and_swap(self._key, to_bytes(new), self._etag)
        except Conflict:
            raise UserError(f"{self._key}: somebody else erases the same at this time; run it again later") from None
        self.now = self._before = new


def _key(target: Target) -> str:
    return f"{FOLDER}/{target.digest}"


def _larger(one: Count, other: Count) -> Count:
    return Count(records=max(one.records, other.records), files=max(one.files, other.files))


def _joined(one: Iterable[str], other: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*one, *other)))
