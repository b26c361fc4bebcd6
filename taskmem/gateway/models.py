"""Which models a caller may name: the one place where an environment's name becomes an adapter.

    <environment>         its own: the champion, if it may be served on the current policy, else the policy without adapter
    <environment>@v<N>    a version of its own that may be served on the current policy
    policy                the policy without adapter

Everything else is not there, whether it is another's or nobody's.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from taskmem.errors import UserError
from taskmem.gateway.fresh import Fresh
from taskmem.gateway.tokens import POLICY
from taskmem.records import one_line
from taskmem.registry import Manifest, current_policy, eligible, read_manifest, serving_adapter, versions
from taskmem.registry.objects import checked_version, stored, version_key
from taskmem.service import Refused
from taskmem.store import Store

SHOWN = 100  # characters of a name that a client sent


@dataclass(frozen=True)
class Chosen:
    """What a model's name stands for now: an adapter or None, and the current policy's digest where one is set."""

    adapter: Manifest | None
    current: str | None

    @property
    def name(self) -> str:
        """environment@version, or "policy"."""
        return self.adapter.name if self.adapter else POLICY


class Models:
    """Resolves names against the registry, at most `seconds` old; `clock` counts seconds."""

    def __init__(self, store: Store, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._champions = Fresh(self._champion, seconds, clock)
        self._pinned = Fresh(self._version, seconds, clock)
        self._lists = Fresh(self._list, seconds, clock)

    async def chosen(self, environment: str, name: str) -> Chosen:
        """What `name` stands for where `environment` asks; Refused 404 if that is nothing of its own.

        UserError or StoreFault if the registry cannot be read, or is damaged there.
        """
        if name == POLICY:
            return Chosen(None, (await self._champions.get(environment)).current)
        if name == environment:
            return await self._champions.get(environment)
        owner, _, version = name.partition("@")
        # another's name is not even looked for: nothing, not even the time it takes, tells whether it is there
        chosen = await self._pinned.get(name) if owner == environment and _is_version(version) else None
        if chosen is None:
            raise not_there(name)
        return chosen

    async def names(self, environment: str) -> list[tuple[str, Chosen]]:
        """Every name that `environment` may use, and what it stands for now."""
        chosen = await self._champions.get(environment)
        pinned = [(one.name, Chosen(one, chosen.current)) for one in await self._lists.get(environment)]
        return [(environment, chosen), *pinned, (POLICY, Chosen(None, chosen.current))]

    def _champion(self, environment: str) -> Chosen:
        current = current_policy(self._store)
        return Chosen(serving_adapter(self._store, environment), current.policy if current else None)

    def _version(self, name: str) -> Chosen | None:
        environment, _, version = name.partition("@")
        current = current_policy(self._store)
        if stored(self._store, version_key(environment, version)) is None:
            return None
        manifest = read_manifest(self._store, environment, version)
        return Chosen(manifest, current.policy if current else None) if eligible(manifest.policy, current) else None

    def _list(self, environment: str) -> Sequence[Manifest]:
        current = current_policy(self._store)
        return [one for one in versions(self._store, environment) if eligible(one.policy, current)]


def _is_version(name: str) -> bool:
    try:
        checked_version(name)
    except UserError:
        return False
    return True


def not_there(name: str) -> Refused:
    """The same words for what is another's and for what is not there."""
    shown = one_line(name[:SHOWN])
    return Refused(404, f"The model `{shown}` does not exist.", "not_found", code="model_not_found", param="model")
