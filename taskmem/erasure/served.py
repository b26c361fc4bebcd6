"""What an agent's stream has left in the object store: the feedback that was shipped, and the tombstone that stays."""

from collections.abc import Callable
from datetime import datetime

from taskmem.erasure.parts import PARTS, forget
from taskmem.erasure.target import Target
from taskmem.erasure.tombstones import Count, Stone, read_tombstone
from taskmem.store import open_store

BY = "the agent, at its environment's request"


class StoreErasure:
    """Erases streams of environments in the store at `url`; `now` is the time that tombstones say. Each call may be made again.

    What runs, lineage and adapters have of a stream stays until `taskmem audit erase ENV/STREAM`: until then its tombstone says
    "erasing". UserError for a damaged part or tombstone, or where somebody else erases the same at the same time; store faults.
    """

    def __init__(self, url: str, now: Callable[[], datetime]) -> None:
        self._url, self._now = url, now

    def begin(self, environment: str, stream: str) -> None:
        """Leave the tombstone: from now on collectors refuse the stream's feedback."""
        target = Target.parse(f"{environment}/{stream}")
        Stone(open_store(self._url), target, BY, self._now(), None)

    def erase(self, environment: str, stream: str) -> int:
        """Erase the stream's events from the parts that were shipped; how many more than it was known of before."""
        target = Target.parse(f"{environment}/{stream}")
        before = read_tombstone(open_store(self._url), target)
        after = forget(self._url, environment, stream, BY, self._now())
        return after.erased.get(PARTS, Count()).records - (before.erased if before else {}).get(PARTS, Count()).records
