"""Which version of an environment is champion, and the one way to change it."""

import json

from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.records import Name, Record, Sha256
from taskmem.registry.manifest import VersionName
from taskmem.registry.objects import key_of, parse, put_content, stored, to_bytes, verdict_key
from taskmem.registry.versions import read_files, read_manifest
from taskmem.store import Conflict, Store


class Pointer(Record):
    """The champion of an environment: `version`, of the policy of digest `policy`, promoted on the verdict of that SHA-256.

    `previous` is the champion before it; `replaced` the SHA-256 of the pointer before it, so that no two promotions leave the
    same pointer and one can tell that nothing has happened in between.
    """

    environment: Name
    version: VersionName
    previous: VersionName | None
    policy: Sha256
    verdict: Sha256
    replaced: Sha256 | None

    @property
    def name(self) -> str:
        """environment@version."""
        return f"{self.environment}@{self.version}"


class ChampionMovedError(UserError):
    """The champion is not the one the challenger was held against; `current` is the pointer now, None for no champion."""

    def __init__(self, environment: str, expected: Pointer | None, current: Pointer | None) -> None:
        super().__init__(environment, expected, current)
        self.environment, self.expected, self.current = environment, expected, current

    def __str__(self) -> str:
        before, now = (pointer.version if pointer else "none" for pointer in (self.expected, self.current))
        moved = f"moved on from {before}, it is {now}"
        return f"environment {self.environment}: the champion has {moved}; hold the challenger against the present one"


def champion(store: Store, environment: str) -> Pointer | None:
    """The environment's champion, None if there has been none; UserError if the pointer is damaged."""
    return _current(store, environment)[0]


def promote(store: Store, environment: str, version: str, expected: Pointer | None, verdict: bytes) -> Pointer:
    """Make `version` the champion in place of `expected`, on the JSON document `verdict`; returns the new pointer.

    A version that is champion already stays it, with the pointer that made it so. The verdict is stored beside the pointer, see
    `read_verdict`. ChampionMovedError if the champion is not `expected` (any more): of racing promotions one succeeds. UserError
    if the version is unknown or not whole, or the verdict is no JSON object.
    """
    current, etag = _current(store, environment)
    if current is not None and current.version == version:
        return current
    if current != expected:
        raise ChampionMovedError(environment, expected, current)
    manifest = read_manifest(store, environment, version)
    read_files(store, manifest)
    pointer = Pointer(
        environment=environment,
        version=version,
        previous=current.version if current else None,
        policy=manifest.policy,
        verdict=_keep(store, environment, verdict),
        replaced=sha256_bytes(to_bytes(current)) if current else None,
    )
    try:
        store.compare_and_swap(_key(environment), to_bytes(pointer), etag)
    except Conflict:
        now = champion(store, environment)
        if now is not None and now.version == version:
            return now
        raise ChampionMovedError(environment, expected, now) from None
    return pointer


def read_verdict(store: Store, environment: str, digest: str) -> bytes:
    """The verdict that a pointer names; UserError if it is missing or damaged."""
    key = verdict_key(environment, digest)
    object_ = stored(store, key)
    if object_ is None or sha256_bytes(object_.data) != digest:
        what = "missing" if object_ is None else "damaged"
        raise UserError(f"{key}: the verdict is {what}; restore the object from a backup")
    return object_.data


def _key(environment: str) -> str:
    return key_of(environment, "champion")


def _current(store: Store, environment: str) -> tuple[Pointer | None, str | None]:
    key = _key(environment)
    object_ = stored(store, key)
    if object_ is None:
        return None, None
    pointer = parse(object_.data, Pointer, key)
    if pointer.environment != environment:
        raise UserError(f"{key}: the pointer of environment {pointer.environment}; restore the object from a backup")
    return pointer, object_.etag


def _keep(store: Store, environment: str, verdict: bytes) -> str:
    try:
        document = json.loads(verdict)
    except (ValueError, RecursionError) as error:
        raise UserError(f"verdict of environment {environment}: not valid JSON ({error}); run the gate again") from None
    if not isinstance(document, dict):
        raise UserError(f"verdict of environment {environment}: no JSON object; run the gate again")
    digest = sha256_bytes(verdict)
    put_content(store, verdict_key(environment, digest), verdict)
    return digest
