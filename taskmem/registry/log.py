"""A pointer that is moved by compare-and-swap, and the append-only log of its moves, each entry chained to the one before.

An entry is stored under the SHA-256 of its bytes before the pointer moves; the pointer names it. The log is what one finds
walking back from there: the entry of somebody who lost the race, or was killed before the pointer moved, is no part of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import AfterValidator, AwareDatetime, Field, ValidationError, model_validator

from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.records import Name, Record, Sha256
from taskmem.registry.manifest import VersionName
from taskmem.registry.objects import parse, put_content, stored, to_bytes
from taskmem.store import Conflict, Store

_RESTORE = "restore the object from a backup"


def _printable(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError("must be one line of printable characters")
    return text


Author = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Reason = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_printable)]


class Entry(Record, ABC):
    """One move: the `number`-th, counted from 1; `before` is the SHA-256 of the entry before it, None for the first."""

    number: Annotated[int, Field(ge=1)]
    by: Author
    time: AwareDatetime
    before: Sha256 | None
    reason: Reason | None = None

    @property
    @abstractmethod
    def subject(self) -> str:
        """Whose pointer moved."""

    @property
    @abstractmethod
    def moved(self) -> tuple[str | None, str | None]:
        """From what to what."""


class Promotion(Entry):
    """The champion of an environment moved from `replaced_version` to `version`; None is no adapter.

    "promote" is a challenger's, on its `verdict`; "rollback" leads back to an earlier champion, with the verdict that had
    made it so; "retire" to no adapter. `manifest` is the SHA-256 of the version's manifest, `policy` its policy's.
    """

    environment: Name
    action: Literal["promote", "rollback", "retire"]
    version: VersionName | None
    replaced_version: VersionName | None
    policy: Sha256 | None
    verdict: Sha256 | None
    manifest: Sha256 | None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        evidence = (self.policy, self.verdict, self.manifest)
        if any((part is None) != (self.version is None) for part in evidence):
            raise ValueError("a version has a policy, a verdict and a manifest; no adapter has none of them")
        if (self.action == "retire") != (self.version is None):
            raise ValueError("to retire leads to no adapter, and nothing else does")
        return self

    @property
    def subject(self) -> str:
        """The environment."""
        return self.environment

    @property
    def moved(self) -> tuple[str | None, str | None]:
        """From version to version."""
        return self.replaced_version, self.version


class Head(Record, ABC):
    """What a pointer's object holds: `entry` is the SHA-256 of the log's last entry."""

    entry: Sha256

    @property
    @abstractmethod
    def subject(self) -> str:
        """Whose pointer this is."""


E = TypeVar("E", bound=Entry)
H = TypeVar("H", bound=Head)


@dataclass(frozen=True)
class Present(Generic[E, H]):
    """A pointer as read, its log's last entry and the etag to swap it by; all None before the first move."""

    pointer: H | None = None
    last: E | None = None
    etag: str | None = None

    @property
    def link(self) -> dict[str, Any]:
        """`number` and `before` of the next entry."""
        number = self.last.number + 1 if self.last else 1
        return {"number": number, "before": self.pointer.entry if self.pointer else None}


@dataclass(frozen=True)
class Chain(Generic[E, H]):
    """The pointer `key` of `subject` and the log below `folder`; `head_of` makes the pointer of an entry and its digest."""

    subject: str
    key: str
    folder: str
    entries: type[E]
    heads: type[H]
    head_of: Callable[[E, str], H]

    def present(self, store: Store) -> Present[E, H]:
        """The pointer now; UserError if it is damaged or says something else than its entry."""
        object_ = stored(store, self.key)
        if object_ is None:
            return Present()
        pointer = parse(object_.data, self.heads, self.key)
        if pointer.subject != self.subject:
            raise UserError(f"{self.key}: the pointer of environment {pointer.subject}; {_RESTORE}")
        last = self.entry(store, pointer.entry)
        if pointer != self.head_of(last, pointer.entry):
            raise UserError(f"{self.key}: says something else than its log's entry {pointer.entry}; {_RESTORE}")
        return Present(pointer, last, object_.etag)

    def entry(self, store: Store, digest: str) -> E:
        """One entry; UserError if it is missing or damaged."""
        key = self.entry_key(digest)
        object_ = stored(store, key)
        if object_ is None or sha256_bytes(object_.data) != digest:
            what = "missing" if object_ is None else "damaged"
            raise UserError(f"{key}: the entry of the log of {self.key} is {what}; {_RESTORE}")
        entry = parse(object_.data, self.entries, key)
        if entry.subject != self.subject:
            raise UserError(f"{key}: the entry of environment {entry.subject}; {_RESTORE}")
        return entry

    def entry_key(self, digest: str) -> str:
        """The key of an entry."""
        return f"{self.folder}/{digest}"

    def log(self, store: Store, present: Present[E, H] | None = None) -> dict[str, E]:
        """All entries up to `present` by digest, oldest first; UserError for one missing, damaged or out of its place."""
        present = present or self.present(store)
        found: dict[str, E] = {}
        later, digest = present.last, present.pointer.entry if present.pointer else None
        while later is not None and digest is not None:
            found[digest] = later
            if (later.before is None) != (later.number == 1):
                raise self._misplaced(digest, later)
            if later.before is None:
                if later.moved[0] is not None:
                    raise self._misplaced(digest, later)
                break
            digest, entry = later.before, self.entry(store, later.before)
            if entry.number != later.number - 1 or entry.moved[1] != later.moved[0]:
                raise self._misplaced(digest, entry)
            later = entry
        return dict(reversed(found.items()))

    def move(self, store: Store, present: Present[E, H], entry: E) -> H:
        """Append `entry` and move the pointer to it, if the pointer is still as it was `present`; returns the new pointer.

        Conflict if somebody else has moved it: then the entry is no part of the log.
        """
        data = to_bytes(entry)
        digest = sha256_bytes(data)
        put_content(store, self.entry_key(digest), data)
        pointer = self.head_of(entry, digest)
        try:
            store.compare_and_swap(self.key, to_bytes(pointer), present.etag)
        except Conflict:
            # a store that lost its own answer and tried again takes its own write for somebody else's
            if not self._reached(store, digest, entry.number):
                raise
        return pointer

    def _reached(self, store: Store, digest: str, number: int) -> bool:
        present = self.present(store)
        at, entry = present.pointer.entry if present.pointer else None, present.last
        while at is not None and entry is not None and entry.number > number:
            at = entry.before
            entry = self.entry(store, at) if at else None
        return at == digest

    def _misplaced(self, digest: str, entry: E) -> UserError:
        return UserError(
            f"{self.entry_key(digest)}: entry {entry.number} does not belong at this place of the log; {_RESTORE}"
        )


def written(kind: type[E], what: str, **fields: Any) -> E:
    """A new entry; UserError naming `what` for a field that cannot be recorded."""
    try:
        return kind(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the entry"
        raise UserError(f"{what}: {field}: {first['msg']}; say it in one short line") from None
