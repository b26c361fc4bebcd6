"""How many requests are served at once and how many may wait: what is beyond is told to come again."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from taskmem.service import Refused


class Places:
    """`in_flight` places to be served in, first come first served, and `waiting` before them.

    Whoever waits does so for `wait_seconds` at most; who is refused is told to come again after `retry_seconds`.
    """

    def __init__(self, in_flight: int, waiting: int, wait_seconds: float, retry_seconds: float) -> None:
        self._most, self._wait, self._retry = in_flight + waiting, wait_seconds, retry_seconds
        self._free = asyncio.Semaphore(in_flight)
        self._here = 0
        self.in_flight = 0

    @property
    def waiting(self) -> int:
        """Requests that are not being served yet."""
        return self._here - self.in_flight

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place for a request whose body is still to come; Refused 429 if all are taken."""
        if self._here >= self._most:
            raise self._busy("too many requests are waiting")
        self._here += 1
        try:
            yield
        finally:
            self._here -= 1

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """A place to be served in, once one is free; Refused 429 if that takes too long."""
        try:
            async with asyncio.timeout(self._wait):
                await self._free.acquire()
        except TimeoutError:
            raise self._busy(f"no place was free within {self._wait:g} s") from None
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            self._free.release()

    def _busy(self, what: str) -> Refused:
        return Refused(429, f"{what}; try again in {self._retry:g} s", "busy", retry_after=self._retry)
