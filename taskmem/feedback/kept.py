"""What a collection from parts has read, in one file, so that it can be made again from the file alone.

    {"environment": ..., "repeated": [...]}     the marks of events that had been shipped before the first part in the file
    {"number": ...}                             a part's header, and its events; the parts follow one another

Events of what was erased are not kept, nor what people said who did not consent.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

from pydantic import Field

from taskmem.errors import UserError
from taskmem.feedback.collection import PartsWatermark
from taskmem.feedback.index import event_mark
from taskmem.feedback.parts import FOLDER, START, Counts, FeedbackPart, is_header, parse_event, parse_part
from taskmem.files import atomic_file
from taskmem.records import FeedbackEvent, Name, Record, dump_record, parse_line

_HEAD = b'{"schema_version": 1, "environment":'
ERASED_LINE = b'{"erased": true}\n'
_RESTORE = "restore it from a backup, or collect again"

EVENTS = "events.jsonl"
"""What a collection from parts keeps of them beside its questions."""


class KeptHead(Record):
    """The file's first line."""

    environment: Name
    repeated: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")], ...]


class Kept:
    """Takes in parts as they are read, and writes them to `path` at the end; a context manager.

    Events that do not count by `counts` are left out.
    """

    def __init__(self, path: Path, environment: str, counts: Counts) -> None:
        self._path, self._environment, self._counts = path, environment, counts
        self._old: list[bytes] = []
        self._marks: dict[str, bool] = {}  # of events: whether each of its lines was a repetition
        self._held = ExitStack()
        self._new = self._held.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - closed with self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def add_new(self, part: FeedbackPart) -> None:
        """A part after the watermark, in their order."""
        self._new.write(self._fit(part))

    def add_old(self, part: FeedbackPart) -> None:
        """A part before it, the newest first."""
        self._old.append(self._fit(part))

    def note(self, event: str, repeated: bool) -> None:
        """Whether an event had been shipped before the part that it was met in."""
        mark = event_mark(event).hex()
        self._marks[mark] = repeated and self._marks.get(mark, True)

    def write(self) -> None:
        """Write the file, replacing an older one."""
        repeated = sorted(mark for mark, each in self._marks.items() if each)
        with atomic_file(self._path) as file:
            head = KeptHead(environment=self._environment, repeated=tuple(repeated))
            file.write(f"{dump_record(head)}\n".encode())
            file.writelines(reversed(self._old))
            self._new.seek(0)
            shutil.copyfileobj(self._new, file)

    def _fit(self, part: FeedbackPart) -> bytes:
        return FeedbackPart(part.header, tuple(self._fit_line(line) for line in part.lines)).to_bytes()

    def _fit_line(self, line: bytes) -> bytes:
        event = parse_event(line)
        if not isinstance(event, FeedbackEvent):
            return line
        if not self._counts(event):
            return ERASED_LINE
        if event.consent:
            return line
        silent = {"text": "withheld", "options": (), "answer": None, "correction": None, "memories": ()}
        return f"{dump_record(event.model_copy(update=silent))}\n".encode()


class KeptParts:
    """The parts that the file `path` has. UserError if it is damaged, or does not go with a watermark."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            head = parse_line(file.readline().decode(errors="replace"), KeptHead, f"{path}:1")
            self._parts = list(self._read(file))
        self.environment = head.environment
        # as it is said where they come from
        self.where = f"{FOLDER}/{head.environment}"
        self._repeated = frozenset(head.repeated)
        self._first: dict[str, int] = {}
        for part in self._parts:
            for event in map(parse_event, part.lines):
                if isinstance(event, FeedbackEvent):
                    self._first.setdefault(event.id, part.header.number)

    @property
    def end(self) -> PartsWatermark:
        """The watermark of the last part."""
        return self._parts[-1].watermark if self._parts else START

    def read(self, since: PartsWatermark) -> Iterator[FeedbackPart]:
        """The parts after `since`, in their order."""
        before = [part.watermark for part in self._parts if part.header.number <= since.parts]
        after = [part for part in self._parts if part.header.number > since.parts]
        starts = before[-1].sha256 if before else after[0].header.before if after else since.sha256
        if starts != since.sha256 or (after and after[0].header.number != since.parts + 1):
            raise UserError(
                f"{self._path}: was not kept by a collection from this watermark; give the one that belongs to it"
            )
        yield from after

    def backwards(self, last: int) -> Iterator[FeedbackPart]:
        """The part number `last` and those before it, the newest first, as far as they were kept."""
        yield from (part for part in reversed(self._parts) if part.header.number <= last)

    def shipped_before(self, number: int, event: str) -> bool:
        """Whether an event of this id was in a part before number `number`."""
        return event_mark(event).hex() in self._repeated or self._first.get(event, number) < number

    def _read(self, lines: Iterator[bytes]) -> Iterator[FeedbackPart]:
        at: PartsWatermark | None = None
        part: list[bytes] = []
        for line in [*lines, b""]:
            if (is_header(line) or not line) and part:
                found = parse_part(b"".join(part), str(self._path))
                if at and (found.header.number, found.header.before) != (at.parts + 1, at.sha256):
                    raise UserError(f"{self._path}: part {found.header.number} is out of its place; {_RESTORE}")
                at, part = found.watermark, []
                yield found
            part.append(line)


def is_kept(path: Path) -> bool:
    """Whether a file is what a collection from parts has kept, and no log."""
    with path.open("rb") as file:
        return file.read(len(_HEAD)) == _HEAD
