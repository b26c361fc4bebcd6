"""Run an application on a port, until a signal ends it; requests in flight are finished first."""

import asyncio
import logging
import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from taskmem.errors import UserError
from taskmem.service.limits import Limits
from taskmem.service.logs import LogHandler, ServiceLog

HEAD_BYTES = 32 << 10
IDLE_SECONDS = 10
LAST_SECONDS = 30  # for requests in flight after the signal to stop


def patient_protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, which alone waits for ever: a connection gets `seconds` to send a request's head."""

    class PatientProtocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._arm()

        def handle_events(self) -> None:
            before = self.cycle
            super().handle_events()
            if self.cycle is not before:
                self._head.cancel()

        def on_response_complete(self) -> None:
            # before, because a request that is there already is begun in it
            self._arm()
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head.cancel()
            super().connection_lost(exc)

        def _arm(self) -> None:
            self._head = self.loop.call_later(seconds, self.transport.abort)

    return PatientProtocol


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; UserError if the address cannot be had. Port 0 is any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(2048)
    except (OSError, OverflowError) as error:
        sock.close()
        why = error.strerror if isinstance(error, OSError) else "no such port"
        raise UserError(f"{host}:{port}: cannot listen there ({why}); give another --host or --port") from None
    return sock


def server_of(app: ASGIApp, limits: Limits) -> uvicorn.Server:
    """uvicorn as our services use it."""
    settings: dict[str, Any] = {
        "http": patient_protocol(limits.header_seconds),
        "ws": "none",
        "loop": "asyncio",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "limit_concurrency": limits.connections,
        "h11_max_incomplete_event_size": HEAD_BYTES,
        "timeout_keep_alive": IDLE_SECONDS,
        "timeout_graceful_shutdown": LAST_SECONDS,
    }
    return uvicorn.Server(uvicorn.Config(app, **settings))


def serve(app: ASGIApp, host: str, port: int, limits: Limits, log: ServiceLog) -> None:
    """Serve until SIGINT or SIGTERM; UserError if the address is taken. The log says when it is up, and on which port."""
    with bind(host, port) as sock:
        logger = logging.getLogger("uvicorn")
        logger.handlers, logger.propagate = [LogHandler(log)], False
        logger.setLevel(logging.INFO)
        log.write("start", host=host, port=sock.getsockname()[1])
        server_of(app, limits).run(sockets=[sock])
    log.write("stop")
