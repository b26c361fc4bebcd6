"""From the event log to the recent questions of each environment: each event once, answers left behind."""

import hashlib
from collections.abc import Container, Iterator
from pathlib import Path
from typing import BinaryIO

from pydantic import ValidationError

from taskmem.config import MiningSettings
from taskmem.errors import UserError
from taskmem.feedback.collection import ERASED, NO_CONSENT, Collection, Watermark, tombstone_of
from taskmem.records import FeedbackEvent, Question, Refusal, one_line

_PIECE = 1 << 20  # bytes read at once while checking a watermark


def to_question(event: FeedbackEvent) -> Question:
    """The question of an event as mining may see it: no answer, no correction, no outcome."""
    return Question(
        id=event.question,
        environment=event.environment,
        stream=event.stream,
        asked_at_s=event.asked_at_s,
        type=event.type,
        text=event.text,
        options=event.options,
    )


def collect(
    log_path: Path,
    since: Watermark | None,
    settings: MiningSettings,
    environment: str | None = None,
    erased: Container[str] = (),
) -> Collection:
    """The `settings.recent_questions` last asked questions of each environment in the events after `since` (None: all).

    Recent means late in the log: arrival cannot be forged by a device's clock. A question asked several times counts
    once, at its last place, with all its sources. Events without consent, lines that are no event, repeated event ids,
    questions that contradict an earlier one of the same id, events of a stream or source that is among the `erased` (see
    `tombstone_of`) and, if `environment` says whose log this is, events that name another are refused and listed with
    file:line; the rest goes on. An unfinished last line is listed too and left for the next collection. The log may be
    written to meanwhile.
    Raises UserError if the log is missing or `since` does not fit it.
    """
    gathered = _Gathered(log_path.name, environment, erased)
    try:
        with log_path.open("rb") as handle:
            digest = _pass_over(handle, since, log_path)
            offset, number = (since.offset, since.lines) if since else (0, 0)
            for line in handle:
                if not line.endswith(b"\n"):
                    gathered.refuse(number + 1, "unfinished line, left for the next collection")
                    break
                number += 1
                offset += len(line)
                digest.update(line)
                gathered.take(number, line)
    except OSError as error:
        why = f"the event log cannot be read ({error.strerror})"
        raise UserError(f"{log_path}: {why}; give the path the deployment writes to") from None
    watermark = Watermark(offset=offset, lines=number, sha256=digest.hexdigest())
    return gathered.collection(settings.recent_questions, watermark)


def collect_folder(folder: Path, settings: MiningSettings, erased: Container[str] = ()) -> Collection:
    """Everything in a folder of logs, each `<environment>.jsonl` collected as that environment's own, in order of name.

    `erased` as in `collect`. The watermark is that of the logs one after the other: a seal on what was read, which no later
    collection starts from. UserError if the folder holds no log.
    """
    logs = sorted(folder.glob("[!.]*.jsonl"), key=lambda path: path.stem)
    if not logs:
        raise UserError(f"{folder}: no event log (*.jsonl) there; give the folder that the deployment writes to")
    parts = [collect(path, None, settings, path.stem, erased) for path in logs]
    digest = hashlib.sha256()
    for path, part in zip(logs, parts, strict=True):
        with path.open("rb") as handle:
            for piece in _pieces(handle, part.watermark.offset):
                digest.update(piece)
    return Collection(
        questions={environment: questions for part in parts for environment, questions in part.questions.items()},
        sources={environment: known for part in parts for environment, known in part.sources.items()},
        refused=tuple(refusal for part in parts for refusal in part.refused),
        watermark=Watermark(
            offset=sum(part.watermark.offset for part in parts),
            lines=sum(part.watermark.lines for part in parts),
            sha256=digest.hexdigest(),
        ),
        events=sum(part.events for part in parts),
    )


def rests_on_erased(collection: Collection, erased: Container[str]) -> bool:
    """Whether a collection made earlier has a question of a stream or source that is among the `erased` by now."""
    streams = {question.stream for questions in collection.questions.values() for question in questions}
    sources = {source for known in collection.sources.values() for named in known.values() for source in named}
    return any(tombstone_of("stream", name) in erased for name in streams) or any(
        tombstone_of("source", name) in erased for name in sources
    )


def _pieces(handle: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (piece := handle.read(min(size, _PIECE))):
        size -= len(piece)
        yield piece


def _pass_over(handle: BinaryIO, since: Watermark | None, log: Path) -> "hashlib._Hash":
    """Move `handle` to `since`, checking that the log before it is the one that was read; its running digest."""
    digest = hashlib.sha256()
    if since is None:
        return digest
    size = lines = 0
    for piece in _pieces(handle, since.offset):
        digest.update(piece)
        size += len(piece)
        lines += piece.count(b"\n")
    if (size, lines, digest.hexdigest()) != (since.offset, since.lines, since.sha256):
        raise UserError(
            f"{log}:{since.lines}: the log before the watermark is not the one it was taken from; "
            "give that log's own watermark, or none to collect from the start"
        )
    return digest


class _Gathered:
    """Questions, sources and refusals while the log is read."""

    def __init__(self, file: str, environment: str | None, erased: Container[str]) -> None:
        self._file = file
        self._environment = environment
        self._erased = erased
        self._lines: dict[str, int] = {}  # event id -> line
        self._asked: dict[
            str, dict[str, tuple[Question, set[str]]]
        ] = {}  # by environment and question id, oldest first
        self._refused: list[Refusal] = []
        self._events = 0

    def refuse(self, number: int, reason: str) -> None:
        self._refused.append(Refusal(file=f"{self._file}:{number}", reason=reason))

    def take(self, number: int, line: bytes) -> None:
        if not line.strip():
            return
        try:
            event = FeedbackEvent.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = one_line(".".join(str(part) for part in first["loc"])) or "the line"
            self.refuse(number, f"{field}: {first['msg']}")
            return
        if self._environment not in (None, event.environment):
            # one tenant's collection does not say who the other is
            self.refuse(number, f"event {event.id} names another environment than the log's")
            return
        if self._was_erased(event):
            # its id may say whose it was
            self.refuse(number, ERASED)
            return
        earlier = self._lines.setdefault(event.id, number)
        if earlier != number:
            self.refuse(number, f"event {event.id} is already on line {earlier}")
        elif not event.consent:
            self.refuse(number, NO_CONSENT)
        else:
            self._note(number, event)

    def _was_erased(self, event: FeedbackEvent) -> bool:
        known = (tombstone_of("stream", event.stream), tombstone_of("source", event.source))
        return any(digest in self._erased for digest in known)

    def _note(self, number: int, event: FeedbackEvent) -> None:
        question = to_question(event)
        asked = self._asked.setdefault(event.environment, {})
        known, sources = asked.get(question.id, (question, set()))
        if known != question:
            self.refuse(number, f"question {question.id} differs from an earlier one with the same id")
            return
        # Taken out and put back, the question is the latest.
        asked.pop(question.id, None)
        asked[question.id] = question, sources | {event.source}
        self._events += 1

    def collection(self, recent: int, watermark: Watermark) -> Collection:
        kept = {environment: list(self._asked[environment].values())[-recent:] for environment in sorted(self._asked)}
        return Collection(
            questions={environment: tuple(q for q, _ in rows) for environment, rows in kept.items()},
            sources={
                environment: {q.id: tuple(sorted(sources)) for q, sources in rows} for environment, rows in kept.items()
            },
            refused=tuple(self._refused),
            watermark=watermark,
            events=self._events,
        )
