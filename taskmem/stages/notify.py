"""notify: what became of a night, for Prometheus, by way of a Pushgateway.

A Pushgateway never forgets a series, so every push replaces one group as a whole. A profile has two: the last night, and the last
one that succeeded, whose time a failed night must not take away.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Gauge, push_to_gateway

from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.lineage.night import ENDS, Night, failed_night, forget, handed_over
from taskmem.progress import Note
from taskmem.records import one_line
from taskmem.stages.shard import Shard, log
from taskmem.store import open_store

JOB = "taskmem_adaptation"
SUCCEEDED = "SUCCEEDED"
SECONDS = 30.0


def notify(
    state: str,
    run: str,
    shards: Sequence[Mapping[str, Any]],
    store: str,
    pushgateway: str,
    profile: Profile,
    clock: Callable[[], float] = time.time,
    note: Note = log,
) -> Mapping[str, int]:
    """Push the outcome of the run `run`, which ended as `state` at the Unix time of `clock`; returns environments by status.

    Without `pushgateway` nothing is pushed. What the run left in the store goes with the last push; a run that succeeded and left
    nothing has been told of already, and one that failed before it left anything failed for all environments of `shards`.
    UserError for what is no http(s) URL, or has a password in it, and if the gateway does not take it.
    """
    if pushgateway:
        _check(pushgateway)
    registry = open_store(store)
    night = handed_over(registry, run)
    if night is None and state == SUCCEEDED:
        note(f"run {run}: its outcome has been told")
        return {}
    night = night or failed_night([s.environment for shard in shards for s in Shard.parse(shard).environments])
    if pushgateway:
        _push(pushgateway, outcome(night), profile.name, "night")
        if state == SUCCEEDED:
            _push(pushgateway, success(clock()), profile.name, "success")
        note(f"run {run}: {pushgateway} has its outcome")
    forget(registry, run)
    return {str(end): count for end, count in night.outcomes.items()}


def outcome(night: Night) -> CollectorRegistry:
    """The metrics of a night; what is not known of it is not there."""
    registry = CollectorRegistry()
    ended = Gauge(
        "taskmem_adaptation_environments",
        "Environments by what the last night did with them.",
        ["status"],
        registry=registry,
    )
    for status in ENDS:
        ended.labels(status).set(night.outcomes[status])
    known = {
        "taskmem_gate_kept_nights": (
            "Challengers in a row that the gate let none of become champion; the fewest of last night's environments.",
            night.kept_nights,
        ),
        "taskmem_judge_unscored_share": ("Share of last night's candidates that a judge failed on.", night.unscored),
        "taskmem_calls_cost": ("What last night's calls cost, in the currency of the prices.", night.cost),
        "taskmem_calls_budget": ("What they may cost.", night.budget),
    }
    for name, (told, value) in known.items():
        if value is not None:
            Gauge(name, told, registry=registry).set(value)
    return registry


def success(now: float) -> CollectorRegistry:
    """The time of a night that succeeded."""
    registry = CollectorRegistry()
    name = "taskmem_adaptation_last_success_timestamp_seconds"
    Gauge(name, "When a night last succeeded, in seconds since 1970.", registry=registry).set(now)
    return registry


def _check(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise UserError("pushgateway: not an http(s) URL without user and password; give one such as http://host:9091")


def _push(url: str, registry: CollectorRegistry, profile: str, kind: str) -> None:
    try:
        push_to_gateway(url, JOB, registry, {"profile": profile, "of": kind}, SECONDS)
    except (OSError, HTTPException) as error:
        raise UserError(
            f"{url}: did not take the night's outcome ({one_line(str(error)) or type(error).__name__}); "
            "see that a Pushgateway answers there"
        ) from None
