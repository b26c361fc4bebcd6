"""Feedback: in the database before it is acknowledged, and from there into the object store."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from taskmem.agent.remembered import ErasedStreamError, is_erased
from taskmem.agent.storage import Storage
from taskmem.agent.tables import FEEDBACK
from taskmem.errors import UserError
from taskmem.feedback import EventConflictError
from taskmem.feedback.parts import FeedbackParts
from taskmem.files import sha256_bytes
from taskmem.records import FeedbackEvent, dump_record
from taskmem.store import Store, StoreFault

SHIPPER = ("ships feedback",)


class Outbox:
    """Takes feedback in and ships it; any number of threads, and one process at a time ships."""

    def __init__(self, storage: Storage, store: Store, clock: Callable[[], float], most: int) -> None:
        """`clock` gives seconds since 1970; a part holds at most so many events."""
        self._storage, self._store, self._clock, self._most = storage, store, clock, most
        self._parts: dict[str, FeedbackParts] = {}
        self._lock = threading.Lock()

    def take(self, event: FeedbackEvent) -> bool:
        """Keep `event` durably: true if it is new, false if it is there already.

        EventConflictError if its id is taken by other content; ErasedStreamError; StorageDownError.
        """
        record = dump_record(event)
        digest = sha256_bytes(record)
        with self._storage.writing(event.environment, event.stream) as connection:
            if is_erased(connection, event.environment, event.stream):
                raise ErasedStreamError(f"stream {event.stream}: was erased; no feedback about it is kept")
            known = self._known(connection, event)
            if known is None:
                row = insert(FEEDBACK).values(
                    environment=event.environment,
                    event=event.id,
                    stream=event.stream,
                    digest=digest,
                    received=self._clock(),
                    record=record,
                )
                with suppress(IntegrityError), connection.begin_nested():
                    connection.execute(row)
                    return True
                # the same id came about another stream at the same moment
                known = self._known(connection, event)
        if known != digest:
            raise EventConflictError(
                f"event {event.id}: is already there with other content; give the new one its own id"
            )
        return False

    def ship(self) -> int:
        """Ship what waits, each environment's in the order it came; how many events. Faults of the store reach the caller.

        Killed half-way, what was shipped may be shipped again: a collection counts an event's id once.
        """
        shipped, failure = 0, None
        with self._lock, self._storage.holding(*SHIPPER) as mine:
            for environment in self._environments() if mine else ():
                try:
                    while count := self._ship_part(environment):
                        shipped += count
                except (StoreFault, UserError) as error:
                    # what one environment's parts suffer from must not keep the others' back
                    failure = failure or error
        if failure is not None:
            raise failure
        return shipped

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is on its way to the object store, and nothing is shipped for the length of the block; StorageDownError."""
        with self._lock, self._storage.holding(*SHIPPER, wait=True):
            yield

    def waiting(self) -> tuple[int, float]:
        """How many events are not shipped, and for how many seconds the oldest has been waiting."""
        with self._storage.reading() as connection:
            query = select(func.count(), func.min(FEEDBACK.c.received)).where(FEEDBACK.c.record.is_not(None))
            count, oldest = connection.execute(query).one()
        return int(count), max(0.0, self._clock() - oldest) if count else 0.0

    @staticmethod
    def _known(connection: Connection, event: FeedbackEvent) -> str | None:
        query = select(FEEDBACK.c.digest).where(
            FEEDBACK.c.environment == event.environment, FEEDBACK.c.event == event.id
        )
        digest: str | None = connection.execute(query).scalar_one_or_none()
        return digest

    def _environments(self) -> list[str]:
        with self._storage.reading() as connection:
            query = select(FEEDBACK.c.environment).where(FEEDBACK.c.record.is_not(None)).distinct()
            return sorted(connection.execute(query).scalars())

    def _ship_part(self, environment: str) -> int:
        with self._storage.reading() as connection:
            query = select(FEEDBACK.c.id, FEEDBACK.c.record).where(
                FEEDBACK.c.environment == environment, FEEDBACK.c.record.is_not(None)
            )
            rows = connection.execute(query.order_by(FEEDBACK.c.id).limit(self._most)).all()
        if not rows:
            return 0
        if environment not in self._parts:
            self._parts[environment] = FeedbackParts(self._store, environment)
        self._parts[environment].append([FeedbackEvent.model_validate_json(row.record) for row in rows])
        with self._storage.writing(*SHIPPER, environment) as connection:
            connection.execute(update(FEEDBACK).where(FEEDBACK.c.id.in_([row.id for row in rows])).values(record=None))
        return len(rows)


def forget_feedback(connection: Connection, environment: str, stream: str) -> int:
    """Erase what was said about a stream; how many events."""
    mine = (FEEDBACK.c.environment == environment, FEEDBACK.c.stream == stream)
    return connection.execute(delete(FEEDBACK).where(*mine)).rowcount
