"""The data contracts: every file one station of the loop hands to the next.

JSON Lines, UTF-8, one record a line, each with its schema version. A record holds only what inputs and seed determine, so
that the same inputs give the same bytes; times, costs and cache hits belong in a sidecar `run.jsonl`.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from taskmem.errors import UserError
from taskmem.files import atomic_write, canonical_json, sha256_bytes

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
"""A name that is safe as a folder name, in a URL and in a metric label."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Index = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


def _inside(path: str) -> str:
    parts = path.split("/")
    if not {"", ".", ".."}.isdisjoint(parts) or "\\" in path or "\0" in path:
        raise ValueError("must be a relative path that stays inside its folder")
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]


class Record(BaseModel):
    """Base of every contract: unknown fields, NaN and wrong types are errors; instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
    schema_version: Literal[1] = 1


class Part(BaseModel):
    """A piece of a record that never stands on a line of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Span(Record):
    """A stretch of a stream; `start_s` and `end_s` are seconds from the stream's start."""

    stream: Name
    index: Index
    start_s: Seconds
    end_s: Seconds

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.end_s <= self.start_s:
            raise ValueError("end_s must be later than start_s")
        return self


class Subtitle(Part):
    """One turn of speech; times are seconds from the stream's start."""

    start_s: Seconds
    end_s: Seconds
    text: Annotated[str, Field(min_length=1)]
    speaker: str = "unknown"


class Face(Part):
    """One face on one frame: global id, time in stream seconds, box in pixels of the clip."""

    id: Annotated[str, Field(pattern=r"^face_[0-9]+$")]
    time_s: Seconds
    box: tuple[Index, Index, Index, Index]


class Segment(Span):
    """One cut of a stream (10 s; the last may be shorter): the frames the policy sees, as a clip of its own."""

    source: str
    clip: RelativePath
    fps: Annotated[float, Field(gt=0)]
    width: Annotated[int, Field(gt=0)]
    height: Annotated[int, Field(gt=0)]
    subtitles: tuple[Subtitle, ...] = ()
    faces: tuple[Face, ...] = ()
    sha256: Sha256


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


class Refusal(Record):
    """An input that was not used, and why. A file name that is not UTF-8 is written with escapes."""

    file: Annotated[str, AfterValidator(_printable)]
    reason: str


class Memory(Span):
    """What the policy wrote of one segment. `text` is null where its output broke the grammar: nothing was remembered."""

    text: str | None
    think_tokens: Index
    memory_tokens: Index
    policy: Sha256
    adapter: str = "none"


class ContextMemory(Part):
    """A preceding memory as it stands in a context."""

    index: Index
    text: Annotated[str, Field(min_length=1)]


class Context(Part):
    """q_t: the last k segments, the current one last, and the memories of the earlier ones (METHOD section 1)."""

    segments: Annotated[tuple[Segment, ...], Field(min_length=1)]
    memories: tuple[ContextMemory, ...] = ()
    task: str | None = None

    @model_validator(mode="after")
    def _one_window(self) -> Self:
        first, *others = self.segments
        if any(s.stream != first.stream for s in others) or [s.index for s in self.segments] != sorted(
            {s.index for s in self.segments}
        ):
            raise ValueError("the segments of a window belong to one stream and stand in order")
        if not {m.index for m in self.memories} <= {s.index for s in self.segments[:-1]}:
            raise ValueError("a preceding memory must belong to an earlier segment of the window")
        return self

    @property
    def current(self) -> Segment:
        """The segment whose memory is to be written."""
        return self.segments[-1]

    @property
    def id(self) -> str:
        """Names the context by its content: the same window and memories give the same id."""
        content = [[s.sha256 for s in self.segments], [[m.index, m.text] for m in self.memories], self.task]
        return f"{self.current.stream}:{self.current.index}:{sha256_bytes(canonical_json(content))[:16]}"


class Candidate(Part):
    """One rollout: the raw completion, and the memory in it or null where the grammar is broken."""

    index: Index
    text: str
    memory: str | None
    think_tokens: Index
    memory_tokens: Index


class Rollouts(Record):
    """N candidates of one context, sampled once from the frozen policy with the adapter off."""

    context: str
    stream: Name
    index: Index
    memories: tuple[ContextMemory, ...]
    candidates: tuple[Candidate, ...]
    policy: Sha256
    seed: int


class Judge(Part):
    """Who judged: the role, the model behind it and the digest of its prompt."""

    role: Literal["fidelity", "redundancy", "richness", "helpfulness"]
    model: str
    prompt_sha256: Sha256


class Judgement(Record):
    """The quality of one candidate. A judge that failed leaves it unscored: `reason` says why, no verdict is invented."""

    context: str
    candidate: Index
    format_ok: bool
    within_budget: bool
    faithful: bool | None = None
    coherent: bool | None = None
    non_redundant: bool | None = None
    unscored: bool = False
    reason: str | None = None
    judges: tuple[Judge, ...] = ()

    @model_validator(mode="after")
    def _says_why(self) -> Self:
        if self.unscored and not self.reason:
            raise ValueError("an unscored judgement needs a reason")
        return self

    @property
    def quality_ok(self) -> bool:
        """True if r_qual would be positive: format and budget kept, and every verdict given and positive."""
        verdicts = (self.format_ok, self.within_budget, self.faithful, self.coherent, self.non_redundant)
        return not self.unscored and all(v is True for v in verdicts)


Order = Literal["a", "b", "tie"]


class Comparison(Record):
    """Which of two candidates serves questions like these better; asked twice, the order swapped the second time.

    `first_order` and `second_order` name the winning candidate (a or b), not the position it was shown in.
    """

    context: str
    a: Index
    b: Index
    questions: tuple[str, ...]
    first_order: Order
    second_order: Order
    judge: Judge

    @model_validator(mode="after")
    def _two_candidates(self) -> Self:
        if self.a == self.b:
            raise ValueError("a candidate is not compared with itself")
        return self

    @property
    def agreed(self) -> bool:
        """Both orders name the same winner."""
        return self.first_order == self.second_order and self.first_order != "tie"

    @property
    def winner(self) -> int | None:
        """The agreed winner's candidate index, or None."""
        return {"a": self.a, "b": self.b}[self.first_order] if self.agreed else None

    @property
    def loser(self) -> int | None:
        """The agreed loser's candidate index, or None."""
        return {"a": self.b, "b": self.a}[self.first_order] if self.agreed else None


class Preference(Record):
    """One training pair of Phase Two: candidate indices inside the context's rollouts."""

    context: str
    chosen: Index
    rejected: Index
    path_length: Index
    token_difference: Index
    questions: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _two_candidates(self) -> Self:
        if self.chosen == self.rejected:
            raise ValueError("chosen and rejected must be two candidates")
        return self


class Question(Record):
    """One instance of a task. `answer` exists for scoring only and is never shown to mining."""

    id: Name
    environment: Name
    stream: Name
    asked_at_s: Seconds
    type: Name
    text: Annotated[str, Field(min_length=1)]
    options: tuple[str, ...] = ()
    answer: str | None = None
    origin: Literal["environment", "user_correction", "none"] = "none"

    def without_answer(self) -> "Question":
        """The question as an agent or a miner may see it."""
        return self.model_copy(update={"answer": None, "origin": "none"})


class FeedbackEvent(Record):
    """What happened to one question in a deployment. `id` is the idempotency key; `source` is a hash, never a name."""

    id: Name
    environment: Name
    source: Sha256
    time: AwareDatetime
    question: Name
    stream: Name
    asked_at_s: Seconds
    type: Name
    text: Annotated[str, Field(min_length=1)]
    options: tuple[str, ...] = ()
    answer: str | None
    memories: tuple[str, ...] = ()
    adapter: str = "none"
    outcome: Literal["correct", "incorrect", "unknown"]
    correction: str | None = None
    consent: bool


class Response(Record):
    """One line of the response log, which an audit joins with the registry: what answered a request, and from which memories.

    `adapter` is name@version or none, `adapter_digest` the SHA-256 of its weights; `image` names what ran, "local" if none.
    `memories` are the ids `stream:index` that were read for an answer, or the one that was written. It holds no text.
    `stream` and `question` are null where a caller of the gateway named none.
    """

    id: Name
    time: AwareDatetime
    environment: Name
    policy: Sha256
    adapter: str
    adapter_digest: Sha256 | None
    image: Annotated[str, Field(min_length=1)]
    stream: Name | None
    question: Name | None
    memories: tuple[str, ...]

    @model_validator(mode="after")
    def _one_adapter(self) -> Self:
        if (self.adapter == "none") != (self.adapter_digest is None):
            raise ValueError("adapter and adapter_digest are both there, or neither is")
        return self


R = TypeVar("R", bound=Record)


def one_line(text: str) -> str:
    """`text` with line ends and other control characters escaped, fit for an error message."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def parse_line(line: str, kind: type[R], where: str) -> R:
    """One JSON line as a record of `kind`; UserError naming `where`, the field and the mistake otherwise."""
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = one_line(".".join(str(p) for p in first["loc"])) or "the line"
        raise UserError(f"{where}: {kind.__name__} {field}: {first['msg']}; mend or remove the line") from None


def iter_records(path: Path, kind: type[R]) -> Iterator[R]:
    """The records of a JSON Lines file, one at a time; UserError with file:line on the first bad one."""
    number = 0
    try:
        with path.open("rb") as handle:
            for number, line in enumerate(handle, 1):
                if line.strip():
                    yield parse_line(line.decode(), kind, f"{path}:{number}")
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
        raise UserError(
            f"{path}: {why}; it should hold {kind.__name__} records, run the stage before this one"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: not UTF-8 at byte {error.start} of the line; re-encode the file") from None


def read_records(path: Path, kind: type[R]) -> list[R]:
    """All records of a JSON Lines file; see `iter_records`."""
    return list(iter_records(path, kind))


def dump_record(record: BaseModel) -> str:
    """A record as one JSON line without the newline, fields in declaration order, NaN refused."""
    return json.dumps(record.model_dump(mode="json"), ensure_ascii=False, allow_nan=False)


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write a JSON Lines file atomically."""
    atomic_write(path, "".join(dump_record(r) + "\n" for r in records))


def read_json(path: Path) -> Any:
    """A JSON document without NaN; UserError with file and place if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); run the stage that writes it") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); write it again") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON document atomically, keys in the order given."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
