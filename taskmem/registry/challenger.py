"""The version of an environment that was last held against its champion."""

from taskmem.errors import UserError
from taskmem.records import Name, Record, Sha256
from taskmem.registry.champion import champion, promotion_log
from taskmem.registry.manifest import VersionName
from taskmem.registry.objects import key_of, parse, stored, to_bytes, version_number
from taskmem.registry.versions import read_sealed
from taskmem.store import Conflict, Store

_RESTORE = "restore the object from a backup"


class Challenger(Record):
    """The last published version of an environment; `manifest` is the SHA-256 of its manifest."""

    environment: Name
    version: VersionName
    manifest: Sha256


def challenge(store: Store, environment: str, version: str) -> None:
    """Make `version` the challenger, unless a later version is; UserError if it is unknown.

    Of racing callers each returns, and the latest version stays.
    """
    _, digest = read_sealed(store, environment, version)
    new = Challenger(environment=environment, version=version, manifest=digest)
    # each conflict has moved it up, so this ends
    while True:
        known, etag = _current(store, environment)
        if known is not None and version_number(known.version) >= version_number(version):
            return
        try:
            store.compare_and_swap(challenger_key(environment), to_bytes(new), etag)
        except Conflict:
            continue
        return


def challenger(store: Store, environment: str) -> str | None:
    """The version last published, None if there is none or it is the champion; UserError if the pointer is damaged."""
    known = last_published(store, environment)
    now = champion(store, environment)
    return None if known is None or (now is not None and now.version == known.version) else known.version


def kept_in_a_row(store: Store, environment: str) -> int:
    """How many challengers, one after the other, have not become champion since one last did; UserError as `challenger`.

    Each night makes at most one, so for an environment that has enough feedback every night these are nights.
    """
    latest = last_published(store, environment)
    if latest is None:
        return 0
    promoted = [entry.version for entry in promotion_log(store, environment) if entry.action == "promote"]
    since = version_number(promoted[-1]) if promoted and promoted[-1] else 0
    return max(0, version_number(latest.version) - since)


def last_published(store: Store, environment: str) -> Challenger | None:
    """The pointer as it is stored, None before the first; UserError if it or the manifest it names is damaged."""
    known, _ = _current(store, environment)
    try:
        if known is not None:
            read_sealed(store, environment, known.version, known.manifest)
    except UserError as error:
        # whichever of the two is at fault
        raise UserError(f"{error}, or {challenger_key(environment)}, which names it") from None
    return known


def challenger_key(environment: str) -> str:
    """The key of the pointer."""
    return key_of(environment, "challenger")


def _current(store: Store, environment: str) -> tuple[Challenger | None, str | None]:
    key = challenger_key(environment)
    object_ = stored(store, key)
    if object_ is None:
        return None, None
    known = parse(object_.data, Challenger, key)
    if known.environment != environment:
        raise UserError(f"{key}: the pointer of environment {known.environment}; {_RESTORE}")
    return known, object_.etag
