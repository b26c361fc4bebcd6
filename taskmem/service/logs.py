"""Service logs: one JSON object a line. Never text of memories, questions or answers, never a token."""

import json
import logging
import threading
import traceback
from collections.abc import Callable
from datetime import datetime
from typing import Any, TextIO


class ServiceLog:
    """Writes lines to `stream`, each with the time and the service's name; thread-safe."""

    def __init__(self, service: str, stream: TextIO, now: Callable[[], datetime]) -> None:
        self.service = service
        self._stream, self._now = stream, now
        self._lock = threading.Lock()

    def write(self, event: str, **fields: Any) -> None:
        """One line; fields that are None are left out."""
        told = {name: value for name, value in fields.items() if value is not None}
        line = json.dumps({"time": self._now().isoformat(), "service": self.service, "event": event, **told})
        with self._lock:
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def fault(self, error: BaseException, **fields: Any) -> None:
        """An error of ours: its type and where it was raised. Not its message, which may quote what a client sent."""
        frames = [
            f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
        ]
        self.write("fault", error=type(error).__name__, frames=frames[-5:], **fields)


class LogHandler(logging.Handler):
    """Lets Python's own logging speak through a `ServiceLog`."""

    def __init__(self, log: ServiceLog) -> None:
        super().__init__(logging.INFO)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """The message without what it quotes: an exception's type alone."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            self._log.fault(error, level=record.levelname)
        else:
            self._log.write("server", level=record.levelname, message=record.getMessage())
