"""The policy that is served now, and which adapters may be served on it."""

from datetime import datetime

from taskmem.errors import UserError
from taskmem.records import Sha256
from taskmem.registry.champion import promotions
from taskmem.registry.log import Chain, Entry, Head, written
from taskmem.registry.manifest import Manifest
from taskmem.registry.objects import checked_policy
from taskmem.registry.versions import read_manifest
from taskmem.store import Conflict, Store


class PolicyChange(Entry):
    """The policy that is served moved from `replaced` to `policy`, hex SHA-256 both."""

    policy: Sha256
    replaced: Sha256 | None

    @property
    def subject(self) -> str:
        """There is one pointer, of no environment."""
        return ""

    @property
    def moved(self) -> tuple[str | None, str | None]:
        """From policy to policy."""
        return self.replaced, self.policy


class CurrentPolicy(Head):
    """The policy that is served now, by its digest."""

    policy: Sha256

    @property
    def subject(self) -> str:
        """There is one pointer, of no environment."""
        return ""


class PolicyMovedError(UserError):
    """The policy is not the one that was expected; `current` is the one now, None where none has been set."""

    def __init__(self, expected: CurrentPolicy | None, current: CurrentPolicy | None) -> None:
        super().__init__(expected, current)
        self.expected, self.current = expected, current

    def __str__(self) -> str:
        before, now = (known.policy[:12] if known else "none" for known in (self.expected, self.current))
        return f"policies/current: the policy has moved on from {before}, it is {now}; look at it and decide again"


POLICIES = Chain(
    "",
    "policies/current",
    "policies/log",
    PolicyChange,
    CurrentPolicy,
    lambda entry, digest: CurrentPolicy(entry=digest, policy=entry.policy),
)


def current_policy(store: Store) -> CurrentPolicy | None:
    """The policy that is served now, None if none has been set; UserError if the pointer or its entry is damaged."""
    return POLICIES.present(store).pointer


def policy_log(store: Store) -> list[PolicyChange]:
    """Every change of the policy, oldest first; UserError naming an entry that is missing or damaged."""
    return list(POLICIES.log(store).values())


def set_policy(
    store: Store, digest: str, by: str, time: datetime, expected: CurrentPolicy | None, reason: str | None = None
) -> CurrentPolicy:
    """Make the policy of SHA-256 `digest` the one that is served, in place of `expected`; returns the new pointer.

    A policy that is served already stays it, with the pointer that made it so. PolicyMovedError if another one is served than
    `expected` (any more): of racing callers one succeeds. UserError for what is no digest, or a `by` that is no short line.
    """
    present, digest = POLICIES.present(store), checked_policy(digest)
    if present.pointer is not None and present.pointer.policy == digest:
        return present.pointer
    if present.pointer != expected:
        raise PolicyMovedError(expected, present.pointer)
    replaced = present.pointer.policy if present.pointer else None
    fields = {**present.link, "by": by, "time": time, "reason": reason, "policy": digest, "replaced": replaced}
    entry = written(PolicyChange, f"log of {POLICIES.key}", **fields)
    try:
        return POLICIES.move(store, present, entry)
    except Conflict:
        now = current_policy(store)
        if now is not None and now.policy == digest:
            return now
        raise PolicyMovedError(expected, now) from None


def eligible(policy: str | None, current: CurrentPolicy | None) -> bool:
    """Whether an adapter of `policy` may be served: on its own policy alone, on any while none has been set; no adapter never."""
    return policy is not None and (current is None or policy == current.policy)


def serving_adapter(store: Store, environment: str) -> Manifest | None:
    """The adapter that may be served now: the champion, if it is of the current policy; None for the policy without adapter.

    UserError if the champion's pointer, its log's last entry or its manifest is damaged. `fetch` verifies its files.
    """
    present = promotions(environment).present(store)
    if present.pointer is None or present.last is None or present.pointer.version is None:
        return None
    if not eligible(present.pointer.policy, current_policy(store)):
        return None
    return read_manifest(store, environment, present.pointer.version, present.last.manifest)
