"""How many requests are served at once and how many may wait: what is beyond is told to come again."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from taskmem.service import Refused


class Places:
    """`in_flight` places to be served in, and `waiting` before them; `share` of all of them may be one environment's.

    A place that comes free is for the environment that has the fewest, among equals for who came first: what one environment
    asks too much delays itself. Whoever waits does so for `wait_seconds` at most; who is refused is told to come again after
    `retry_seconds`. For one event loop.
    """

    def __init__(self, in_flight: int, waiting: int, share: float, wait_seconds: float, retry_seconds: float) -> None:
        self._places, self._most = in_flight, in_flight + waiting
        self._of_one = max(1, int(self._most * share))
        self._wait, self._retry = wait_seconds, retry_seconds
        self._here: Counter[str] = Counter()  # of each environment, waiting or served
        self._served: Counter[str] = Counter()
        self._queue: list[tuple[str, asyncio.Future[None]]] = []  # who waits to be served, in the order they came

    @property
    def in_flight(self) -> int:
        """Requests that are being served."""
        return self._served.total()

    @property
    def waiting(self) -> int:
        """Requests that are not being served yet."""
        return self._here.total() - self.in_flight

    @contextmanager
    def admitted(self, environment: str) -> Iterator[None]:
        """A place for a request whose body is still to come; Refused 429 if all are taken, or its environment has its share."""
        if self._here[environment] >= self._of_one:
            raise self._busy("this environment has too many requests here")
        if self._here.total() >= self._most:
            raise self._busy("too many requests are waiting")
        self._here[environment] += 1
        try:
            yield
        finally:
            _one_less(self._here, environment)

    @asynccontextmanager
    async def served(self, environment: str) -> AsyncIterator[None]:
        """A place to be served in, once one is free; Refused 429 if that takes too long."""
        place = asyncio.get_running_loop().create_future()
        self._queue.append((environment, place))
        self._give()
        try:
            async with asyncio.timeout(self._wait):
                await place
        except TimeoutError:
            self._leave(environment, place)
            raise self._busy(f"no place was free within {self._wait:g} s") from None
        except asyncio.CancelledError:
            self._leave(environment, place)
            raise
        try:
            yield
        finally:
            self._release(environment)

    def _give(self) -> None:
        while self.in_flight < self._places:
            # one that was cancelled leaves by itself
            there = [waiting for waiting in self._queue if not waiting[1].done()]
            if not there:
                return
            environment, place = next_ = min(there, key=lambda waiting: self._served[waiting[0]])
            self._queue.remove(next_)
            self._served[environment] += 1
            place.set_result(None)

    def _leave(self, environment: str, place: "asyncio.Future[None]") -> None:
        if place.cancelled():
            self._queue.remove((environment, place))
        else:  # it was given at the same moment
            self._release(environment)

    def _release(self, environment: str) -> None:
        _one_less(self._served, environment)
        self._give()

    def _busy(self, what: str) -> Refused:
        return Refused(429, f"{what}; try again in {self._retry:g} s", "busy", retry_after=self._retry)


def _one_less(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
