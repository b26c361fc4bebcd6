"""The response log: which adapter and policy answered what, a line each, durable before the answer is given.

`responses-<instance>.jsonl` in a folder, which `taskmem audit request` searches. Agent and gateway write one each.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter, ValidationError

from taskmem.errors import UserError
from taskmem.files import fsync_directory
from taskmem.records import Name, Response, dump_record
from taskmem.store.locks import acquire, release


class ResponseLog:
    """The log of one instance, for as long as it is open; any number of threads append, one process writes.

    Threads that append at the same time share one sync of the disk. A last line that a killed process left torn was given to
    nobody, and is cut off. A log that was moved away meanwhile, by who keeps old ones or erases from it, is begun again.
    """

    def __init__(self, folder: Path, instance: str) -> None:
        """UserError if the folder cannot be written, another process has the log, or `instance` is no safe name."""
        try:
            name = TypeAdapter(Name).validate_python(instance)
        except ValidationError:
            raise UserError(f"instance {instance!r}: not a safe name; use letters, digits, '.', '_', '-'") from None
        self.path = folder / f"responses-{name}.jsonl"
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._held = acquire(self.path.with_name(f"{self.path.name}.lock"), wait=False)
        except BlockingIOError:
            raise UserError(f"{self.path}: another process is writing this log; give another --instance") from None
        except OSError as error:
            raise self._unusable(error) from None
        try:
            self._lines: _Lines | None = _Lines(self.path)
        except OSError as error:
            release(self._held)
            raise self._unusable(error) from None

    def append(self, response: Response) -> None:
        """Add a line; when this returns it survives a power cut. UserError if it cannot: then give no answer.

        It blocks for as long as the disk needs: call it in a thread from a loop.
        """
        line = f"{dump_record(response)}\n".encode()
        try:
            with self._lock:
                lines = self._current()
                end = lines.write(line)
            lines.sync(end)
        except OSError as error:
            raise self._unusable(error) from None

    def check(self) -> None:
        """UserError if a line could not be written now, as far as that can be told without one."""
        try:
            with self._lock:
                self._current()
        except OSError as error:
            raise self._unusable(error) from None

    def close(self) -> None:
        """Give the log free; closing twice is fine."""
        with self._lock:
            if self._lines is not None:
                self._lines.close()
                self._lines = None
                release(self._held)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _current(self) -> "_Lines":
        """The open file, which is the one that has the log's name."""
        if self._lines is None:
            raise UserError(f"{self.path}: the log is closed; open it again")
        if not self._lines.usable(self.path):
            old, self._lines = self._lines, _Lines(self.path)
            old.close()
        return self._lines

    def _unusable(self, error: OSError) -> UserError:
        return UserError(
            f"{self.path}: cannot be written ({error.strerror}); free the disk or give another --responses"
        )


class _Lines:
    """One file, from its opening: whole lines up to `_size`, of which those up to `_synced` are durable."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._size = self._synced = self._whole()
            os.fsync(self._file)
            fsync_directory(path.parent)
        except BaseException:
            os.close(self._file)
            raise
        self._broken = False
        self._syncing = threading.Lock()

    def usable(self, path: Path) -> bool:
        """Whether the file is sound and still has its name."""
        try:
            there = path.stat()
        except FileNotFoundError:
            return False
        mine = os.fstat(self._file)
        return not self._broken and (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)

    def write(self, line: bytes) -> int:
        """Put a line behind the others; where it ends. OSError, and the file is as before, if it does not fit."""
        end = self._size + len(line)
        try:
            rest, at = memoryview(line), self._size
            while rest:
                written = os.pwrite(self._file, rest, at)
                rest, at = rest[written:], at + written
        except OSError:
            self._cut(self._size)
            raise
        self._size = end
        return end

    def sync(self, end: int) -> None:
        """Make all up to `end` durable; OSError if that failed, for everybody who waited for it."""
        with self._syncing:
            if self._synced >= end:
                return
            if self._broken:
                raise OSError(0, "the disk did not take it")
            upto = self._size
            try:
                os.fsync(self._file)
            except OSError:
                # what the disk took of it nobody knows; the answers are given to nobody
                self._broken = True
                raise
            self._synced = upto

    def close(self) -> None:
        """End with all durable that can be; who waits for it finds out which."""
        with self._syncing:
            if not self._broken:
                self._broken = _failed(os.fsync, self._file)
                self._synced = self._synced if self._broken else self._size
            os.close(self._file)

    def _whole(self) -> int:
        """Cut off what stands behind the last line end; the size after it."""
        size = os.fstat(self._file).st_size
        end = size
        while end > 0:
            start = max(0, end - 65_536)
            found = os.pread(self._file, end - start, start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end != size:
            os.ftruncate(self._file, end)
        return end

    def _cut(self, size: int) -> None:
        self._broken = _failed(os.ftruncate, self._file, size) or self._broken


def _failed(call: Callable[..., object], *args: object) -> bool:
    try:
        call(*args)
    except OSError:
        return True
    return False
