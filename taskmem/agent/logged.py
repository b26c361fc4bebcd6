"""The agent's response log without the streams that were erased."""

import threading
import uuid
from pathlib import Path

from sqlalchemy import select

from taskmem.agent.storage import Storage
from taskmem.agent.tables import ERASED
from taskmem.feedback.collection import scoped, tombstone_of
from taskmem.files import atomic_write
from taskmem.gateway.responses import ResponseLog
from taskmem.records import Response, parse_line

Targets = frozenset[tuple[str, str]]


class LogEraser:
    """Takes lines of erased streams out of one instance's response log; thread-safe.

    Each of several agents does so with its own, whichever of them erased: what is erased they know from the database.
    """

    def __init__(self, storage: Storage, responses: ResponseLog, instance: str) -> None:
        self._storage, self._responses, self._instance = storage, responses, instance
        self._done: Targets = frozenset()
        self._lock = threading.Lock()

    def sweep(self) -> None:
        """Take out what was erased since the last time; StorageDownError, and UserError for a log that cannot be written."""
        with self._lock:
            with self._storage.reading() as connection:
                rows = connection.execute(select(ERASED.c.environment, ERASED.c.target)).all()
            targets = frozenset((row.environment, row.target) for row in rows)
            if targets == self._done:
                return
            current = self._responses.path
            for path in [current, *sorted(current.parent.glob(f"responses.{self._instance}.????????.jsonl"))]:
                if _without(path, targets) is not None:
                    self._rewrite(path, targets)
            self._done = targets

    def _rewrite(self, path: Path, targets: Targets) -> None:
        if path == self._responses.path:
            aside = path.with_name(f"responses.{self._instance}.{uuid.uuid4().hex[:8]}.jsonl")
            path.rename(aside)
            # from here on the log is a new file, and nobody writes to this one any more
            self._responses.check()
            path = aside
        atomic_write(path, _without(path, targets) or b"")


def _without(path: Path, targets: Targets) -> bytes | None:
    """A log's lines without those of the targets; None where there are none of these."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return None
    kept = [line for line in lines if not _names(line, targets, str(path))]
    return b"".join(kept) if len(kept) < len(lines) else None


def _names(line: bytes, targets: Targets, where: str) -> bool:
    if not line.endswith(b"\n"):
        return False  # still being written
    response = parse_line(line.decode(), Response, where)
    return (
        response.stream is not None
        and (response.environment, tombstone_of("stream", scoped(response.environment, response.stream))) in targets
    )
