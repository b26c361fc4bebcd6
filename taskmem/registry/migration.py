"""A new policy: what becomes of every environment, and the way to its next adapter."""

from dataclasses import dataclass
from datetime import datetime

from taskmem.errors import UserError
from taskmem.records import Name, Record, Sha256
from taskmem.registry.challenger import challenger
from taskmem.registry.champion import Pointer, promotions
from taskmem.registry.manifest import Manifest
from taskmem.registry.objects import environments, key_of, parse, stored, to_bytes
from taskmem.registry.policies import CurrentPolicy, PolicyMovedError, current_policy, eligible, set_policy
from taskmem.registry.state import WatermarkMovedError, reset, watermark
from taskmem.registry.versions import read_manifest
from taskmem.store import Conflict, Store

ATTEMPTS = 20


class Migration(Record):
    """The environment's feedback was made free for the policy change of this entry."""

    environment: Name
    entry: Sha256


@dataclass(frozen=True)
class Standing:
    """Where an environment stands on the current policy.

    `manifest` is the champion's, None without adapter; `used` the feedback's watermark, None if none was used.
    """

    environment: str
    champion: Pointer | None
    manifest: Manifest | None
    challenger: str | None
    eligible: bool
    used: dict[str, int | str] | None

    @property
    def served(self) -> str | None:
        """The version that may be served, None for the policy without adapter."""
        return self.manifest.version if self.manifest and self.eligible else None

    @property
    def waiting(self) -> bool:
        """Whether its champion is of another policy, so that it waits for an adapter of this one."""
        return self.manifest is not None and not self.eligible


def standing(store: Store, environment: str, current: CurrentPolicy | None) -> Standing:
    """Where one environment stands on the policy `current`; UserError if anything read of it is damaged."""
    present = promotions(environment).present(store)
    pointer, manifest = present.pointer, None
    if pointer is not None and pointer.version is not None and present.last is not None:
        manifest = read_manifest(store, environment, pointer.version, present.last.manifest)
    return Standing(
        environment=environment,
        champion=pointer,
        manifest=manifest,
        challenger=challenger(store, environment),
        eligible=eligible(manifest.policy if manifest else None, current),
        used=watermark(store, environment),
    )


def standings(store: Store) -> list[Standing]:
    """Where every environment stands on the current policy, in order of name."""
    current = current_policy(store)
    return [standing(store, environment, current) for environment in environments(store)]


def migrate(store: Store, policy: str, by: str, time: datetime) -> list[Standing]:
    """Serve the policy of SHA-256 `policy`, and let every environment whose champion is of another one be adapted anew.

    Such an environment's watermark goes back to the start, once for each change of the policy, so that the next nightly run
    uses its feedback again. Killed and called again it completes; called once more it changes nothing. PolicyMovedError if
    somebody changes the policy meanwhile, UserError as `set_policy`.
    """
    current = set_policy(store, policy, by, time, current_policy(store))
    for environment in environments(store):
        _free(store, environment, current)
        if (now := current_policy(store)) != current:
            raise PolicyMovedError(current, now)
    return standings(store)


def migrated(store: Store, environment: str) -> Migration | None:
    """The last policy change that the environment's feedback was made free for; UserError if the record is damaged."""
    return _current(store, environment)[0]


def _free(store: Store, environment: str, current: CurrentPolicy) -> None:
    new = Migration(environment=environment, entry=current.entry)
    for _ in range(ATTEMPTS):
        done, etag = _current(store, environment)
        if done == new:
            return
        # the watermark first: a night that ends in between has moved it, and perhaps the champion
        used = watermark(store, environment)
        pointer = promotions(environment).present(store).pointer
        if pointer is None or pointer.version is None or eligible(pointer.policy, current):
            return
        try:
            if used is not None:
                reset(store, environment, used)
            store.compare_and_swap(migration_key(environment), to_bytes(new), etag)
        except (WatermarkMovedError, Conflict):
            continue
        return
    raise UserError(f"environment {environment}: its feedback was used {ATTEMPTS} times meanwhile; migrate again")


def migration_key(environment: str) -> str:
    """The key of that record."""
    return key_of(environment, "migration")


def _current(store: Store, environment: str) -> tuple[Migration | None, str | None]:
    key = migration_key(environment)
    object_ = stored(store, key)
    if object_ is None:
        return None, None
    record = parse(object_.data, Migration, key)
    if record.environment != environment:
        raise UserError(f"{key}: the record of environment {record.environment}; restore the object from a backup")
    return record, object_.etag
