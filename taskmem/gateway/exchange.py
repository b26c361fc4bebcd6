"""One chat completion: a place, the adapter, the policy's server, the response log, and then the reply."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx2
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from taskmem.gateway.adapters import Held
from taskmem.gateway.ask import Ask, parse_ask
from taskmem.gateway.gateway import Gateway
from taskmem.gateway.models import Chosen
from taskmem.gateway.upstream import Served, reason_in, unavailable, whole
from taskmem.service import Refused, Trace, trace_of
from taskmem.service.intake import ClientGoneError

DONE = b"[DONE]"
T = TypeVar("T")
Holding = Callable[[], Held] | None


class Exchange(Response):
    """The reply to a chat completion; all the work is done when it is sent, so that it ends where the client goes away."""

    def __init__(self, gateway: Gateway, environment: str) -> None:
        super().__init__()
        self._gateway, self._environment = gateway, environment

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request; Refused before the reply has begun, an error event in a stream that has."""
        request = Request(scope, receive)
        with self._gateway.places.admitted(self._environment):
            body = await request.body()
            ask = parse_ask(body, request.headers, self._gateway.settings.completions)
            del body
            writing = _Writing(send)
            work = self._served(ask, trace_of(request), writing)
            await until_gone(receive, work)

    async def _served(self, ask: Ask, trace: Trace, writing: "_Writing") -> None:
        seconds = self._gateway.settings.reply_seconds
        async with self._gateway.places.served(self._environment):
            try:
                async with asyncio.timeout(seconds):
                    await self._exchange(ask, trace, writing)
            except TimeoutError:
                await writing.failed(Refused(504, f"no whole reply within {seconds:g} s", code="timeout"))
            except Refused as refused:
                await writing.failed(refused)

    async def _exchange(self, ask: Ask, trace: Trace, writing: "_Writing") -> None:
        gateway = self._gateway
        served = await gateway.served()
        # looked up here and nowhere else: what is promoted meanwhile is for the next request
        chosen = await gateway.models.chosen(self._environment, ask.model)
        gateway.check_policy(served, chosen)
        adapter = chosen.adapter
        if ask.model == self._environment:
            gateway.metrics.serves(self._environment, adapter)
        trace.adapter = adapter.name if adapter else "none"
        trace.adapter_digest = adapter.files.adapter_model if adapter else None
        answering = _Answering(gateway, self._environment, ask, chosen, trace, writing)
        await gateway.clips.check(ask.clips)
        async with self._holding(chosen) as holding:
            before = holding() if holding else None
            if await answering.tried(served, trace.id):
                return
            # the server was started again, and has forgotten what it had
            served = await gateway.look_again()
            gateway.check_policy(served, chosen)
            if before is not None:
                await gateway.adapters.again(before)
            if not await answering.tried(served, f"{trace.id}-again"):
                raise unavailable("the policy's server does not know the model")

    @asynccontextmanager
    async def _holding(self, chosen: Chosen) -> AsyncIterator[Holding]:
        if chosen.adapter is None:
            yield None
        else:
            async with self._gateway.adapters.held(chosen.adapter) as held:
                yield held


class _Answering:
    """The reply of one model to one request."""

    def __init__(
        self, gateway: Gateway, environment: str, ask: Ask, chosen: Chosen, trace: Trace, writing: "_Writing"
    ) -> None:
        self._gateway, self._environment, self._ask = gateway, environment, ask
        self._chosen, self._trace, self._writing = chosen, trace, writing

    async def tried(self, served: Served, id_: str) -> bool:
        """Pass the reply on; false, and nothing was sent, if the server does not know the model.

        A request that fails inside the server before anything was sent is sent once more: vLLM says 500 where its front end
        took a clip for known that the engine has not got (yet), and forgets it, so that it takes the clip the next time.
        """
        try:
            return await self._once(served, id_)
        except _InternalError as error:
            self._gateway.metrics.sent_again.inc()
            try:
                return await self._once(served, f"{id_}-again")
            except _InternalError:
                raise error.refused from None

    async def _once(self, served: Served, id_: str) -> bool:
        adapter = self._chosen.adapter
        model, echo = (adapter.name, adapter.name) if adapter else (served.base, served.echo)
        async with self._gateway.server.chat(self._ask.to(model, self._environment), id_) as reply:
            if reply.status_code == 404:
                return False
            if reply.status_code != 200:
                raise _fault(reply.status_code, await whole(reply, self._gateway.settings.reply_bytes))
            if self._ask.streamed:
                await self._stream(reply, served, echo)
            else:
                await self._whole(reply, served, echo)
        return True

    async def _whole(self, reply: httpx2.Response, served: Served, echo: str) -> None:
        said = _object(await whole(reply, self._gateway.settings.reply_bytes))
        self._check(said, echo)
        body = json.dumps({**said, "model": self._chosen.name}).encode()
        await self._gateway.record(self._trace.id, self._environment, served, self._chosen, self._ask)
        await self._writing.begin("application/json", self._headers(served), len(body))
        await self._writing.end(body)

    async def _stream(self, reply: httpx2.Response, served: Served, echo: str) -> None:
        if not reply.headers.get("content-type", "").startswith("text/event-stream"):
            raise Refused(502, "the policy's server sends no stream", code="policy_server")
        held: bytes | None = None
        async for data in events(reply, self._gateway.settings.reply_bytes):
            if data == DONE and held is None and not self._writing.begun:
                raise Refused(502, "the policy's server sends an empty stream", code="policy_server")
            if data != DONE:
                data = self._passed_on(data, echo)
                if held is None and not self._writing.begun:
                    # it names the speaker and holds no token: whether the request failed is told by the next one
                    held = data
                    continue
            if held is not None:
                # before the first token is given away, so that not even a part of an answer is unaccounted for
                await self._gateway.record(self._trace.id, self._environment, served, self._chosen, self._ask)
                await self._writing.begin("text/event-stream", self._headers(served))
                await self._writing.more(event(held))
                held = None
            if data == DONE:
                await self._writing.end(event(DONE))
                return
            await self._writing.more(event(data))
        raise Refused(502, "the policy's server broke off", code="policy_server")

    def _passed_on(self, data: bytes, echo: str) -> bytes:
        """An event as the caller is given it; an error before anything was passed on is raised."""
        said = _object(data)
        if "error" in said:
            if not self._writing.begun:
                raise _fault(_code(said), data)
            return data
        self._check(said, echo)
        return json.dumps({**said, "model": self._chosen.name}).encode()

    def _check(self, said: dict[str, Any], echo: str) -> None:
        """Nothing is passed on that another model wrote than was asked for."""
        if said.get("model") != echo:
            raise Refused(502, "the policy's server replied with another model than asked for", code="policy_server")

    def _headers(self, served: Served) -> list[tuple[bytes, bytes]]:
        adapter = self._chosen.adapter.name if self._chosen.adapter else "none"
        return [(b"x-taskmem-adapter", adapter.encode()), (b"x-taskmem-policy", served.digest.encode())]


class _InternalError(Exception):
    """The server failed inside before anything of the reply was passed on; `refused` is what that means to the caller."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(str(refused))
        self.refused = refused


class _Writing:
    """The reply as it goes out."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def begin(self, kind: str, headers: list[tuple[bytes, bytes]], length: int | None = None) -> None:
        """Send the head."""
        plain = [(b"content-type", kind.encode()), (b"cache-control", b"no-store"), *headers]
        sized = [] if length is None else [(b"content-length", str(length).encode())]
        self.begun = True
        await self._send({"type": "http.response.start", "status": 200, "headers": [*plain, *sized]})

    async def more(self, data: bytes) -> None:
        """Send a piece of the body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes) -> None:
        """Send the last piece."""
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def failed(self, refused: Refused) -> None:
        """End with an error: as the status if nothing was sent yet, else as the stream's last event, without [DONE]."""
        if not self.begun:
            raise refused
        await self.end(event(json.dumps(refused.body).encode()))


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do the work, unless the client goes away before it is done: ClientGoneError, and the work is cancelled."""
    job, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((job, gone), return_when=asyncio.FIRST_COMPLETED)
        if not job.done():
            raise ClientGoneError
        return job.result()
    finally:
        for task in (job, gone):
            task.cancel()
        await asyncio.gather(job, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()


async def events(reply: httpx2.Response, most: int) -> AsyncIterator[bytes]:
    """The data of each event of a stream; Refused 502 if one is longer than `most` bytes or the stream breaks off."""
    rest = b""
    try:
        async for piece in reply.aiter_bytes():
            *whole_events, rest = (rest + piece).split(b"\n\n")
            for event in whole_events:
                lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
                if lines:
                    yield b"\n".join(lines)
            if len(rest) > most:
                raise Refused(502, "the policy's server sends more than a reply can hold", code="policy_server")
    except httpx2.HTTPError as error:
        raise Refused(502, f"the policy's server broke off ({type(error).__name__})", code="policy_server") from None


def event(data: bytes) -> bytes:
    """An event of a stream."""
    return b"data: " + data + b"\n\n"


def _object(data: bytes) -> dict[str, Any]:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise Refused(502, "the policy's server sends no JSON object", code="policy_server")
    return said


def _code(said: dict[str, Any]) -> int:
    """The status in an error that came as an event."""
    error = said["error"]
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else 500


def _fault(status: int, answer: bytes) -> Exception:
    refused = translated(status, answer)
    return _InternalError(refused) if status == 500 else refused


def translated(status: int, answer: bytes) -> Refused:
    """What the server's refusal means to the caller: its request was wrong, or the server cannot serve."""
    reason = reason_in(answer)
    if status in (400, 413, 422):
        return Refused(400, reason, "invalid")
    if status == 503:
        return unavailable("the policy's server cannot serve now")
    return Refused(502, f"the policy's server failed (HTTP {status})", code="policy_server")
