"""A service on a port of loopback, and clients that do what no client should."""

import asyncio
import io
import json
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Self

import uvicorn
from starlette.types import ASGIApp

from taskmem.service import Limits, ServiceLog
from taskmem.service.running import bind, server_of

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)


class LogLines(io.StringIO):
    """A service log that a test reads."""

    def log(self, service: str = "test") -> ServiceLog:
        return ServiceLog(service, self, lambda: NOW)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def requests(self, count: int) -> list[dict[str, Any]]:
        """The lines of requests, once there are so many."""
        eventually(lambda: len(self._requests()) >= count)
        return self._requests()

    def _requests(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == "request"]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def eventually(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait until it holds; fails if it never does."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "never came to hold"
        time.sleep(0.01)


class Running:
    """An application, served by uvicorn in a thread for the length of a `with` block."""

    def __init__(self, app: ASGIApp, limits: Limits | None = None, port: int = 0) -> None:
        self._server: uvicorn.Server = server_of(app, limits or Limits())
        self._socket = bind("127.0.0.1", port)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def __enter__(self) -> Self:
        self._thread.start()
        eventually(lambda: self._server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self._socket.close()

    def raw(self, data: bytes, seconds: float = 10.0) -> bytes:
        """What comes back for these bytes, until the server closes the connection or is quiet."""
        with socket.create_connection(("127.0.0.1", self.port), seconds) as client:
            client.sendall(data)
            return received(client)


def received(client: socket.socket) -> bytes:
    """All that comes until the other side closes or is quiet."""
    got = b""
    try:
        while piece := client.recv(65_536):
            got += piece
    except (TimeoutError, ConnectionResetError):
        pass
    return got
