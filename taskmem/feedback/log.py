"""The append-only log of feedback events: JSON Lines, one writer, nothing acknowledged is lost."""

import os
import threading
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import TypeAdapter, ValidationError

from taskmem.errors import UserError
from taskmem.files import fsync_directory, sha256_bytes
from taskmem.records import FeedbackEvent, Name, dump_record
from taskmem.store.locks import acquire, release


class EventConflictError(UserError):
    """An event's id is already in the log with other content."""


def checked_environment(environment: str) -> str:
    """`environment` if it is safe in a path; UserError otherwise."""
    try:
        return TypeAdapter(Name).validate_python(environment)
    except ValidationError:
        raise UserError(
            f"environment {environment!r}: not a safe name; use letters, digits and inner '.', '_', '-'"
        ) from None


def log_path(folder: Path, environment: str) -> Path:
    """The log of one environment in a folder of logs, which tenants never share; UserError for an unsafe name."""
    return folder / f"{checked_environment(environment)}.jsonl"


class EventLog:
    """The log at `path`, created with its folder if needed; a context manager, safe to share between threads.

    Opening takes the single writer's lock (`<name>.lock` beside the log) and mends the end of the file: a last line
    that a kill tore apart was never acknowledged and is cut off (`torn_bytes` tells how much), one that lacks only its
    line end gets it. Complete lines that are no valid event stay as they are; `collect` lists them.
    Raises UserError if another writer has the log open, or it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._digests: dict[str, str] = {}
        self._held = ExitStack()
        self._open = False
        self.torn_bytes = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._held.callback(release, acquire(path.with_name(f"{path.name}.lock"), wait=False))
            self._handle = self._held.enter_context(path.open("a+b", buffering=0))
            self._recover()
            self._open = True
        except BlockingIOError:
            raise UserError(f"{path}: another process is writing this log; stop it, or append through it") from None
        except OSError as error:
            raise self._unusable(error) from None
        finally:
            if not self._open:
                self._held.close()

    def append(self, event: FeedbackEvent) -> bool:
        """Add `event` durably: true if it is new, false if the log already holds it with the same content.

        When this returns, the event survives a power cut. Raises EventConflictError if the id is taken by other
        content, UserError if the log is closed or the write fails; a failed write closes the log, opening it mends it.
        """
        line = dump_record(event)
        digest = sha256_bytes(line)
        with self._mutex:
            if not self._open:
                raise UserError(f"{self._path}: the log is closed; open it again")
            known = self._digests.get(event.id)
            if known == digest:
                return False
            if known is not None:
                raise EventConflictError(
                    f"{self._path}: event {event.id} is already there with other content; give the new event its own id"
                )
            try:
                self._write(f"{line}\n".encode())
            except BaseException as error:
                # Whatever stopped the write, the line may be torn, and nothing may follow it.
                self._release()
                if isinstance(error, OSError):
                    raise self._unusable(error) from None
                raise
            self._digests[event.id] = digest
            return True

    def close(self) -> None:
        """Release the file and the writer's lock; closing twice is fine."""
        with self._mutex:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _recover(self) -> None:
        self._handle.seek(0)
        end, tail = 0, b""
        with self._path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    self._remember(line)
                    end += len(line)
                else:
                    tail = line
        if tail and self._remember(tail):
            self._write(b"\n")
        elif tail:
            self._handle.truncate(end)
            self.torn_bytes = len(tail)
        # What an earlier writer left unsynced counts as held from now on.
        os.fsync(self._handle.fileno())
        fsync_directory(self._path.parent)

    def _remember(self, line: bytes) -> bool:
        """Note the event on `line` as held; false if it is no valid event."""
        try:
            event = FeedbackEvent.model_validate_json(line)
        except ValidationError:
            return False
        self._digests.setdefault(event.id, sha256_bytes(dump_record(event)))
        return True

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._handle.write(rest) :]
        os.fsync(self._handle.fileno())

    def _release(self) -> None:
        self._open = False
        self._held.close()

    def _unusable(self, error: OSError) -> UserError:
        return UserError(f"{self._path}: cannot keep the log ({error.strerror}); free the disk or give a writable path")
