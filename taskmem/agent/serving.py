"""The agent as a service works with these parts; routes.py offers them over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Protocol

from fastapi import FastAPI

from taskmem.agent.asking import Asker
from taskmem.agent.clips import LateClipError, RefusedClipError
from taskmem.agent.contracts import Answered
from taskmem.agent.forgetting import Forgetter
from taskmem.agent.logged import LogEraser
from taskmem.agent.metrics import Metrics
from taskmem.agent.outbox import Outbox
from taskmem.agent.protocol import Served
from taskmem.agent.remembered import ConflictError, ErasedStreamError, UnknownStreamError
from taskmem.agent.settings import AgentSettings
from taskmem.agent.storage import Storage, StorageDownError
from taskmem.agent.turns import Turns
from taskmem.agent.writing import PolicyDownError, Writer
from taskmem.endpoint.keys import ApiKey
from taskmem.errors import UserError
from taskmem.feedback import EventConflictError
from taskmem.gateway.responses import ResponseLog
from taskmem.records import Response, one_line
from taskmem.service import Refused, ServiceLog, Trace
from taskmem.service.auth import TokenBook
from taskmem.store import StoreFault

SPARE = 32  # threads for what is short
SHOWN = 300  # characters of a reason in the log


class Lookup(Protocol):
    """What the agent has to be told of the world around it; every method may take a while."""

    def served(self, environment: str, key: ApiKey) -> Served:
        """What writes an environment's memories now; UserError, StoreFault if that cannot be told."""
        ...

    def weights(self, adapter: str) -> str:
        """Hex SHA-256 of the weights of an adapter, name@version; UserError, StoreFault if that cannot be told."""
        ...


@dataclass
class Service:
    """Everything the routes need. `image` names what runs, for the response log; `policy` is the digest of the policy."""

    storage: Storage
    tokens: TokenBook
    writer: Writer
    asker: Asker
    outbox: Outbox
    forgetter: Forgetter
    responses: ResponseLog
    log_eraser: LogEraser
    lookup: Lookup
    log: ServiceLog
    metrics: Metrics
    settings: AgentSettings
    policy: str
    image: str
    now: Callable[[], datetime]
    close: Callable[[], None] = field(default=lambda: None)

    @cached_property
    def turns(self) -> Turns:
        """Who may work now."""
        return Turns(self.settings.at_once, self.settings.waiting)

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """The application's life: feedback is shipped to its last event, the log rid of what others erased; all is closed."""
        pool = ThreadPoolExecutor(self.settings.at_once + SPARE, thread_name_prefix="taskmem-agent")
        asyncio.get_running_loop().set_default_executor(pool)
        shipping = asyncio.create_task(self._tend())
        try:
            yield
        finally:
            shipping.cancel()
            await asyncio.gather(shipping, return_exceptions=True)
            # what came since is not to wait for the next start
            await self._do(self.outbox.ship)
            await asyncio.to_thread(self.close)

    async def _tend(self) -> None:
        while True:
            for step in (self.outbox.ship, self._look_at_feedback, self.log_eraser.sweep):
                await self._do(step)
            await asyncio.sleep(self.settings.ship_seconds)

    async def _do(self, step: Callable[[], object]) -> None:
        try:
            await asyncio.to_thread(step)
        except (StorageDownError, StoreFault, UserError) as error:
            self.log.write("untended", step=step.__name__, reason=_shown(error))
        except Exception as error:  # a mistake of ours must not end the shipping
            self.log.fault(error)

    def _look_at_feedback(self) -> None:
        count, seconds = self.outbox.waiting()
        self.metrics.unshipped.set(count)
        self.metrics.lag.set(seconds)

    @contextmanager
    def refusing(self, trace: Trace) -> Iterator[None]:
        """Turns what can go wrong into what a client is told; the log is told more."""
        try:
            yield
        except UnknownStreamError as error:
            raise Refused(404, str(error), "not_found", code="stream_not_found") from None
        except ErasedStreamError as error:
            raise Refused(410, str(error), "not_found", code="stream_erased") from None
        except (ConflictError, EventConflictError) as error:
            raise Refused(409, str(error), "conflict") from None
        except RefusedClipError as error:
            raise Refused(400, str(error), "invalid", code="video") from None
        except StorageDownError as error:
            self.log.write("database_down", request=trace.id, reason=_shown(error))
            raise Refused(503, "the database does not answer; try again", code="database", retry_after=1) from None
        except (PolicyDownError, LateClipError, UserError) as error:
            self.log.write("failed", request=trace.id, kind=type(error).__name__, reason=_shown(error))
            what = "video" if isinstance(error, LateClipError) else "policy or answerer"
            raise Refused(
                503, f"the {what} could not be worked with; try again", code="upstream", retry_after=2
            ) from None

    def record(self, trace: Trace, environment: str, reply: Answered) -> None:
        """Log what an answer rests on, durably, before it is given; UserError, StoreFault if that cannot be done."""
        self.note_adapter(trace, reply.adapter)
        self.responses.append(
            Response(
                id=trace.id,
                time=self.now(),
                environment=environment,
                policy=reply.policy or self.policy,
                adapter=reply.adapter,
                adapter_digest=trace.adapter_digest,
                image=self.image,
                stream=reply.stream,
                question=reply.question,
                memories=tuple(ground.id for ground in reply.memories),
            )
        )

    def note_adapter(self, trace: Trace, adapter: str) -> None:
        """Say in the log line what wrote the memory."""
        trace.adapter = adapter
        trace.adapter_digest = None if adapter == "none" else self.lookup.weights(adapter)

    def missing(self) -> list[str]:
        """Why nothing could be taken in now, in a few words each. Whether memories can be written the gateway knows."""
        reasons = []
        for what, check in (("database", self.storage.check), ("response log", self.responses.check)):
            try:
                check()
            except (StorageDownError, UserError) as error:
                reasons.append(what)
                self.log.write("unready", reason=_shown(error))
        return reasons


def _shown(error: Exception) -> str:
    return one_line(str(error) or type(error).__name__)[:SHOWN]
