"""Who may work now: so many at once, a stream's segments one after the other, and nobody may fill the line alone."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from taskmem.service import Refused

PER_STREAM = 8  # segments of a stream that may wait or be worked on


class Turns:
    """`at_once` work and `waiting` more wait; an environment has at most half of all places. For one event loop."""

    def __init__(self, at_once: int, waiting: int) -> None:
        self._places = asyncio.Semaphore(at_once)
        self._most = at_once + waiting
        self._share = max(PER_STREAM, self._most // 2)
        self._inside: Counter[str] = Counter()
        self._streams: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def turn(self, environment: str, stream: str | None = None) -> AsyncIterator[None]:
        """A place for the length of the block, alone with `stream` if one is given; Refused 429 if too many wait already."""
        if self._inside.total() >= self._most or self._inside[environment] >= self._share:
            raise _busy("too many requests are being served")
        self._inside[environment] += 1
        try:
            async with AsyncExitStack() as held:
                if stream is not None:
                    await held.enter_async_context(self._alone((environment, stream)))
                await held.enter_async_context(self._places)
                yield
        finally:
            self._inside[environment] -= 1
            if not self._inside[environment]:
                del self._inside[environment]

    @asynccontextmanager
    async def _alone(self, key: tuple[str, str]) -> AsyncIterator[None]:
        lock, users = self._streams.get(key, (asyncio.Lock(), 0))
        if users >= PER_STREAM:
            raise _busy(f"stream {key[1]}: {users} segments wait already; send one after the other")
        self._streams[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            users = self._streams[key][1] - 1
            if users:
                self._streams[key] = lock, users
            else:
                del self._streams[key]


def _busy(why: str) -> Refused:
    return Refused(429, f"{why}; try again", "busy", retry_after=1)
