"""Which adapters the policy's server has loaded: on first use, verified, and as many as may be; the longest unused goes."""

import asyncio
import itertools
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskmem.errors import UserError
from taskmem.files import sweep
from taskmem.gateway.metrics import Metrics
from taskmem.gateway.settings import GatewaySettings
from taskmem.gateway.upstream import PolicyServer, Served
from taskmem.records import one_line
from taskmem.registry import Files, Manifest, fetch
from taskmem.service import Refused, ServiceLog
from taskmem.store import Store, StoreFault


@dataclass
class _Entry:
    """One adapter. `task` is what is being done with it; `loads` counts how often it was loaded."""

    manifest: Manifest
    users: int = 0
    used: int = 0
    loaded: bool = False
    loads: int = 0
    task: "asyncio.Task[None] | None" = None
    refused: str | None = None
    refused_until: float = 0.0

    @property
    def idle(self) -> bool:
        """Nobody uses it, and nothing is being done with it."""
        return self.users == 0 and (self.task is None or self.task.done())


@dataclass(frozen=True)
class Held:
    """An adapter that stays loaded for as long as it is held; `loads` tells which loading of it this was."""

    name: str
    loads: int


@dataclass
class Adapters:
    """What is loaded on `server` from `store`, through `folder`, which the server reads too. For one event loop.

    An adapter in use is never given up. Its name is environment@version, whose meaning never changes, so that what is loaded
    twice is loaded alike. `clock` counts seconds.
    """

    server: PolicyServer
    store: Store
    folder: Path
    settings: GatewaySettings
    metrics: Metrics
    log: ServiceLog
    clock: Callable[[], float]
    _entries: dict[str, _Entry] = field(default_factory=dict)
    _turn: "itertools.count[int]" = field(default_factory=itertools.count)

    def prepare(self) -> None:
        """Make the folder ready; UserError if it cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            sweep(self.folder)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot hold adapters ({error.strerror}); give a writable folder") from None

    @asynccontextmanager
    async def held(self, manifest: Manifest) -> AsyncIterator[Callable[[], Held]]:
        """Keep an adapter loaded while the block lasts; it is given as a function, for it may be loaded again meanwhile.

        Refused 503 if the server refuses it, or it cannot be fetched from the store.
        """
        entry = self._entries.setdefault(manifest.name, _Entry(manifest))
        entry.users += 1
        try:
            await self._ready(entry)
            yield lambda: Held(manifest.name, entry.loads)
        finally:
            entry.users -= 1
            entry.used = next(self._turn)

    async def again(self, held: Held) -> None:
        """The server did not know an adapter that is held: find out what it has forgotten, and load this one again."""
        entry = self._entries[held.name]
        if entry.loads == held.loads:
            self._forget(entry)
        await self._ready(entry)

    def noticed(self, served: Served, before: dict[str, int]) -> None:
        """The server told what it has loaded: what it has not is loaded again on its next use.

        `before` are the `loads` from before it was asked: what was loaded since is not on its list.
        """
        for name, entry in self._entries.items():
            known = served.adapters.get(name) == str(self.folder / name)
            if entry.loaded and not known and before.get(name) == entry.loads:
                self._forget(entry)

    @property
    def loads(self) -> dict[str, int]:
        """How often each was loaded."""
        return {name: entry.loads for name, entry in self._entries.items()}

    @property
    def loaded(self) -> list[str]:
        """The names of those that are loaded."""
        return [name for name, entry in self._entries.items() if entry.loaded]

    async def _ready(self, entry: _Entry) -> None:
        while not entry.loaded:
            if entry.refused is not None and self.clock() < entry.refused_until:
                raise refused(entry.manifest.name, entry.refused)
            if entry.task is None or entry.task.done():
                self._start(entry, self._load(entry))
            assert entry.task is not None
            # whoever began it may go away: it is for all who wait
            await asyncio.shield(entry.task)

    def _start(self, entry: _Entry, work: Coroutine[Any, Any, None]) -> None:
        entry.task = asyncio.create_task(work)
        # all who waited may be gone
        entry.task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _load(self, entry: _Entry) -> None:
        self._make_room()
        manifest, path = entry.manifest, self.folder / entry.manifest.name
        try:
            await asyncio.to_thread(self._fetch, manifest, path)
        except (UserError, StoreFault, OSError) as error:
            self._failed(manifest, one_line(str(error)))
            what = f"adapter {manifest.name}: cannot be fetched from the store; try again"
            raise Refused(503, what, code="adapter_failed", retry_after=5) from None
        try:
            status, said = await self.server.load(manifest.name, path)
            if status != 200 and "already been loaded" in said:
                status, said = await self._known(manifest.name, path)
        except Refused as error:
            self._failed(manifest, error.message)
            raise
        if status != 200:
            reason = said.replace(f"{path}", manifest.name)
            entry.refused, entry.refused_until = reason, self.clock() + self.settings.refused_seconds
            self.metrics.adapter_loads.labels("refused").inc()
            self.log.write("adapter", adapter=manifest.name, result="refused", reason=reason)
            raise refused(manifest.name, reason)
        entry.loaded, entry.refused, entry.loads = True, None, entry.loads + 1
        entry.used = next(self._turn)
        self.metrics.adapter_loads.labels("loaded").inc()
        self._count()
        digest = manifest.files.adapter_model
        self.log.write("adapter", adapter=manifest.name, adapter_digest=digest, result="loaded")

    async def _known(self, name: str, path: Path) -> tuple[int, str]:
        """The server has the name: that is well if it has it from the verified folder; else it is replaced."""
        if (await self.server.served()).adapters.get(name) == str(path):
            return 200, ""
        await self.server.unload(name)
        return await self.server.load(name, path)

    def _fetch(self, manifest: Manifest, path: Path) -> None:
        """The verified files of a version in `path`; the server reads them from there."""
        try:
            if Files.of(path) == manifest.files:
                return
        except UserError:
            pass  # not there yet
        if fetch(self.store, manifest.environment, manifest.version, path) != manifest:
            raise UserError(
                f"{manifest.name}: the registry names another manifest than a moment ago; verify the registry"
            )

    def _failed(self, manifest: Manifest, why: str) -> None:
        self.metrics.adapter_loads.labels("failed").inc()
        self.log.write("adapter", adapter=manifest.name, result="failed", reason=why)

    def _make_room(self) -> None:
        """Give up the longest unused until one more may be loaded; those that are being loaded count already."""
        busy = [
            entry for entry in self._entries.values() if entry.loaded or not (entry.task is None or entry.task.done())
        ]
        unused = sorted((entry for entry in busy if entry.loaded and entry.idle), key=lambda entry: entry.used)
        for entry in unused[: max(0, len(busy) - self.settings.adapters)]:
            entry.loaded = False
            self._start(entry, self._unload(entry))
        self._count()
        self._prune()

    async def _unload(self, entry: _Entry) -> None:
        name = entry.manifest.name
        try:
            status, said = await self.server.unload(name)
            result = "unloaded" if status == 200 else said
            if status == 200:
                # who wants it again waits for this task; what the server still has it may read again
                await asyncio.to_thread(shutil.rmtree, self.folder / name)
        except Refused as error:
            result = error.message  # a server that is gone has none
        except OSError as error:
            result = f"unloaded, but its folder stays ({error.strerror})"
        self.log.write("adapter", adapter=name, result=result)

    def _prune(self) -> None:
        """Forget all about adapters that are not loaded and that nobody uses."""
        if len(self._entries) > 2 * self.settings.adapters:
            gone = [name for name, entry in self._entries.items() if entry.idle and not entry.loaded]
            for name in gone:
                del self._entries[name]

    def _forget(self, entry: _Entry) -> None:
        entry.loaded = False
        self._count()

    def _count(self) -> None:
        self.metrics.adapters_loaded.set(len(self.loaded))


def refused(name: str, reason: str) -> Refused:
    """The server does not take an adapter: nothing else is served in its place."""
    what = f"adapter {name}: the policy's server refuses it ({reason}); promote or roll back to another version"
    return Refused(503, what, code="adapter_refused", retry_after=30)
