"""The gateway's parts, put together, and what is known of the policy's server."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.gateway.adapters import Adapters
from taskmem.gateway.ask import Ask
from taskmem.gateway.clips import Clips
from taskmem.gateway.fresh import Fresh
from taskmem.gateway.metrics import Metrics
from taskmem.gateway.models import Chosen, Models
from taskmem.gateway.places import Places
from taskmem.gateway.responses import ResponseLog
from taskmem.gateway.settings import GatewaySettings
from taskmem.gateway.tokens import Tokens
from taskmem.gateway.upstream import PolicyServer, Served, unavailable
from taskmem.records import Response, one_line
from taskmem.registry import CurrentPolicy, current_policy
from taskmem.service import Refused, ServiceLog
from taskmem.store import Store, StoreFault

THREADS = 64  # for the store and the response log, which block


class Gateway:
    """Everything between a caller and the policy's server at `url`; works between `start` and `stop`, in one event loop.

    `folder` is where adapters lie for the server to read; `image` names what runs, for the response log; `profile` says what a
    clip is; `now` is the time, `clock` counts seconds.
    """

    def __init__(
        self,
        store: Store,
        url: str,
        folder: Path,
        responses: ResponseLog,
        settings: GatewaySettings,
        log: ServiceLog,
        image: str,
        profile: Profile,
        now: Callable[[], datetime],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings, self.log, self.responses = settings, log, responses
        self._store, self._image, self._now = store, image, now
        self.metrics = Metrics()
        self.tokens = Tokens(store, clock, settings.token_seconds)
        self.server = PolicyServer(url, settings)
        self.models = Models(store, settings.champion_seconds, clock)
        self.adapters = Adapters(self.server, store, folder.absolute(), settings, self.metrics, log, clock)
        self.clips = Clips(profile.video, profile.policy.window, settings.decoders, settings.clip_seconds)
        self.places = Places(
            settings.in_flight, settings.waiting, settings.share, settings.wait_seconds, settings.retry_seconds
        )
        self.metrics.in_flight.set_function(lambda: self.places.in_flight)
        self.metrics.waiting.set_function(lambda: self.places.waiting)
        self._current: Fresh[CurrentPolicy | None] = Fresh(lambda _: current_policy(store), 1.0, clock)
        self._served: Served | None = None
        self._looking: asyncio.Task[Served] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to watch the server; UserError if the adapters' folder cannot be used."""
        self.adapters.prepare()
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Close what is open; no request may be in flight."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        await self.server.close()
        await self.clips.stop()
        self.responses.close()

    async def served(self) -> Served:
        """What the server serves, as far as known; Refused 503 if nothing is, and it does not say."""
        return self._served or await self.look_again()

    async def look_again(self) -> Served:
        """Ask the server what it serves and what it has loaded: once for all who want to know."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
            self._looking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._looking)

    def check_policy(self, served: Served, chosen: Chosen) -> None:
        """Refused 503 if the server runs another policy than the registry says is current: whichever it is, one is stale."""
        if chosen.current not in (None, served.digest):
            raise unavailable(
                f"the policy's server runs {served.digest[:12]}, the registry's current policy is {chosen.current[:12]}",
                "policy_mismatch",
            )

    async def record(self, id_: str, environment: str, served: Served, chosen: Chosen, ask: Ask) -> None:
        """Write the response log, durably; Refused 503 if that fails: an answer nobody could audit is not given."""
        adapter = chosen.adapter
        response = Response(
            id=id_,
            time=self._now(),
            environment=environment,
            policy=served.digest,
            adapter=adapter.name if adapter else "none",
            adapter_digest=adapter.files.adapter_model if adapter else None,
            image=self._image,
            stream=ask.stream,
            question=ask.question,
            memories=ask.memories,
        )
        try:
            await asyncio.to_thread(self.responses.append, response)
        except UserError as error:
            self.log.write("unrecorded", request=id_, reason=one_line(str(error)))
            what = "the answer could not be recorded, and is not given; try again"
            raise Refused(503, what, code="response_log", retry_after=5) from None

    async def missing(self) -> list[str]:
        """Why no request could be served now, in a few words each; the log has more."""
        reasons = []
        current: CurrentPolicy | None = None
        try:
            current = await self._current.get("")
        except (UserError, StoreFault, OSError) as error:
            reasons.append("the store does not answer")
            self.log.write("unready", reason=one_line(str(error)))
        try:
            self.check_policy(await self.served(), Chosen(None, current.policy if current else None))
        except Refused as error:
            reasons.append(error.message)
        try:
            await asyncio.to_thread(self.responses.check)
        except UserError as error:
            reasons.append("the response log cannot be written")
            self.log.write("unready", reason=one_line(str(error)))
        return reasons

    async def _look(self) -> Served:
        before = self.adapters.loads
        try:
            served = await self.server.served()
        except Refused:
            self._served = None
            raise
        self.adapters.noticed(served, before)
        self._served = served
        return served

    async def _watch(self) -> None:
        """Notice within seconds that the server was started again, or is gone."""
        before: str | None = None
        while True:
            try:
                now = (await self.look_again()).digest
            except Refused as error:
                now = error.message
            except Exception as error:  # a mistake of ours must not end the watch
                self.log.fault(error)
                now = before or ""
            if now != before:
                self.log.write("server", message=f"the policy's server: {now}")
            before = now
            await asyncio.sleep(self.settings.watch_seconds)
