"""What an agent's stream has left in the object store: the feedback that was shipped, and the tombstone that stays."""

from collections.abc import Callable
from datetime import datetime

from taskmem.erasure.target import Target
from taskmem.erasure.tombstones import Count, Stone
from taskmem.feedback.collection import scoped
from taskmem.feedback.index import stream_mark
from taskmem.feedback.parts import FeedbackParts, parse_event
from taskmem.records import FeedbackEvent
from taskmem.store import Store

BY = "the agent, at its environment's request"
PLACE = "shipped feedback"
REMAINING = (
    "runs, lineage and adapters that the stream's feedback had reached; `taskmem audit erase` erases what is there",
)


class StoreErasure:
    """Erases streams of environments in `store`; `now` is the time that tombstones say. Each call may be made again.

    UserError for a damaged part or tombstone, or where somebody else erases the same at the same time; store faults.
    """

    def __init__(self, store: Store, now: Callable[[], datetime]) -> None:
        self._store, self._now = store, now

    def begin(self, environment: str, stream: str) -> None:
        """Leave the tombstone: from now on collectors refuse the stream's feedback."""
        self._stone(environment, stream)

    def erase(self, environment: str, stream: str) -> int:
        """Erase the stream's events from the parts that were shipped, and close the tombstone; how many there were."""
        parts = FeedbackParts(self._store, environment)
        last = parts.end().parts
        mark = stream_mark(stream)

        def keep(line: bytes) -> bool:
            event = parse_event(line)
            return not (isinstance(event, FeedbackEvent) and event.stream == stream)

        erased = sum(parts.rewrite(number, keep) for number in list(parts.index.find(mark, last)))
        parts.index.renew(mark, last)
        stone = self._stone(environment, stream)
        stone.begin({PLACE: Count(records=erased)}, remaining=REMAINING)
        stone.finish()
        return erased

    def _stone(self, environment: str, stream: str) -> Stone:
        return Stone(self._store, Target("stream", scoped(environment, stream)), BY, self._now(), None)
