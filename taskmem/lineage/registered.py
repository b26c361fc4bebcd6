"""What the registry says of a run's environments."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from taskmem.errors import UserError
from taskmem.files import sha256_bytes, sha256_file
from taskmem.lineage.message import Published
from taskmem.lineage.outcome import Outcome
from taskmem.registry import Manifest, Promotion, promotion_log, read_manifest, versions
from taskmem.registry.challenger import last_published
from taskmem.registry.objects import to_bytes
from taskmem.store import Store


def published(
    store: Store, outcome: Outcome, adapter: Path | None, verdict: Path | None, policy: str
) -> Published | None:
    """The version that an environment's run published, found by its bytes; None if it published none.

    UserError if it was promoted and the registry has no such version.
    """
    if adapter is None or verdict is None:
        return None
    files = {path.name: sha256_file(path) for path in adapter.iterdir() if path.is_file()}
    promoted = outcome.status == "promoted"
    for manifest in _candidates(store, outcome):
        if manifest.policy == policy and _same(manifest, files):
            return Published(manifest, to_bytes(manifest), promoted)
    if promoted:
        raise UserError(
            f"environment {outcome.environment}: promoted, but the registry has no version with the bytes of {adapter}; "
            "give the store that the run promoted it in"
        )
    return None


def head_entry(store: Store, outcome: Outcome, version: Published | None, verdict: str | None) -> Promotion | None:
    """The promotion log's entry that the run left the environment at, None where there is none.

    That of a promotion is the run's own, also where others have been made since. UserError if it is not in the log.
    """
    log = promotion_log(store, outcome.environment)
    if version is None or not version.promoted:
        return log[-1] if log else None
    own = [entry for entry in log if (entry.version, entry.action) == (version.manifest.version, "promote")]
    if not own:
        raise UserError(
            f"{version.manifest.name}: promoted, but its environment's log in the registry does not have it; "
            "give the store that the run promoted it in"
        )
    # a version that was champion already keeps the entry, and the verdict, that made it so
    return next((entry for entry in reversed(own) if entry.verdict == verdict), own[-1])


def verdict_digest(verdict: Path | None) -> str | None:
    """The SHA-256 of a verdict's document, None where the gate gave none."""
    path = verdict / "verdict.json" if verdict else None
    return sha256_bytes(path.read_bytes()) if path and path.is_file() else None


def _candidates(store: Store, outcome: Outcome) -> Iterator[Manifest]:
    """The environment's manifests, the likely ones first; each only once it is asked for."""
    environment = outcome.environment
    if outcome.version:
        yield read_manifest(store, environment, outcome.version.rpartition("@")[2])
    if last := last_published(store, environment):
        yield read_manifest(store, environment, last.version)
    yield from reversed(versions(store, environment))


def _same(manifest: Manifest, files: Mapping[str, str]) -> bool:
    return all(files.get(name) == digest for name, digest in manifest.files.by_name().items())
