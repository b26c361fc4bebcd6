"""The agent over HTTP. Every route below /v1 is for the caller's own environment, which its token alone names.

    POST   /v1/streams/{stream}/segments?index=N[&start_s=..][&end_s=..][&sampled=true]     a video -> its memory
    POST   /v1/streams/{stream}/questions     {id, text, type?, options?, asked_at_s?} -> the answer and what it rests on
    GET    /v1/streams/{stream}/memories[?after=N][&limit=N]
    DELETE /v1/streams/{stream}               erase it for good
    POST   /v1/feedback                       a FeedbackEvent without its environment
    GET    /v1/served                         what writes the caller's memories now
    GET    /healthz /readyz /metrics          no token

Statuses: 200 done (or done before), 201 new, 400 not understood, 401 no good token, 404 not there (or another's), 405, 408 too
slow, 409 contradicts what is stored, 410 erased, 413 too large, 429 and 503 try again; 500 is a fault of ours.
"""

import asyncio
import json
import time
from contextlib import suppress
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Query
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.responses import Response as Reply

from taskmem.agent.contracts import Answered, Asked
from taskmem.agent.forgetting import Forgotten
from taskmem.agent.protocol import Served
from taskmem.agent.remembered import UnknownStreamError, memories_after, stream_of
from taskmem.agent.serving import Service
from taskmem.agent.writing import Given, Written
from taskmem.endpoint.keys import ApiKey
from taskmem.errors import UserError
from taskmem.files import canonical_json
from taskmem.records import FeedbackEvent, Memory, Name, Part, dump_record
from taskmem.service import Refused, Trace, bearer, exposition, service_app, trace_of
from taskmem.service.auth import token_in
from taskmem.store import StoreFault

T = TypeVar("T", bound=BaseModel)
MOST_INDEX, MOST_SECONDS = 10**9, 1e10
JSON_BYTES = 1 << 18  # of a question or feedback


class Memories(Part):
    """A page of memories, and the index to ask for what comes after it; null at the end."""

    memories: tuple[Memory, ...]
    next: int | None


def agent_app(service: Service) -> FastAPI:
    """The application; it starts to ship feedback when it starts, and closes the service when it ends."""
    app = service_app(service.settings.limits, service.log, service.metrics.refusals, service.running)
    app.include_router(_open_routes(service))
    app.include_router(_own_routes(service))
    return app


def _open_routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz")
    async def healthz() -> Reply:
        return PlainTextResponse("ok\n")

    @router.get("/readyz")
    async def readyz() -> Reply:
        missing = await asyncio.to_thread(service.missing)
        return JSONResponse({"ready": not missing, "missing": missing}, 503 if missing else 200)

    @router.get("/metrics")
    async def metrics() -> Reply:
        return exposition(service.metrics.registry)

    return router


def _own_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1")
    caller = Annotated[str, Depends(bearer(service.tokens))]
    seconds = Annotated[float | None, Query(ge=0, le=MOST_SECONDS, allow_inf_nan=False)]

    @router.post("/streams/{stream}/segments")
    async def segments(
        request: Request,
        environment: caller,
        stream: Name,
        index: Annotated[int, Query(ge=0, le=MOST_INDEX)],
        start_s: seconds = None,
        end_s: seconds = None,
        sampled: bool = False,
    ) -> Reply:
        given = Given(
            environment, stream, index, await request.body(), sampled, start_s, end_s, ApiKey(_token(request))
        )
        return await _remember(service, trace_of(request), given)

    @router.post("/streams/{stream}/questions")
    async def questions(request: Request, environment: caller, stream: Name) -> Reply:
        asked = _parsed(Asked, await _document(request))
        return await _answer(service, trace_of(request), environment, stream, asked)

    @router.get("/streams/{stream}/memories")
    async def memories(
        request: Request,
        environment: caller,
        stream: Name,
        after: Annotated[int | None, Query(ge=0, le=MOST_INDEX)] = None,
        limit: Annotated[int, Query(ge=1)] = 100,
    ) -> Reply:
        most = min(limit, service.settings.page)
        with service.refusing(trace_of(request)):
            return _sent(await asyncio.to_thread(_page, service, environment, stream, after, most))

    @router.delete("/streams/{stream}")
    async def forget(request: Request, environment: caller, stream: Name) -> Reply:
        with service.refusing(trace_of(request)):
            async with service.turns.turn(environment, stream):
                gone: Forgotten = await asyncio.to_thread(service.forgetter.forget, environment, stream)
        return JSONResponse({"stream": stream, "erased": vars(gone)})

    @router.post("/feedback")
    async def feedback(request: Request, environment: caller) -> Reply:
        event = _parsed(FeedbackEvent, {**_without_environment(await _document(request)), "environment": environment})
        with service.refusing(trace_of(request)):
            new = await asyncio.to_thread(service.outbox.take, event)
        if new:
            service.metrics.said(event)
        return JSONResponse({"id": event.id, "new": new}, 201 if new else 200)

    @router.get("/served")
    async def served(request: Request, environment: caller) -> Reply:
        with service.refusing(trace_of(request)):
            now: Served = await asyncio.to_thread(service.lookup.served, environment, ApiKey(_token(request)))
        return JSONResponse({"environment": environment, **vars(now)})

    return router


async def _remember(service: Service, trace: Trace, given: Given) -> Reply:
    if not given.data:
        service.metrics.refused_segment()
        raise Refused(400, "body: empty; send the segment's video", "invalid", param="body")
    start = time.monotonic()
    try:
        with service.refusing(trace):
            async with service.turns.turn(given.environment, given.stream):
                written: Written = await asyncio.to_thread(service.writer.write, given)
                with suppress(UserError, StoreFault):  # it is for the log alone
                    await asyncio.to_thread(service.note_adapter, trace, written.memory.adapter)
    except Refused as refused:
        if refused.reason is not None:
            service.metrics.refused_segment()
        raise
    if written.new:
        service.metrics.wrote(time.monotonic() - start, written.memory.memory_tokens)
    else:
        service.metrics.repeated()
    return _sent(written.memory, 201 if written.new else 200)


async def _answer(service: Service, trace: Trace, environment: str, stream: str, asked: Asked) -> Reply:
    start = time.monotonic()

    def answered() -> tuple[Answered, bool]:
        reply, new = service.asker.ask(environment, stream, asked)
        service.record(trace, environment, reply)
        return reply, new

    with service.refusing(trace):
        async with service.turns.turn(environment):
            reply, new = await asyncio.to_thread(answered)
    if new:
        service.metrics.answered(reply.outcome, time.monotonic() - start)
    return _sent(reply, 201 if new else 200)


def _page(service: Service, environment: str, stream: str, after: int | None, limit: int) -> Memories:
    with service.storage.reading() as connection:
        known = stream_of(connection, environment, stream)
        if known is None:
            raise UnknownStreamError(f"stream {stream}: nothing is remembered of it")
        found = memories_after(connection, known, after, limit)
        following = found[-1].index if found and found[-1].index < known.last else None
        return Memories(memories=tuple(found), next=following)


def _token(request: Request) -> str:
    return token_in(request.headers.get("authorization", "")) or ""


async def _document(request: Request) -> Any:
    """The JSON in a body; Refused 400, 413."""
    body = await request.body()
    if len(body) > JSON_BYTES:
        raise Refused(413, f"body: over {JSON_BYTES} bytes, which is the most taken here", "too_large", param="body")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "body: no JSON; send an object in UTF-8", "invalid", param="body") from None


def _without_environment(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise Refused(400, "body: no JSON object; send one", "invalid", param="body")
    if "environment" in document:
        raise Refused(400, "environment: is named by the token; leave it out", "invalid", param="environment")
    return document


def _parsed(kind: type[T], document: Any) -> T:
    """A document as `kind`; Refused 400 naming the field, never repeating what was sent."""
    try:
        return kind.model_validate_json(canonical_json(document))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part)[:50] for part in first["loc"]) or "body"
        raise Refused(400, f"{where}: {first['msg']}", "invalid", param=where) from None
    except (ValueError, RecursionError):
        raise Refused(400, "body: NaN, or half a surrogate pair; send JSON", "invalid", param="body") from None


def _sent(value: BaseModel, status: int = 200) -> Reply:
    return Reply(dump_record(value), status, media_type="application/json")
