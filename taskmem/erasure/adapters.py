"""Which adapters rest on the target, and what makes them anew."""

from collections.abc import Iterable
from dataclasses import dataclass

from taskmem.erasure.dvc_objects import Pairs
from taskmem.errors import UserError
from taskmem.registry import Manifest, WatermarkMovedError, champion, environments, versions, watermark
from taskmem.registry.state import reset
from taskmem.store import Store

ATTEMPTS = 20


@dataclass(frozen=True)
class Affected:
    """Manifests of adapters that were trained on the target, and of those whose pairs were found nowhere."""

    resting: tuple[Manifest, ...]
    unknown: tuple[Manifest, ...]


def affected(known: Iterable[Manifest], pairs: Pairs) -> Affected:
    """Hold the manifests against the preferences that were seen: a manifest names its own by their SHA-256."""
    ordered = sorted({manifest.name: manifest for manifest in known}.values(), key=lambda m: (m.environment, m.version))
    return Affected(
        resting=tuple(manifest for manifest in ordered if manifest.pairs in pairs.resting),
        unknown=tuple(manifest for manifest in ordered if manifest.pairs not in pairs.seen),
    )


def published(store: Store) -> list[Manifest]:
    """The manifests of all versions in the registry."""
    return [manifest for environment in environments(store) for manifest in versions(store, environment)]


def free(store: Store, environment: str) -> None:
    """Let the environment's feedback be used again from the start, so that the next nightly run adapts it anew.

    UserError if other runs keep using it.
    """
    for _ in range(ATTEMPTS):
        used = watermark(store, environment)
        if not used:
            return
        try:
            reset(store, environment, used)
        except WatermarkMovedError:
            continue
        return
    raise UserError(f"environment {environment}: its feedback was used {ATTEMPTS} times meanwhile; erase again")


def what_vectors_keep(store: Store, resting: Iterable[Manifest]) -> list[str]:
    """A sentence for each adapter that rests on the target: what it learned stays in its numbers."""
    said = []
    for manifest in resting:
        now = champion(store, manifest.environment)
        leads = now is not None and now.version == manifest.version
        what = "it is no champion, and is not to become one again"
        if leads:
            retire = f"taskmem registry rollback {manifest.environment} --to none"
            what = f"it is champion until another one is promoted; retire with `{retire}`"
        said.append(f"{manifest.name}: what a vector of {manifest.size:,} numbers learned; {what}")
    return said
