"""What one collection hands on, and its files.

OUT/questions/<environment>.jsonl    Question records without answers, oldest first
OUT/sources.json                     {environment: {question id: [hashed sources]}}
OUT/refused.jsonl                    Refusal records: file:line, reason
OUT/watermark.json                   {watermark, events, files}: written last, `files` is the digest of the others
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from taskmem.errors import UserError
from taskmem.files import canonical_json, sha256_bytes, sha256_tree
from taskmem.records import (
    FeedbackEvent,
    Index,
    Name,
    Part,
    Question,
    Refusal,
    Sha256,
    one_line,
    read_json,
    read_records,
    write_json,
    write_records,
)

NO_CONSENT = "no consent"
ERASED = "its stream or source was erased"
Erasable = Literal["stream", "source"]
"""What can be erased as a whole: the data of a stream, or of a source of feedback."""
_AGAIN = "run collect again from the last watermark"


class Watermark(Part):
    """How far a log has been read: `offset` bytes in `lines` lines, whose SHA-256 is `sha256`."""

    offset: Index
    lines: Index
    sha256: Sha256


class PartsWatermark(Part):
    """How far an environment's parts in an object store have been read: how many, and the running digest of the last."""

    parts: Index
    sha256: Sha256


class _Closing(Part):
    watermark: Watermark | PartsWatermark
    events: Index
    files: Sha256
    carried: dict[Name, Index] = Field(default_factory=dict)


@dataclass(frozen=True)
class Collection:
    """The recent questions of each environment since a watermark, where they come from, and what was refused.

    `questions` holds an environment's questions oldest first; `sources` has the same environments and question ids;
    `events` counts the new events that were accepted, also those of questions that are no longer among the recent. `carried`
    says how many questions of an environment, its first ones, were asked before the watermark; none where it is not named.
    """

    questions: dict[str, tuple[Question, ...]]
    sources: dict[str, dict[str, tuple[str, ...]]]
    refused: tuple[Refusal, ...]
    watermark: Watermark | PartsWatermark
    events: int
    carried: dict[str, int] = field(default_factory=dict)

    def new(self, environment: str) -> tuple[Question, ...]:
        """Those of an environment's questions that were asked since the watermark."""
        return self.questions.get(environment, ())[self.carried.get(environment, 0) :]

    @property
    def without_consent(self) -> int:
        """How many events were refused because their source did not consent."""
        return sum(r.reason == NO_CONSENT for r in self.refused)


def tombstone_of(kind: Erasable, name: str) -> str:
    """The SHA-256 under which an erased stream or source is remembered, which does not tell its name."""
    return sha256_bytes(canonical_json([kind, name]))


def is_erased(event: FeedbackEvent, erased: Container[str]) -> bool:
    """Whether an event's stream, its environment's stream of that name, or its source is among the `erased`."""
    return any(digest in erased for digest in _tombstones(event.environment, event.stream, (event.source,)))


def rests_on_erased(collection: "Collection", erased: Container[str]) -> bool:
    """Whether a collection made earlier has a question of a stream or source that is among the `erased` by now."""
    asked = [(q, collection.sources[q.environment][q.id]) for each in collection.questions.values() for q in each]
    return any(d in erased for q, sources in asked for d in _tombstones(q.environment, q.stream, sources))


def _tombstones(environment: str, stream: str, sources: Iterable[str]) -> Iterator[str]:
    yield tombstone_of("stream", stream)
    yield tombstone_of("stream", scoped(environment, stream))
    yield from (tombstone_of("source", source) for source in sources)


def scoped(environment: str, stream: str) -> str:
    """The name of an environment's stream where other environments may have one that is called the same."""
    return f"{environment}/{stream}"


def write_collection(out: Path, collection: Collection) -> None:
    """Write `collection` to the folder `out`, replacing an older one there; other files in `out` are left alone.

    A reader sees a whole collection or a UserError, also after a kill; until the last moment `out/watermark.json` is
    the older one, so collecting again from it loses and repeats nothing.
    """
    folder = out / "questions"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.jsonl"):
        if path.stem not in collection.questions:
            path.unlink()
    for environment, questions in collection.questions.items():
        write_records(folder / f"{environment}.jsonl", questions)
    write_json(
        out / "sources.json", {e: {q: list(s) for q, s in known.items()} for e, known in collection.sources.items()}
    )
    write_records(out / "refused.jsonl", collection.refused)
    _close(out, collection.watermark, collection.events, collection.carried)


def read_collection(out: Path) -> Collection:
    """Read what `write_collection` wrote; UserError if a file is missing, wrong, or not of the same collection."""
    closing = _read_closing(out / "watermark.json")
    if _digest(out) != closing.files:
        raise UserError(f"{out}: the files were changed or not written to the end; {_AGAIN}")
    questions = {path.stem: tuple(read_records(path, Question)) for path in sorted((out / "questions").glob("*.jsonl"))}
    sources = _validated(out / "sources.json", TypeAdapter(dict[str, dict[str, tuple[Sha256, ...]]]))
    refused = tuple(read_records(out / "refused.jsonl", Refusal))
    return Collection(questions, sources, refused, closing.watermark, closing.events, closing.carried)


def reseal(out: Path) -> None:
    """Make a collection whole again whose questions, sources or refusals were changed on purpose; UserError if it is none."""
    closing = _read_closing(out / "watermark.json")
    left = {environment: len(_questions(out, environment)) for environment in closing.carried}
    carried = {environment: min(number, left[environment]) for environment, number in closing.carried.items()}
    _close(out, closing.watermark, closing.events, {environment: n for environment, n in carried.items() if n})


def read_watermark(path: Path) -> Watermark | PartsWatermark | None:
    """The watermark in a collection's `watermark.json`, to collect from next, or in a file of its own; None for the start.

    UserError if it cannot be read.
    """
    document = read_json(path)
    if isinstance(document, dict) and "watermark" not in document:
        return parse_watermark(document, str(path)) if document else None
    return _read_closing(path).watermark


def parse_watermark(document: Mapping[str, Any], where: str) -> Watermark | PartsWatermark:
    """A watermark from its JSON, a log's or one of parts; UserError naming `where` if it is none."""
    kind: Any = PartsWatermark if "parts" in document else Watermark
    found: Watermark | PartsWatermark = _checked(document, where, TypeAdapter(kind))
    return found


def _questions(out: Path, environment: str) -> list[Question]:
    path = out / "questions" / f"{environment}.jsonl"
    return read_records(path, Question) if path.exists() else []


def _close(out: Path, watermark: Watermark | PartsWatermark, events: int, carried: dict[str, int]) -> None:
    closing = _Closing(watermark=watermark, events=events, files=_digest(out), carried=carried)
    write_json(out / "watermark.json", closing.model_dump(mode="json", exclude=None if carried else {"carried"}))


def _read_closing(path: Path) -> _Closing:
    closing: _Closing = _validated(path, TypeAdapter(_Closing))
    return closing


def _validated(path: Path, kind: TypeAdapter[Any]) -> Any:
    return _checked(read_json(path), str(path), kind)


def _checked(document: Any, path: str, kind: TypeAdapter[Any]) -> Any:
    try:
        return kind.validate_json(canonical_json(document))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = one_line(".".join(str(part) for part in first["loc"])) or "the document"
        raise UserError(f"{path}: not a file of a collection ({field}: {first['msg']}); {_AGAIN}") from None
    except UnicodeEncodeError:
        raise UserError(f"{path}: not a file of a collection (half a surrogate pair); {_AGAIN}") from None


def _digest(out: Path) -> str:
    return sha256_tree(out, [*(out / "questions").glob("*.jsonl"), out / "sources.json", out / "refused.jsonl"])
