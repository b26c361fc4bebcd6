"""Which version of an environment is champion, and how a challenger becomes it."""

import json
from datetime import datetime
from typing import Any

from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.records import Name, Sha256
from taskmem.registry.log import Chain, Head, Present, Promotion, written
from taskmem.registry.manifest import VersionName
from taskmem.registry.objects import key_of, put_content, stored, verdict_key
from taskmem.registry.versions import read_files, read_sealed
from taskmem.store import Conflict, Store

LOOK_AGAIN = "hold the challenger against the present one"


class Pointer(Head):
    """The champion of an environment: `version`, of the policy of digest `policy`, on the verdict of that SHA-256.

    All three are None for no adapter. `previous` is the champion before it. No two moves leave the same pointer, for each
    names the log's entry that it came with: one can tell that nothing has happened in between.
    """

    environment: Name
    version: VersionName | None
    previous: VersionName | None
    policy: Sha256 | None
    verdict: Sha256 | None

    @property
    def subject(self) -> str:
        """The environment."""
        return self.environment

    @property
    def name(self) -> str | None:
        """environment@version, None for no adapter."""
        return f"{self.environment}@{self.version}" if self.version else None


class ChampionMovedError(UserError):
    """The champion is not the one that was expected; `current` is the pointer now, None where there has been none."""

    def __init__(
        self, environment: str, expected: Pointer | None, current: Pointer | None, advice: str = LOOK_AGAIN
    ) -> None:
        super().__init__(environment, expected, current, advice)
        self.environment, self.expected, self.current, self.advice = environment, expected, current, advice

    def __str__(self) -> str:
        before, now = ((pointer and pointer.version) or "none" for pointer in (self.expected, self.current))
        return f"environment {self.environment}: the champion has moved on from {before}, it is {now}; {self.advice}"


def promotions(environment: str) -> Chain[Promotion, Pointer]:
    """The champion's pointer and its log; UserError for an environment of an unsafe name."""
    key, folder = key_of(environment, "champion"), key_of(environment, "log")
    return Chain(environment, key, folder, Promotion, Pointer, _pointer)


def champion(store: Store, environment: str) -> Pointer | None:
    """The environment's champion, None if there has been none; UserError if the pointer or its entry is damaged."""
    return promotions(environment).present(store).pointer


def promotion_log(store: Store, environment: str) -> list[Promotion]:
    """Every move of the environment's champion, oldest first; UserError naming an entry that is missing or damaged."""
    return list(promotions(environment).log(store).values())


def promote(
    store: Store,
    environment: str,
    version: str,
    expected: Pointer | None,
    verdict: bytes,
    by: str,
    time: datetime,
    reason: str | None = None,
) -> Pointer:
    """Make `version` the champion in place of `expected`, on the JSON document `verdict`; returns the new pointer.

    A version that is champion already stays it, with the pointer that made it so. The verdict is stored beside the pointer, see
    `read_verdict`; who (`by`), when and why is in the log. ChampionMovedError if the champion is not `expected` (any more):
    of racing promotions one succeeds. UserError if the version is unknown or not whole, the verdict is no JSON object, the
    log's last entry is damaged, or `by` or `reason` is no short line.
    """
    chain = promotions(environment)
    present = chain.present(store)
    if present.pointer is not None and present.pointer.version == version:
        return present.pointer
    if present.pointer != expected:
        raise ChampionMovedError(environment, expected, present.pointer)
    manifest, digest = read_sealed(store, environment, version)
    read_files(store, manifest)
    entry = next_entry(
        present, environment, "promote", by, time, reason,
        version=version, policy=manifest.policy, verdict=_keep(store, environment, verdict), manifest=digest,
    )  # fmt: skip
    try:
        return chain.move(store, present, entry)
    except Conflict:
        now = champion(store, environment)
        if now is not None and now.version == version:
            return now
        raise ChampionMovedError(environment, expected, now) from None


def next_entry(
    present: Present[Promotion, Pointer],
    environment: str,
    action: str,
    by: str,
    time: datetime,
    reason: str | None,
    **to: str | None,
) -> Promotion:
    """The entry that comes after the log's last one; UserError for a `by` or `reason` that is no short line."""
    fields: dict[str, Any] = {**present.link, "action": action, "by": by, "time": time, "reason": reason, **to}
    replaced = present.pointer.version if present.pointer else None
    what = f"log of environment {environment}"
    return written(Promotion, what, environment=environment, replaced_version=replaced, **fields)


def read_verdict(store: Store, environment: str, digest: str) -> bytes:
    """The verdict that a pointer names; UserError if it is missing or damaged."""
    key = verdict_key(environment, digest)
    object_ = stored(store, key)
    if object_ is None or sha256_bytes(object_.data) != digest:
        what = "missing" if object_ is None else "damaged"
        raise UserError(f"{key}: the verdict is {what}; restore the object from a backup")
    return object_.data


def _pointer(entry: Promotion, digest: str) -> Pointer:
    return Pointer(
        entry=digest,
        environment=entry.environment,
        version=entry.version,
        previous=entry.replaced_version,
        policy=entry.policy,
        verdict=entry.verdict,
    )


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
