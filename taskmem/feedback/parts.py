"""An environment's feedback in an object store: immutable parts in one order, for any number of writers.

    feedback/<environment>/<number, 20 digits>      a header line, then one event a line

Parts are numbered from 1 without a gap, each put only where nobody else has put that number. A header repeats the running
digest of the part before and adds its own, so that a number and a digest say how far the parts were read: `PartsWatermark`.
An erasure takes events out of a part and leaves its header, so that order, numbers and watermarks stay as they are. What stands
in which part is known from an index (index.py), so that neither a repetition nor a stream is looked for in all of them.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, ValidationError

from taskmem.errors import UserError
from taskmem.feedback.collection import PartsWatermark
from taskmem.feedback.index import PartIndex, event_mark
from taskmem.feedback.log import checked_environment
from taskmem.files import sha256_bytes
from taskmem.records import FeedbackEvent, Record, Sha256, dump_record, one_line
from taskmem.store import AlreadyExists, Conflict, KeyMissing, Store

FOLDER = "feedback"
START = PartsWatermark(parts=0, sha256=sha256_bytes(b""))
"""Before the first part."""
_RESTORE = "restore the object from a backup"
_HEADER = b'{"schema_version": 1, "number":'
_ATTEMPTS = 20
_READERS, _AT_ONCE = 8, 32  # threads that fetch parts, and how many parts ahead


Counts = Callable[[FeedbackEvent], bool]
"""Whether an event counts at all: one of what was erased does not, and leaves its id free."""


class PartHeader(Record):
    """A part's first line. `running` is the SHA-256 of `before`, which is that of the part before, and the events as shipped."""

    number: Annotated[int, Field(ge=1)]
    before: Sha256
    running: Sha256


@dataclass(frozen=True)
class FeedbackPart:
    """A part as it is now: its header, and its events, one JSON line each."""

    header: PartHeader
    lines: tuple[bytes, ...]

    @property
    def watermark(self) -> PartsWatermark:
        """Where one stands who has read up to this part."""
        return PartsWatermark(parts=self.header.number, sha256=self.header.running)

    def to_bytes(self) -> bytes:
        """The part as it is stored."""
        return b"".join((f"{dump_record(self.header)}\n".encode(), *self.lines))


class FeedbackParts:
    """The feedback of `environment` in `store`; safe for threads. UserError for an unsafe name.

    Store faults reach the caller. After one it is not known whether a part was written; appending the same events again is
    safe, since collection counts an event's id once.
    """

    def __init__(self, store: Store, environment: str) -> None:
        self._store, self.environment = store, checked_environment(environment)
        self._hint = 0  # a part that is known to exist
        self.index = PartIndex(store, self.environment, self.events)

    def append(self, events: Sequence[FeedbackEvent]) -> None:
        """Ship `events` as the next part, durable when this returns; nothing happens where there are none.

        UserError for an event of another environment, and for a damaged or missing last part.
        """
        if foreign := next((e for e in events if e.environment != self.environment), None):
            raise UserError(f"environment {self.environment}: event {foreign.id} names another; ship it as that one's")
        lines = tuple(f"{dump_record(event)}\n".encode() for event in events)
        while lines:
            at = self.end()
            self.index.complete(at.parts)
            header = PartHeader(number=at.parts + 1, before=at.sha256, running=_running(at.sha256, lines))
            try:
                self._store.put_if_absent(self.key(header.number), FeedbackPart(header, lines).to_bytes())
            except AlreadyExists as taken:
                if not taken.same:  # another writer came first
                    continue
            self._hint = header.number
            return

    def end(self) -> PartsWatermark:
        """Where the parts end now, found with a number of requests that grows with the logarithm of what is new."""
        low, step, found = self._hint, 1, None
        while (part := self._get(low + step)) is not None:
            low, step, found = low + step, step * 2, part
        high = low + step
        while high - low > 1:
            middle = (low + high) // 2
            part = self._get(middle)
            low, high, found = (low, middle, found) if part is None else (middle, high, part)
        self._hint = max(self._hint, low)
        if low == 0:
            return START
        return (found or self.part(low)).watermark

    def read(self, since: PartsWatermark = START, until: PartsWatermark | None = None) -> Iterator[FeedbackPart]:
        """The parts after `since` in their order, up to `until` (None: to the end as it is now); no part before is read.

        UserError if `since` is no watermark of these parts, or a part is missing, damaged or out of its place.
        """
        at = self._checked(since)
        last = (until or self.end()).parts
        with ThreadPoolExecutor(_READERS) as pool:
            for first in range(at.parts + 1, last + 1, _AT_ONCE):
                for part in pool.map(self.part, range(first, min(first + _AT_ONCE, last + 1))):
                    if part.header.before != at.sha256:
                        raise UserError(
                            f"{self.key(part.header.number)}: does not continue the part before; {_RESTORE}"
                        )
                    at = part.watermark
                    yield part

    def backwards(self, last: int) -> Iterator[FeedbackPart]:
        """The part number `last` and those before it, the newest first; UserError as `part`."""
        for number in range(last, 0, -1):
            yield self.part(number)

    def shipped_before(self, number: int, event: str) -> bool:
        """Whether an event of this id is in a part before number `number`."""
        return self.index.before(number, event_mark(event))

    @property
    def where(self) -> str:
        """What the keys begin with."""
        return f"{FOLDER}/{self.environment}"

    def part(self, number: int) -> FeedbackPart:
        """One part; UserError if it is missing or damaged."""
        part = self._get(number)
        if part is None:
            raise UserError(f"{self.key(number)}: the part of the feedback is missing; {_RESTORE}")
        return part

    def events(self, number: int) -> list[FeedbackEvent]:
        """The events of one part; a line that is none of this environment's is left out. UserError as `part`."""
        found = (parse_event(line) for line in self.part(number).lines)
        return [e for e in found if isinstance(e, FeedbackEvent) and e.environment == self.environment]

    def rewrite(self, number: int, keep: Callable[[bytes], bool]) -> int:
        """Take the lines of a part away that `keep` refuses, for an erasure; returns how many went.

        The caller renews the index. UserError as `part`, and if others keep changing the part.
        """
        key = self.key(number)
        for _ in range(_ATTEMPTS):
            part = self.part(number)
            left = tuple(line for line in part.lines if keep(line))
            if left == part.lines:
                return 0
            known = self._store.get(key)
            if known.data != part.to_bytes():
                continue
            try:
                self._store.compare_and_swap(key, FeedbackPart(part.header, left).to_bytes(), known.etag)
            except Conflict:
                continue
            return len(part.lines) - len(left)
        raise UserError(f"{key}: others kept changing it; run again")

    def key(self, number: int) -> str:
        """The key of a part."""
        return f"{self.where}/{number:020}"

    def _checked(self, since: PartsWatermark) -> PartsWatermark:
        known = START if since.parts == 0 else None
        if since.parts and (part := self._get(since.parts)):
            known = part.watermark
            self._hint = max(self._hint, since.parts)
        if known != since:
            raise UserError(
                f"{self.key(since.parts)}: the parts up to the watermark are not those it was taken from; "
                "give these parts' own watermark, or none to collect from the start"
            )
        return since

    def _get(self, number: int) -> FeedbackPart | None:
        key = self.key(number)
        try:
            data = self._store.get(key).data
        except KeyMissing:
            return None
        part = parse_part(data, key)
        if part.header.number != number:
            raise UserError(f"{key}: is part {part.header.number} of the feedback; {_RESTORE}")
        return part


def parse_part(data: bytes, where: str) -> FeedbackPart:
    """A stored part; UserError naming `where` if it has no header. Its lines are not looked at."""
    first, *lines = io.BytesIO(data).readlines() or [b""]
    try:
        header = PartHeader.model_validate_json(first)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        field = one_line(".".join(str(part) for part in problem["loc"])) or "the header"
        raise UserError(f"{where}: no part of feedback ({field}: {problem['msg']}); {_RESTORE}") from None
    if any(is_header(line) for line in lines):
        raise UserError(f"{where}: more than one part of feedback; {_RESTORE}")
    return FeedbackPart(header, tuple(lines))


def is_header(line: bytes) -> bool:
    """Whether a line can be a part's header, and so no event."""
    return line.startswith(_HEADER)


def parse_event(line: bytes) -> FeedbackEvent | str:
    """The event on a line, or in a few words why there is none."""
    try:
        return FeedbackEvent.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = one_line(".".join(str(part) for part in first["loc"])) or "the line"
        return f"{field}: {first['msg']}"


def environments_of(store: Store) -> list[str]:
    """The environments that have parts in `store`, in order of name; every key is listed."""
    return sorted({key.split("/")[1] for key in store.list(f"{FOLDER}/")})


def _running(before: str, lines: Sequence[bytes]) -> str:
    digest = hashlib.sha256(before.encode())
    for line in lines:
        digest.update(line)
    return digest.hexdigest()
