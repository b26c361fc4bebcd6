"""feedback_collection: the questions people asked come back, without their answers."""

from collections.abc import Container
from pathlib import Path

from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.feedback import Collection, collect, collect_folder, log_path, write_collection
from taskmem.feedback.collection import Watermark


def feedback_collection(events: Path, since: Watermark | None, profile: Profile, out: Path) -> Collection:
    """Collect the recent questions of every environment, from one event log or from a folder of <environment>.jsonl.

    See `taskmem.feedback.collect`. UserError for `since` with a folder: each of its logs has a watermark of its own.
    """
    if events.is_dir() and since is not None:
        raise UserError(
            f"{events}: a folder of logs has no one watermark; collect each log on its own, or without --since"
        )
    found = collect_folder(events, profile.mining) if events.is_dir() else collect(events, since, profile.mining)
    write_collection(out, found)
    return found


def collect_environment(
    events: Path,
    environment: str,
    since: Watermark | None,
    profile: Profile,
    out: Path,
    erased: Container[str] = (),
) -> Collection:
    """Collect the recent questions of one environment from `events`/<environment>.jsonl alone, and write them to `out`.

    Events in it that name another environment, and those of `erased` streams and sources (see `taskmem.erasure.tombstones`),
    are refused and listed. UserError for an unsafe name or a missing log.
    """
    collection = collect(log_path(events, environment), since, profile.mining, environment, erased)
    write_collection(out, collection)
    return collection
