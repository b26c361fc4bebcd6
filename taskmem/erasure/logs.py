"""The target's events in the feedback logs, and the watermarks that count what was before them."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from taskmem.erasure.contents import Eraser, lines_of
from taskmem.erasure.known import Known
from taskmem.erasure.tombstones import Count
from taskmem.erasure.trees import gather, read_file
from taskmem.errors import UserError
from taskmem.feedback import Watermark
from taskmem.files import atomic_write
from taskmem.progress import Note
from taskmem.registry import WatermarkMovedError, advance, watermark
from taskmem.store import Store
from taskmem.store.locks import acquire, release

ATTEMPTS = 20
START = Watermark(offset=0, lines=0, sha256=hashlib.sha256().hexdigest()).model_dump(mode="json")


@dataclass(frozen=True)
class Logs:
    """The logs <environment>.jsonl in a folder; UserError if there is none."""

    folder: Path

    def __post_init__(self) -> None:
        if not self.paths:
            raise UserError(f"{self.folder}: no event log (*.jsonl) there; give the folder that the agent writes to")

    @property
    def paths(self) -> list[Path]:
        """All of them, in order of name."""
        return sorted(self.folder.glob("[!.]*.jsonl"))

    def gather(self, known: Known) -> None:
        """Take in what all events tell."""
        for path in self.paths:
            gather(known, path.name, read_file(path))

    def found(self, eraser: Eraser) -> Count:
        """How many events there are of the target."""
        return Count(records=sum(len(lines_of(read_file(p))) - len(_left(p, eraser)) for p in self.paths))

    def check_unused(self) -> None:
        """UserError if an agent writes one of the logs: it would go on writing to a file that is no longer there."""
        for path in self.paths:
            with _locked(path):
                pass

    def erase(self, eraser: Eraser, store: Store, note: Note) -> None:
        """Take its events out of every log; a watermark moves to the same place in the new log."""
        for path in self.paths:
            with _locked(path):
                lines = lines_of(read_file(path))
                left = _left(path, eraser)
                if len(left) == len(lines):
                    continue
                # first the watermark: a killed erasure finds the events again, and the watermark where it is to be
                _move(store, path, lines, left)
                note(f"watermark of {path}")
                mode = path.stat().st_mode
                atomic_write(path, b"".join(line for _, line in left))
                path.chmod(mode)
                note(f"erased from {path}")


def _left(path: Path, eraser: Eraser) -> list[tuple[int, bytes]]:
    """The lines that stay, with their numbers."""
    numbered = enumerate(lines_of(read_file(path)))
    return [(number, line) for number, line in numbered if eraser.clean(path.name, line, path.stem).data]


def _move(store: Store, path: Path, lines: list[bytes], left: list[tuple[int, bytes]]) -> None:
    """Move the environment's watermark from a place in the old log to the same place in the new one."""
    environment = path.stem
    for _ in range(ATTEMPTS):
        used = watermark(store, environment)
        if not used or used == START:
            # another way to say the same: a night that has collected the erased events must not end
            new = {} if used == START else START
        elif _fits(used, [line for _, line in left]):
            return
        elif _fits(used, lines):
            new = _watermark([line for number, line in left if number < int(used["lines"])])
        else:
            raise UserError(
                f"{path}: the log before its watermark in the store is not the one it was taken from; "
                "give the folder of logs that belongs to this store"
            )
        try:
            advance(store, environment, new, used)
        except WatermarkMovedError:
            continue
        return
    raise UserError(f"environment {environment}: its feedback was used {ATTEMPTS} times meanwhile; erase again")


def _fits(used: dict[str, int | str], lines: list[bytes]) -> bool:
    return _watermark(lines[: int(used["lines"])]) == used


def _watermark(lines: list[bytes]) -> dict[str, int | str]:
    data = b"".join(lines)
    found = Watermark(offset=len(data), lines=len(lines), sha256=hashlib.sha256(data).hexdigest())
    dumped: dict[str, int | str] = found.model_dump(mode="json")
    return dumped


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        held = acquire(path.with_name(f"{path.name}.lock"), wait=False)
    except BlockingIOError:
        raise UserError(f"{path}: an agent is writing this log; stop it, and run the erasure again") from None
    try:
        yield
    finally:
        release(held)
