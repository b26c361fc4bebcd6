"""Answers of the store that may be a moment old: asked for once by all who want them at the same time."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")


class Fresh(Generic[V]):
    """`load(key)`, in a thread, used again for `seconds` from when it was begun; what failed is not kept.

    `clock` counts seconds. At most `most` keys are remembered, those asked for last.
    """

    def __init__(
        self, load: Callable[[str], V], seconds: float, clock: Callable[[], float], most: int = 10_000
    ) -> None:
        self._load, self._seconds, self._clock, self._most = load, seconds, clock, most
        self._known: OrderedDict[str, tuple[float, asyncio.Task[V]]] = OrderedDict()

    async def get(self, key: str) -> V:
        """The value, never older than `seconds`; raises what `load` does."""
        known = self._known.get(key)
        if known is None or not self._good(known):
            known = self._clock(), asyncio.create_task(asyncio.to_thread(self._load, key))
            self._known[key] = known
        self._known.move_to_end(key)
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        # whoever began it may go away: it is for all who wait
        return await asyncio.shield(known[1])

    def _good(self, known: tuple[float, "asyncio.Task[V]"]) -> bool:
        begun, task = known
        failed = task.done() and (task.cancelled() or task.exception() is not None)
        return self._clock() - begun < self._seconds and not failed
