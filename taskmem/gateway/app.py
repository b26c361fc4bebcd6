"""The gateway's routes.

    POST /v1/chat/completions    OpenAI's, streamed or not; `model` is one of those that /v1/models lists
    GET  /v1/models              what the caller may name, and nothing else; /v1/models/NAME one of them
    GET  /healthz                200 as long as the process serves
    GET  /readyz                 200 if store, policy's server and response log are there and agree on the policy, else 503
    GET  /metrics                for Prometheus; which environments there are is told on the operations' port alone

Everything below /v1 asks for `Authorization: Bearer tm_...`. Statuses, errors in the shape of OpenAI's:

    200  400 no such request    401 no such token       404 no such model or route    405 no such method
    408 body came too slowly    413 body too large      429 no place (Retry-After)    500 a fault of ours
    502 the policy's server failed      503 it, the store, the log or an adapter is not to be had (Retry-After)
    504 the policy's server was too slow

A stream that cannot be ended well ends with an event `{"error": ...}` instead of `[DONE]`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI
from starlette.responses import JSONResponse, Response

from taskmem.gateway.exchange import Exchange
from taskmem.gateway.gateway import Gateway
from taskmem.gateway.models import Chosen, not_there
from taskmem.service import bearer, exposition, service_app


def gateway_app(gateway: Gateway) -> FastAPI:
    """The application; it starts and stops `gateway`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await gateway.start()
        try:
            yield
        finally:
            await gateway.stop()

    settings, metrics = gateway.settings, gateway.metrics
    app = service_app(settings.limits, gateway.log, metrics.refusals, lifespan, metrics.done)
    caller = Depends(bearer(gateway.tokens))

    @app.post("/v1/chat/completions")
    async def chat(environment: str = caller) -> Response:
        return Exchange(gateway, environment)

    @app.get("/v1/models")
    async def models(environment: str = caller) -> dict[str, Any]:
        listed = await gateway.models.names(environment)
        return {"object": "list", "data": [card(name, chosen) for name, chosen in listed]}

    @app.get("/v1/models/{name}")
    async def model(name: str, environment: str = caller) -> dict[str, Any]:
        for known, chosen in await gateway.models.names(environment):
            if known == name:
                return card(name, chosen)
        raise not_there(name)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Response:
        missing = await gateway.missing()
        return JSONResponse({"ready": not missing, "missing": missing}, 503 if missing else 200)

    @app.get("/metrics")
    async def exposed() -> Response:
        return exposition(metrics.registry)

    return app


def card(name: str, chosen: Chosen) -> dict[str, Any]:
    """A model as OpenAI's API lists it; `root` is what serves under the name now."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "taskmem", "root": chosen.name}
