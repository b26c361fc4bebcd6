"""Every object of the registry, held against every digest that names it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.registry.challenger import last_published
from taskmem.registry.champion import promotions, read_verdict
from taskmem.registry.log import Chain, Entry, Head, Promotion
from taskmem.registry.manifest import FILES, Manifest
from taskmem.registry.migration import migrated, migration_key
from taskmem.registry.objects import key_of, version_key, version_number
from taskmem.registry.policies import POLICIES
from taskmem.registry.state import watermark
from taskmem.registry.versions import read_file, read_sealed
from taskmem.store import CorruptObject, KeyMissing, Store

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Damage:
    """An object that is not what it should be, and what is wrong with it."""

    key: str
    what: str


def verify(store: Store, environment: str) -> list[Damage]:
    """What is damaged or missing of an environment, each object once, in order of key; empty if all is well.

    Versions and their files, verdicts, the champion's pointer and its log, challenger, watermark and migration. Others may
    promote meanwhile. What cannot be told from here: a pointer set back by a single move, which looks like one that a killed
    promotion never reached; and a change that makes sense in a watermark, or in the manifest of a version that was never
    champion and is not the challenger, for no digest seals those.
    """
    found, keys = _Findings(), list(store.list(key_of(environment, "")))
    manifests = _versions(found, store, environment, keys)
    for folder in ("files", "verdicts"):
        for key in _below(keys, key_of(environment, folder, "")):
            found.attempt(_content, store, key)
    for entry in _chain(found, store, promotions(environment), keys):
        _evidence(found, store, entry, manifests)
    for read in (last_published, watermark, _migration):
        found.attempt(read, store, environment)
    return found.damages()


def verify_policies(store: Store) -> list[Damage]:
    """What is damaged or missing of the current policy's pointer and log, as `verify`."""
    found = _Findings()
    _chain(found, store, POLICIES, list(store.list("policies/")))
    return found.damages()


class _Findings:
    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    def note(self, key: str, what: str) -> None:
        self._found.setdefault(key, what)

    def attempt(self, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What `read` returns; None if it raises, and then the object at fault is noted."""
        try:
            return read(*args, **kwargs)
        except KeyMissing as error:
            self.note(error.key, "missing; restore the object from a backup")
        except CorruptObject as error:
            self.note(error.key, str(error).removeprefix(f"{error.key}: "))
        except UserError as error:
            key, _, what = str(error).partition(": ")
            if not key.startswith(("registry/", "policies/")):  # the store itself cannot be read
                raise
            self.note(key, what)
        return None

    def damages(self) -> list[Damage]:
        return [Damage(key, what) for key, what in sorted(self._found.items())]


def _versions(
    found: _Findings, store: Store, environment: str, keys: Sequence[str]
) -> dict[str, tuple[Manifest, str] | None]:
    """The manifest and its digest of every version, None for one that is damaged or missing."""
    numbers = []
    for key in _below(keys, key_of(environment, "versions", "")):
        try:
            numbers.append(version_number(key.rpartition("/")[2]))
        except UserError:
            found.note(key, "not a version's name; delete the object")
    manifests: dict[str, tuple[Manifest, str] | None] = {}
    for number in range(1, max(numbers, default=0) + 1):
        version, key = f"v{number}", version_key(environment, f"v{number}")
        sealed = None
        if _there(store, key):
            sealed = found.attempt(read_sealed, store, environment, version)
        else:
            found.note(key, "the manifest is missing; restore the object from a backup")
        for name in FILES:
            if sealed is not None:
                found.attempt(read_file, store, sealed[0], name)
        manifests[version] = sealed
    return manifests


def _evidence(
    found: _Findings, store: Store, entry: Promotion, manifests: dict[str, tuple[Manifest, str] | None]
) -> None:
    """What an entry of the log rests on: its verdict, and the manifest as it was promoted."""
    if entry.version is None or entry.verdict is None:
        return
    environment, verdict, key = entry.environment, entry.verdict, version_key(entry.environment, entry.version)
    found.attempt(read_verdict, store, environment, verdict)
    sealed = manifests.get(entry.version)
    if entry.version not in manifests:
        if not _there(store, key):  # else it is newer than the list
            found.note(key, "the manifest is missing; restore the object from a backup")
    elif sealed is not None and sealed[1] != entry.manifest:
        found.note(key, "not the manifest that was promoted; restore the object from a backup")


E = TypeVar("E", bound=Entry)
H = TypeVar("H", bound=Head)


def _chain(found: _Findings, store: Store, chain: Chain[E, H], keys: Sequence[str]) -> list[E]:
    """The log, empty if it is damaged; every stored entry is read, those too that are no part of it."""
    stored = {}
    for key in _below(keys, f"{chain.folder}/"):
        digest = key.rpartition("/")[2]
        entry = found.attempt(chain.entry, store, digest)
        if entry is not None:
            stored[key] = entry
    # read after the list above: whatever an entry there hangs on is in the log by now
    log = found.attempt(chain.log, store)
    if log is None:
        return []
    for key, entry in stored.items():
        if entry.before is not None and entry.before not in log:
            found.note(chain.key, f"set back or deleted: {key} hangs on an entry that is not in the log; restore it")
    return list(log.values())


def _migration(store: Store, environment: str) -> None:
    known = migrated(store, environment)
    if known is None:
        return
    try:
        POLICIES.entry(store, known.entry)
    except UserError:
        what = f"names policy change {known.entry}, which is missing or damaged"
        raise UserError(f"{migration_key(environment)}: {what}; restore the object from a backup") from None


def _content(store: Store, key: str) -> None:
    if sha256_bytes(store.get(key).data) != key.rpartition("/")[2]:
        raise UserError(f"{key}: holds other bytes than its name says; restore the object from a backup")


def _below(keys: Sequence[str], prefix: str) -> list[str]:
    return [key for key in keys if key.startswith(prefix)]


def _there(store: Store, key: str) -> bool:
    try:
        store.get(key)
    except KeyMissing:
        return False
    except CorruptObject:
        return True
    return True
