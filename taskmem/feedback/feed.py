"""What a collection reads: lines after a watermark, then those before it from the newest on, and which events were there before.

A feed is a local log, an environment's parts in an object store, or a file of parts that a night has kept.
"""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from taskmem.errors import UserError
from taskmem.feedback.collection import ERASED, PartsWatermark, Watermark
from taskmem.feedback.kept import ERASED_LINE, Kept
from taskmem.feedback.parts import START as PARTS_START
from taskmem.feedback.parts import Counts, FeedbackPart, parse_event
from taskmem.records import FeedbackEvent

START = Watermark(offset=0, lines=0, sha256=hashlib.sha256().hexdigest())
UNFINISHED = "unfinished line, left for the next collection"


@dataclass(frozen=True)
class Line:
    """A line and where it is: `spot` for a sentence ("on line 3"), `place` for a list ("door.jsonl:3").

    `event` is what it says, or why it says nothing; None for a blank line.
    """

    spot: str
    place: str
    event: FeedbackEvent | str | None


class Feed(Protocol):
    """The lines of a log of feedback, from a watermark on. UserError if the watermark is another log's."""

    def new(self) -> Iterator[Line]:
        """Those after the watermark, in their order; to be read to the end before anything else."""
        ...

    def known(self, event: FeedbackEvent) -> str | None:
        """Where an event with the id of a new one stands before the watermark, None if nowhere."""
        ...

    def old(self) -> Iterator[Line]:
        """Those before the watermark, the newest first, without repetitions of an event."""
        ...

    @property
    def watermark(self) -> Watermark | PartsWatermark:
        """How far `new` has come."""
        ...


class LogFeed:
    """The log at `path`, whose name the places have; what is before `since` (None: nothing) is read once.

    `counts` says whether an event counts at all: one that does not leaves its id free.
    """

    def __init__(self, path: Path, since: Watermark | None, counts: Counts) -> None:
        self._path, self._since, self._counts = path, since or START, counts
        self._starts = array("Q")  # where each line before the watermark starts
        self._ids: dict[str, int] = {}
        self.watermark: Watermark = self._since

    def new(self) -> Iterator[Line]:
        """See `Feed.new`."""
        try:
            with self._path.open("rb") as handle:
                digest = self._pass_over(handle)
                offset, number = self._since.offset, self._since.lines
                for data in handle:
                    if not data.endswith(b"\n"):
                        yield Line(f"line {number + 1}", f"{self._path.name}:{number + 1}", UNFINISHED)
                        break
                    number += 1
                    offset += len(data)
                    digest.update(data)
                    yield self._line(number, data)
        except OSError as error:
            why = f"the event log cannot be read ({error.strerror})"
            raise UserError(f"{self._path}: {why}; give the path the deployment writes to") from None
        self.watermark = Watermark(offset=offset, lines=number, sha256=digest.hexdigest())

    def known(self, event: FeedbackEvent) -> str | None:
        """See `Feed.known`."""
        number = self._ids.get(event.id)
        return None if number is None else f"on line {number}"

    def old(self) -> Iterator[Line]:
        """See `Feed.old`."""
        with self._path.open("rb") as handle:
            for number in range(len(self._starts), 0, -1):
                handle.seek(self._starts[number - 1])
                line = self._line(number, handle.readline())
                if isinstance(line.event, FeedbackEvent) and self._ids.get(line.event.id) == number:
                    yield line

    def _line(self, number: int, data: bytes) -> Line:
        return Line(f"on line {number}", f"{self._path.name}:{number}", read_line(data))

    def _pass_over(self, handle: BinaryIO) -> "hashlib._Hash":
        """Move `handle` to the watermark, checking that the log before it is the one that was read; its running digest."""
        digest, offset, since = hashlib.sha256(), 0, self._since
        while offset < since.offset and (data := handle.readline()):
            self._starts.append(offset)
            offset += len(data)
            digest.update(data)
            event = read_line(data)
            if isinstance(event, FeedbackEvent) and self._counts(event):
                self._ids.setdefault(event.id, len(self._starts))
        if (offset, len(self._starts), digest.hexdigest()) != (since.offset, since.lines, since.sha256):
            raise UserError(
                f"{self._path}:{since.lines}: the log before the watermark is not the one it was taken from; "
                "give that log's own watermark, or none to collect from the start"
            )
        return digest


class Parts(Protocol):
    """Where parts are: an object store, or a file that has some of them."""

    environment: str

    @property
    def where(self) -> str:
        """What the places of lines begin with."""
        ...

    def read(self, since: PartsWatermark) -> Iterator[FeedbackPart]:
        """The parts after `since`, in their order."""
        ...

    def backwards(self, last: int) -> Iterator[FeedbackPart]:
        """The part of this number and those before it, the newest first."""
        ...

    def shipped_before(self, number: int, event: str) -> bool:
        """Whether an event of this id is in a part before this one."""
        ...


class PartsFeed:
    """An environment's parts, from `since` on (None: all); with `kept` everything that is read goes there too."""

    def __init__(self, parts: Parts, since: PartsWatermark | None, kept: Kept | None = None) -> None:
        self._parts, self._since, self._kept = parts, since or PARTS_START, kept
        self.watermark: PartsWatermark = self._since
        self.environment = parts.environment

    def new(self) -> Iterator[Line]:
        """See `Feed.new`."""
        for part in self._parts.read(self._since):
            if self._kept:
                self._kept.add_new(part)
            for number, data in enumerate(part.lines, 1):
                yield self._line(part, number, data)
            self.watermark = part.watermark

    def known(self, event: FeedbackEvent) -> str | None:
        """See `Feed.known`."""
        return "in an earlier part" if self._repeated(self._since.parts + 1, event.id) else None

    def old(self) -> Iterator[Line]:
        """See `Feed.old`."""
        for part in self._parts.backwards(self._since.parts):
            if self._kept:
                self._kept.add_old(part)
            lines = [self._line(part, number, data) for number, data in enumerate(part.lines, 1)]
            first = {line.event.id: line for line in reversed(lines) if isinstance(line.event, FeedbackEvent)}
            for line in reversed(lines):
                event = line.event
                if not isinstance(event, FeedbackEvent) or first[event.id] is not line:
                    continue
                if not self._repeated(part.header.number, event.id):
                    yield line

    def _repeated(self, number: int, event: str) -> bool:
        found = self._parts.shipped_before(number, event)
        if self._kept:
            self._kept.note(event, found)
        return found

    def _line(self, part: FeedbackPart, number: int, data: bytes) -> Line:
        at = part.header.number
        return Line(f"in part {at}", f"{self._parts.where}/{at:020}:{number}", read_line(data))


def read_line(data: bytes) -> FeedbackEvent | str | None:
    """The event on a line, why there is none, or None for a blank line."""
    if data == ERASED_LINE:
        return ERASED
    return parse_event(data) if data.strip() else None
