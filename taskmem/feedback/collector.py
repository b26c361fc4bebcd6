"""From a log or an environment's parts to the recent questions of each environment: each event once, answers left behind."""

import hashlib
from collections.abc import Container, Sequence
from functools import partial
from pathlib import Path

from taskmem.config import MiningSettings
from taskmem.errors import UserError
from taskmem.feedback.collection import Collection, PartsWatermark, Watermark, is_erased
from taskmem.feedback.feed import Feed, LogFeed, PartsFeed
from taskmem.feedback.gather import Gathered
from taskmem.feedback.kept import Kept, KeptParts, is_kept
from taskmem.feedback.parts import FeedbackParts, environments_of
from taskmem.files import canonical_json, sha256_bytes
from taskmem.records import FeedbackEvent
from taskmem.store import Store

_PIECE = 1 << 20  # bytes read at once


def collect(
    log_path: Path,
    since: Watermark | PartsWatermark | None,
    settings: MiningSettings,
    environment: str | None = None,
    erased: Container[str] = (),
) -> Collection:
    """The questions last asked in each environment of a log, `settings.recent_questions` at most; all after `since` are new.

    Recent means late in the log: arrival cannot be forged by a device's clock. A question asked several times counts
    once, at its last place, with all its sources. Where fewer were asked after `since` (None: the start), those before it fill
    up, and `carried` says how many. Of one source only the last `settings.questions_per_source` questions count.
    Refused and listed with file:line are events without consent; lines that are no event; event ids that were there before, also
    before `since`; questions that contradict an earlier one of the same id; events of a stream or source that is among the
    `erased` (see `tombstone_of`); what a source asked beyond its number; and, if `environment` says whose log this is, events
    that name another. The rest goes on. An unfinished last line is listed too and left for the next collection. The log may be
    written to meanwhile. A file that `collect_parts` has kept is collected as the parts in it.
    Raises UserError if the log is missing or `since` does not fit it.
    """
    if log_path.is_file() and is_kept(log_path):
        parts = KeptParts(log_path)
        return _collect(PartsFeed(parts, _of_parts(since, str(log_path))), settings, parts.environment, erased)
    if isinstance(since, PartsWatermark):
        raise UserError(f"{log_path}: a log, and the watermark is that of parts; give the log's own")
    counts = partial(_counts, environment, erased)
    return _collect(LogFeed(log_path, since, counts), settings, environment, erased)


def collect_parts(
    parts: FeedbackParts,
    since: Watermark | PartsWatermark | None,
    settings: MiningSettings,
    erased: Container[str] = (),
    kept: Path | None = None,
) -> Collection:
    """As `collect`, from an environment's parts in an object store; what was read goes to the file `kept` too.

    UserError as `collect`, and for a part that is damaged or missing.
    """
    mark = _of_parts(since, parts.where)
    if kept is None:
        return _collect(PartsFeed(parts, mark), settings, parts.environment, erased)
    with Kept(kept, parts.environment, lambda event: not is_erased(event, erased)) as keeping:
        collection = _collect(PartsFeed(parts, mark, keeping), settings, parts.environment, erased)
        keeping.write()
    return collection


def collect_folder(folder: Path, settings: MiningSettings, erased: Container[str] = ()) -> Collection:
    """Everything in a folder of logs, each `<environment>.jsonl` collected as that environment's own, in order of name.

    `erased` as in `collect`. The watermark is that of the logs one after the other: a seal on what was read, which no later
    collection starts from. UserError if the folder holds no log.
    """
    logs = sorted(folder.glob("[!.]*.jsonl"), key=lambda path: path.stem)
    if not logs:
        raise UserError(f"{folder}: no event log (*.jsonl) there; give the folder that the deployment writes to")
    feeds = [LogFeed(path, None, partial(_counts, path.stem, erased)) for path in logs]
    parts = [_collect(feed, settings, path.stem, erased) for path, feed in zip(logs, feeds, strict=True)]
    digest = hashlib.sha256()
    for path, feed in zip(logs, feeds, strict=True):
        with path.open("rb") as handle:
            left = feed.watermark.offset
            while left > 0 and (piece := handle.read(min(left, _PIECE))):
                left -= len(piece)
                digest.update(piece)
    offset, lines = (sum(getattr(feed.watermark, name) for feed in feeds) for name in ("offset", "lines"))
    return _joined(parts, Watermark(offset=offset, lines=lines, sha256=digest.hexdigest()))


def collect_store(store: Store, settings: MiningSettings, erased: Container[str] = ()) -> Collection:
    """All parts in an object store, each environment's collected as its own, in order of name.

    `erased` and the watermark as in `collect_folder`. UserError if the store holds no parts.
    """
    feeds = [PartsFeed(FeedbackParts(store, environment), None) for environment in environments_of(store)]
    if not feeds:
        raise UserError("no feedback there: the store holds no parts; give the one that the agents ship to")
    parts = [_collect(feed, settings, feed.environment, erased) for feed in feeds]
    digest = sha256_bytes(canonical_json([feed.watermark.model_dump(mode="json") for feed in feeds]))
    return _joined(parts, PartsWatermark(parts=sum(feed.watermark.parts for feed in feeds), sha256=digest))


def _joined(collections: Sequence[Collection], watermark: Watermark | PartsWatermark) -> Collection:
    return Collection(
        questions={environment: questions for one in collections for environment, questions in one.questions.items()},
        sources={environment: known for one in collections for environment, known in one.sources.items()},
        refused=tuple(refusal for one in collections for refusal in one.refused),
        watermark=watermark,
        events=sum(one.events for one in collections),
    )


def _collect(feed: Feed, settings: MiningSettings, environment: str | None, erased: Container[str]) -> Collection:
    gathered = Gathered(environment, erased, feed.known)
    for line in feed.new():
        gathered.take(line)
    return gathered.collection(settings, feed)


def _counts(environment: str | None, erased: Container[str], event: FeedbackEvent) -> bool:
    return environment in (None, event.environment) and not is_erased(event, erased)


def _of_parts(since: Watermark | PartsWatermark | None, where: str) -> PartsWatermark | None:
    if isinstance(since, Watermark):
        raise UserError(f"{where}: parts, and the watermark is a log's; give the parts' own, or none to collect all")
    return since
