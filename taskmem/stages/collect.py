"""feedback_collection: the questions people asked come back, without their answers."""

from collections.abc import Container
from pathlib import Path

from taskmem.config import Profile
from taskmem.erasure import tombstones
from taskmem.errors import UserError
from taskmem.feedback import (
    Collection,
    FeedbackParts,
    PartsWatermark,
    Watermark,
    collect,
    collect_folder,
    collect_parts,
    collect_store,
    log_path,
    write_collection,
)
from taskmem.feedback.kept import EVENTS
from taskmem.store import Store, open_store

Since = Watermark | PartsWatermark | None
_OBJECTS = "objects"  # what a folder that is a store has, and one of logs has not


def open_events(place: str | Path) -> Path | Store:
    """Where feedback is: a log or a folder of logs by its path, or an object store with parts by its URL or folder.

    UserError as `open_store`, and for an empty name.
    """
    if not str(place):
        raise UserError("feedback: neither a folder of logs nor a store with parts was named; give one")
    if "://" in str(place) or (Path(place) / _OBJECTS).is_dir():
        return open_store(str(place), read_only=True)
    return Path(place)


def feedback_collection(
    place: str | Path, since: Since, profile: Profile, out: Path, environment: str | None = None
) -> Collection:
    """Collect the recent questions of every environment, or of one, from a log, a folder of <environment>.jsonl, or parts.

    See `taskmem.feedback.collect`. What was erased in a store is not collected from its parts. UserError for `since` with the
    logs or parts of several environments: each has a watermark of its own.
    """
    events = open_events(place)
    erased = frozenset() if isinstance(events, Path) else tombstones(events)
    if environment is not None and not (isinstance(events, Path) and events.is_file()):
        return collect_environment(events, environment, since, profile, out, erased)
    if isinstance(events, Path) and not events.is_dir():
        found = collect(events, since, profile.mining, environment)
    elif since is not None:
        raise UserError(
            f"{place}: several environments have no one watermark; collect one with --environment, or without --since"
        )
    elif isinstance(events, Path):
        found = collect_folder(events, profile.mining)
    else:
        found = collect_store(events, profile.mining, erased)
    write_collection(out, found)
    return found


def collect_environment(
    events: Path | Store, environment: str, since: Since, profile: Profile, out: Path, erased: Container[str] = ()
) -> Collection:
    """Collect the recent questions of one environment from `events`/<environment>.jsonl alone, or from its parts, to `out`.

    What was read of parts goes to `out`/events.jsonl too, from which alone it can be collected again. Events that name another
    environment, and those of `erased` streams and sources (see `taskmem.erasure.tombstones`), are refused and listed. UserError
    for an unsafe name or a missing log.
    """
    if isinstance(events, Path):
        collection = collect(log_path(events, environment), since, profile.mining, environment, erased)
    else:
        parts = FeedbackParts(events, environment)
        collection = collect_parts(parts, since, profile.mining, erased, kept=out / EVENTS)
    write_collection(out, collection)
    return collection


def has_feedback(events: Path | Store, environment: str) -> bool:
    """Whether an environment has a log there, or parts; UserError for an unsafe name."""
    if isinstance(events, Path):
        return log_path(events, environment).exists()
    return FeedbackParts(events, environment).end().parts > 0
