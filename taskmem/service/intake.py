"""Stands before an application: gives each request its id, bounds what a client sends and how slowly, writes the log line."""

import asyncio
import time
import uuid
from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskmem.service.limits import Limits
from taskmem.service.logs import ServiceLog
from taskmem.service.refused import Refused, error_body
from taskmem.service.trace import Trace

GONE = 499  # what is logged where the client went away; never sent


Done = Callable[[Trace, float], None]
"""Told of every request that has ended, and of its seconds."""


class ClientGoneError(Exception):
    """The client has closed its connection, or takes nothing any more."""


class Intake:
    """ASGI middleware. All bodies together may take `held_bytes`: what is beyond is refused, not kept."""

    def __init__(self, app: ASGIApp, limits: Limits, log: ServiceLog, done: Done) -> None:
        self._app, self._limits, self._log, self._done = app, limits, log, done
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything else than HTTP goes through, or is turned away."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        else:
            await self._request(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = Trace(f"req-{uuid.uuid4().hex}")
        scope.setdefault("state", {})["trace"] = trace
        start = time.monotonic()
        body = _Body(self, receive, scope, start)
        writer = _Writer(send, trace, self._limits.stall_seconds)
        try:
            await self._app(scope, body.receive, writer.send)
        except ClientGoneError:
            pass
        except Exception as error:
            self._log.fault(error, request=trace.id)
            if not writer.started:
                await writer.fault()
            else:
                # the connection is closed without the reply's end, so that nobody takes it for whole
                raise
        finally:
            self._held -= body.held
            self._write(scope, trace, time.monotonic() - start)

    def hold(self, size: int) -> None:
        """Take so many bytes more; Refused if there is no room."""
        if self._held + size > self._limits.held_bytes:
            raise Refused(429, "too many bytes are being sent at once; try again", "busy", retry_after=1)
        self._held += size

    @property
    def limits(self) -> Limits:
        """What a client may do."""
        return self._limits

    def _write(self, scope: Scope, trace: Trace, seconds: float) -> None:
        trace.route = getattr(scope.get("route"), "path", None)
        trace.status = trace.status or GONE
        self._done(trace, seconds)
        self._log.write(
            "request",
            request=trace.id,
            method=scope["method"] if trace.route else None,
            route=trace.route,
            environment=trace.environment,
            adapter=trace.adapter,
            adapter_digest=trace.adapter_digest,
            status=trace.status,
            whole=trace.whole,
            seconds=round(seconds, 6),
        )


class _Body:
    """Reads a request's body within its limits."""

    def __init__(self, intake: Intake, receive: Receive, scope: Scope, start: float) -> None:
        self._intake, self._receive = intake, receive
        self._declared = _length(scope)
        self._end = start + intake.limits.body_seconds
        self._complete = False
        self.held = 0

    async def receive(self) -> Message:
        """The next piece, or that the client is gone."""
        if self._complete:
            return await self._receive()
        if self._declared > self._intake.limits.body_bytes:
            raise self._too_large()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._end - time.monotonic()))
        except TimeoutError:
            late = f"body: not there within {self._intake.limits.body_seconds:g} s; send it faster"
            raise Refused(408, late, "invalid", code="timeout", headers={"Connection": "close"}) from None
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        size = len(message.get("body", b""))
        if self.held + size > self._intake.limits.body_bytes:
            raise self._too_large()
        self._intake.hold(size)
        self.held += size
        self._complete = not message.get("more_body", False)
        return message

    def _too_large(self) -> Refused:
        most = self._intake.limits.body_bytes
        return Refused(413, f"body: over {most} bytes, which is the most taken here", "too_large")


def _length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0


class _Writer:
    """Sends the reply with the request's id, to clients that take it."""

    def __init__(self, send: Send, trace: Trace, seconds: float) -> None:
        self._send, self._trace, self._seconds = send, trace, seconds
        self.started = False

    async def send(self, message: Message) -> None:
        """Pass on one message; ClientGoneError if the client does not take it in time."""
        if message["type"] == "http.response.start":
            self._trace.status, self.started = message["status"], True
            headers = [pair for pair in message.get("headers", []) if pair[0].lower() != b"x-request-id"]
            message = {**message, "headers": [*headers, (b"x-request-id", self._trace.id.encode())]}
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(message)
        except TimeoutError:
            raise ClientGoneError from None
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._trace.whole = True

    async def fault(self) -> None:
        """The reply to a request that met a mistake of ours."""
        body = error_body(500, "a fault of the service; its log names this request's id", "internal")
        await JSONResponse(body, 500)({"type": "http"}, _nothing, self.send)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
