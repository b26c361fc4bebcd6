"""The target's events in the parts of feedback that lie in an object store: they go, and numbers and watermarks stay."""

from collections.abc import Iterator
from datetime import datetime

from taskmem.erasure.contents import Eraser
from taskmem.erasure.known import Known
from taskmem.erasure.objects import Objects, objects_at
from taskmem.erasure.target import Target
from taskmem.erasure.tombstones import Count, Stone, Tombstone
from taskmem.erasure.trees import gather
from taskmem.feedback import FeedbackParts
from taskmem.feedback.index import FOLDER as INDEX
from taskmem.feedback.index import source_mark, stream_mark
from taskmem.feedback.kept import EVENTS
from taskmem.feedback.parts import FOLDER, environments_of, parse_event
from taskmem.progress import Note, unheard
from taskmem.records import FeedbackEvent
from taskmem.store import Store, open_store

PARTS = "feedback parts"


class StoredParts:
    """The parts of all environments in the store at `url`. UserError as `open_store`."""

    def __init__(self, url: str) -> None:
        store = open_store(url)
        self._parts = [FeedbackParts(store, environment) for environment in environments_of(store)]
        self.objects: Objects = objects_at(url)

    def __bool__(self) -> bool:
        return bool(self._parts)

    def gather(self, known: Known) -> None:
        """Take in what all events tell."""
        for parts in self._parts:
            for part in parts.read():
                gather(known, EVENTS, b"".join(part.lines))

    def found(self, eraser: Eraser) -> Count:
        """How many events there are of the target."""
        lines = ((line, parts.environment) for parts in self._parts for part in parts.read() for line in part.lines)
        return Count(records=sum(not _stays(eraser, line, environment) for line, environment in lines))

    def erase(self, eraser: Eraser, note: Note) -> None:
        """Take them out, and whatever a bucket has kept of how it was before."""
        for parts in self._parts:

            def keep(line: bytes, environment: str = parts.environment) -> bool:
                return _stays(eraser, line, environment)

            for part in parts.read():
                if not all(map(keep, part.lines)):
                    parts.rewrite(part.header.number, keep)
                    note(f"erased from {parts.key(part.header.number)}")
            _finish(parts, self.objects, eraser.target)
            note(f"index of the feedback of {parts.environment}")


def forget(url: str, environment: str, stream: str, by: str, time: datetime, note: Note = unheard) -> Tombstone:
    """Forget an environment's stream in the store at `url`, quickly: its tombstone, and its events in the parts of feedback.

    This is what a service does at once; `taskmem audit erase ENVIRONMENT/STREAM` does the rest, and until then the tombstone says
    "erasing". Killed at any point and called again it completes, and called once more it changes nothing. Events that writers
    still hold should be gone from there before. UserError if somebody else forgets the same at the same time, or the store cannot
    be reached or written.
    """
    return forget_in(open_store(url), objects_at(url), Target.parse(f"{environment}/{stream}"), by, time, note)


def forget_in(store: Store, objects: Objects, target: Target, by: str, time: datetime, note: Note) -> Tombstone:
    """`forget`, where store and objects are open."""
    stone = Stone(store, target, by, time, None)
    note("tombstone")
    parts = FeedbackParts(store, str(target.environment))
    before, done = stone.now.state, 0
    while (end := parts.end().parts) > done:
        holding = list(_holding(parts, target, end))
        if holding:
            stone.begin({PARTS: Count(records=sum(events for _, events in holding))})
        for number, _ in holding:
            parts.rewrite(number, lambda line: not _is_of(target, line))
            note(f"erased from {parts.key(number)}")
        done = end
    _finish(parts, objects, target)
    note("index")
    if before == "erased":
        stone.finish()
    return stone.now


def _holding(parts: FeedbackParts, target: Target, last: int) -> Iterator[tuple[int, int]]:
    """The numbers of the parts that have events of the target, and how many."""
    for number in parts.index.find(stream_mark(target.name), last):
        if events := sum(_is_of(target, line) for line in parts.part(number).lines):
            yield number, events


def _is_of(target: Target, line: bytes) -> bool:
    event = parse_event(line)
    return isinstance(event, FeedbackEvent) and event.stream == target.name and target.concerns(event.environment)


def _stays(eraser: Eraser, line: bytes, environment: str) -> bool:
    return bool(eraser.clean(EVENTS, line, environment).data)


def _finish(parts: FeedbackParts, objects: Objects, target: Target) -> None:
    """After the parts: the index, and what a bucket with versions has kept. Who is killed before finds the mark again."""
    if target.concerns(parts.environment):
        mark = stream_mark(target.name) if target.kind == "stream" else source_mark(target.name)
        parts.index.renew(mark, parts.end().parts)
    for folder in (FOLDER, INDEX):
        objects.drop_old(f"{folder}/{parts.environment}/")
