"""Which events, streams and sources stand in which parts, without reading the parts.

    feedback-index/<environment>/<level>/<number, 20 digits>    the marks of 32^level parts that follow one another

A mark is the first half of a SHA-256 and tells no name. Blocks are written once, before the part after them is shipped, and can
be made again from the parts at any time; an erasure alone makes them anew.
"""

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

from taskmem.errors import UserError
from taskmem.feedback.collection import tombstone_of
from taskmem.files import canonical_json, sha256_bytes
from taskmem.records import FeedbackEvent
from taskmem.store import AlreadyExists, Conflict, KeyMissing, Store

FOLDER = "feedback-index"
WIDTH = 32  # parts in a block, and blocks in one of the next level
_SIZE = 16  # bytes of a mark
_LARGE = 1 << 20  # bytes of marks
_CACHED = 256  # blocks
_ATTEMPTS = 20

Block = tuple[int, int]
"""A level and a number, counted from 0; a block of level 0 is the part whose number is one more."""


def event_mark(event: str) -> bytes:
    """The mark of an event's id."""
    return _mark(sha256_bytes(canonical_json(["event", event])))


def stream_mark(stream: str) -> bytes:
    """The mark of a stream."""
    return _mark(tombstone_of("stream", stream))


def source_mark(source: str) -> bytes:
    """The mark of a source."""
    return _mark(tombstone_of("source", source))


class Marks:
    """Marks that are sorted in `data`, one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        # what is large is searched where it is
        self._known = frozenset(self) if len(data) <= _LARGE else None

    @classmethod
    def of(cls, marks: Iterable[bytes]) -> "Marks":
        """Each mark once."""
        return cls(b"".join(sorted(set(marks))))

    def __len__(self) -> int:
        return len(self.data) // _SIZE

    def __getitem__(self, at: int) -> bytes:
        return self.data[at * _SIZE : (at + 1) * _SIZE]

    def __iter__(self) -> Iterator[bytes]:
        return (self[at] for at in range(len(self)))

    def __contains__(self, mark: bytes) -> bool:
        if self._known is not None:
            return mark in self._known
        at = bisect_left(self, mark)
        return at < len(self) and self[at] == mark


class PartIndex:
    """The index of an environment's parts; `events` gives the events of a part by its number."""

    def __init__(self, store: Store, environment: str, events: Callable[[int], Iterable[FeedbackEvent]]) -> None:
        self._store, self._environment, self._events = store, environment, events
        self._cache: OrderedDict[Block, Marks] = OrderedDict()
        self._mutex = threading.RLock()

    def complete(self, parts: int) -> None:
        """Make sure of the blocks that end with part number `parts`."""
        for level in _levels(parts):
            if parts % WIDTH**level == 0:
                self._marks((level, parts // WIDTH**level - 1))

    def before(self, number: int, mark: bytes) -> bool:
        """Whether a part before `number` has the mark."""
        return any(mark in self._marks(block) for block in _cover(number - 1))

    def find(self, mark: bytes, last: int) -> Iterator[int]:
        """The numbers of the parts up to `last` that have the mark."""
        for block in _cover(last):
            yield from self._find(mark, block)

    def renew(self, mark: bytes, last: int) -> None:
        """Make every block anew that has the mark, once no part has it."""
        with self._mutex:
            self._cache.clear()
        for block in _cover(last):
            self._renew(mark, block)

    def _find(self, mark: bytes, block: Block) -> Iterator[int]:
        if mark not in self._marks(block):
            return
        if block[0] == 0:
            yield block[1] + 1
        for inner in _inner(block):
            yield from self._find(mark, inner)

    def _renew(self, mark: bytes, block: Block) -> None:
        if block[0] == 0 or mark not in self._marks(block):
            return
        for inner in _inner(block):
            self._renew(mark, inner)
        for _ in range(_ATTEMPTS):
            try:
                known = self._store.get(self._key(block))
                new = self._made(block)
                self._store.compare_and_swap(self._key(block), new.data, known.etag)
            except Conflict:
                continue
            self._keep(block, new)
            return
        raise UserError(f"{self._key(block)}: others kept changing it; run again")

    def _marks(self, block: Block) -> Marks:
        with self._mutex:
            if block in self._cache:
                self._cache.move_to_end(block)
                return self._cache[block]
            return self._keep(block, self._made(block) if block[0] == 0 else self._stored(block))

    def _stored(self, block: Block) -> Marks:
        key = self._key(block)
        try:
            return Marks(self._store.get(key).data)
        except KeyMissing:
            made = self._made(block)
        try:
            self._store.put_if_absent(key, made.data)
        except AlreadyExists:  # somebody else has made it
            return Marks(self._store.get(key).data)
        return made

    def _made(self, block: Block) -> Marks:
        if block[0] > 0:
            return Marks.of(mark for inner in _inner(block) for mark in self._marks(inner))
        events = list(self._events(block[1] + 1))
        named = [(event_mark(e.id), stream_mark(e.stream), source_mark(e.source)) for e in events]
        return Marks.of(mark for marks in named for mark in marks)

    def _keep(self, block: Block, marks: Marks) -> Marks:
        with self._mutex:
            self._cache[block] = marks
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return marks

    def _key(self, block: Block) -> str:
        return f"{FOLDER}/{self._environment}/{block[0]}/{block[1]:020}"


def _mark(digest: str) -> bytes:
    return bytes.fromhex(digest)[:_SIZE]


def _levels(parts: int) -> Iterator[int]:
    level = 1
    while WIDTH**level <= parts:
        yield level
        level += 1


def _cover(parts: int) -> Iterator[Block]:
    """The fewest blocks that hold the first so many parts and no other, the largest first."""
    done = 0
    for level in (*reversed([*_levels(parts)]), 0):
        size = WIDTH**level
        while done + size <= parts:
            yield level, done // size
            done += size


def _inner(block: Block) -> list[Block]:
    level, number = block
    return [(level - 1, number * WIDTH + n) for n in range(WIDTH)] if level else []
