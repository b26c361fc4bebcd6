"""The application of a service: its intake, and every error in one shape."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from taskmem.errors import UserError
from taskmem.records import one_line
from taskmem.service.intake import Done, Intake
from taskmem.service.limits import Limits
from taskmem.service.logs import ServiceLog
from taskmem.service.metrics import Refusals
from taskmem.service.refused import Reason, Refused
from taskmem.service.trace import trace_of
from taskmem.store import StoreFault

BY_STATUS: dict[int, Reason] = {
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    413: "too_large",
    429: "busy",
}
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def service_app(
    limits: Limits,
    log: ServiceLog,
    refusals: Refusals,
    lifespan: Lifespan | None = None,
    done: Done = lambda trace, seconds: None,
) -> FastAPI:
    """An application without routes. It documents nothing at run time: what a service offers is nobody's who has no token.

    `lifespan` opens and closes what it works with; `done` is told of every request that has ended, and of its seconds. A
    UserError, a fault of the store and an OSError that no handler turns into something better are 503, with the reason in the
    log alone: they name keys, paths and servers, not what a client sent.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=lifespan)

    def answered(refused: Refused) -> Response:
        if refused.reason is not None:
            refusals.count(refused.reason)
        return JSONResponse(refused.body, refused.status_code, refused.headers)

    async def on_http(request: Request, error: Exception) -> Response:
        if isinstance(error, Refused):
            return answered(error)
        assert isinstance(error, HTTPException)
        reason = BY_STATUS.get(error.status_code, "invalid")
        headers = dict(error.headers) if error.headers else None
        return answered(Refused(error.status_code, str(error.detail), reason, headers=headers))

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        # the value itself is what a client sent, and is not repeated
        where = ".".join(str(part) for part in first["loc"])
        return answered(Refused(400, f"{where}: {first['msg']}", "invalid", param=where))

    async def on_unavailable(request: Request, error: Exception) -> Response:
        log.fault(error, request=trace_of(request).id, reason=one_line(str(error)))
        return answered(Refused(503, "not available now; try again", code="unavailable", retry_after=5))

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    for kind in (UserError, StoreFault, OSError):
        app.add_exception_handler(kind, on_unavailable)
    app.add_middleware(Intake, limits=limits, log=log, done=done)
    return app
