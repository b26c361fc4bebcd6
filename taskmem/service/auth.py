"""Who is asking: a bearer token names the caller's environment, and nothing else does."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.requests import Request

from taskmem.service.refused import Refused
from taskmem.service.trace import trace_of

LONGEST = 200


class TokenBook(Protocol):
    """Knows tokens; `taskmem.gateway.tokens.Tokens` does."""

    def environment_of(self, token: str) -> str | None:
        """The environment that a token is for, None if it is for none (any more); may take a while."""
        ...


def bearer(tokens: TokenBook) -> Callable[[Request], Awaitable[str]]:
    """A FastAPI dependency: the caller's environment; Refused 401 without a token that is good."""

    async def environment(request: Request) -> str:
        token = token_in(request.headers.get("authorization", ""))
        found = await asyncio.to_thread(tokens.environment_of, token) if token else None
        if found is None:
            what = "unknown or revoked" if token else "missing; send it as 'Authorization: Bearer tm_...'"
            challenge = {"WWW-Authenticate": "Bearer"}
            raise Refused(401, f"token: {what}", "unauthenticated", code="invalid_api_key", headers=challenge)
        trace_of(request).environment = found
        return found

    return environment


def token_in(header: str) -> str | None:
    """The token in an Authorization header, None if there is none."""
    scheme, _, token = header.partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and 0 < len(token) <= LONGEST else None
