"""A stream is forgotten: first that it is, then what is known of it. Killed half-way, the same request completes it."""

from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import func, insert, select, update

from taskmem.agent.logged import LogEraser
from taskmem.agent.outbox import Outbox, forget_feedback
from taskmem.agent.remembered import UnknownStreamError, forget, is_erased, stream_of
from taskmem.agent.storage import Storage
from taskmem.agent.tables import ERASED, FEEDBACK
from taskmem.feedback.collection import scoped, tombstone_of

ERASING, DONE = "erasing", "erased"


class Elsewhere(Protocol):
    """What is kept of an environment's streams outside the agent's database; both may be called again."""

    def begin(self, environment: str, stream: str) -> None:
        """Leave a tombstone, so that what is still on its way is refused everywhere."""
        ...

    def erase(self, environment: str, stream: str) -> int:
        """Erase what was shipped, and close the tombstone; how many events that were."""
        ...


@dataclass(frozen=True)
class Forgotten:
    """How much was erased by this request."""

    memories: int = 0
    clips: int = 0
    answers: int = 0
    feedback: int = 0
    shipped: int = 0


class Forgetter:
    """Erases streams."""

    def __init__(self, storage: Storage, outbox: Outbox, elsewhere: Elsewhere, log: LogEraser) -> None:
        self._storage, self._outbox, self._elsewhere, self._log = storage, outbox, elsewhere, log

    def forget(self, environment: str, name: str) -> Forgotten:
        """Erase a stream's memories, clips, answers and feedback, shipped or not; its tombstone stays, and its name is used up.

        UnknownStreamError where there is nothing of it; StorageDownError, and store faults: then it is to be asked for again.
        """
        self._mark(environment, name)
        self._elsewhere.begin(environment, name)
        with self._outbox.paused():
            gone = self._erase(environment, name)
        shipped = self._elsewhere.erase(environment, name)
        self._log.sweep()
        self._storage.tidy()
        with self._storage.writing(environment, name) as connection:
            row = update(ERASED).where(
                ERASED.c.environment == environment,
                ERASED.c.target == tombstone_of("stream", scoped(environment, name)),
            )
            connection.execute(row.values(state=DONE))
        return Forgotten(**gone, shipped=shipped)

    def _mark(self, environment: str, name: str) -> None:
        """From now on nothing of the stream is taken in."""
        with self._storage.writing(environment, name) as connection:
            if is_erased(connection, environment, name):
                return
            said = (FEEDBACK.c.environment == environment, FEEDBACK.c.stream == name)
            spoken_of = connection.execute(select(func.count()).where(*said)).scalar_one()
            if stream_of(connection, environment, name) is None and not spoken_of:
                raise UnknownStreamError(f"stream {name}: there is nothing of it")
            values = {
                "environment": environment,
                "target": tombstone_of("stream", scoped(environment, name)),
                "state": ERASING,
            }
            connection.execute(insert(ERASED).values(**values))

    def _erase(self, environment: str, name: str) -> dict[str, int]:
        with self._storage.writing(environment, name) as connection:
            rows = forget(connection, environment, name)
            return {**rows, "feedback": forget_feedback(connection, environment, name)}
