"""What the report is made of, read and checked."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from taskmem.errors import UserError
from taskmem.evaluation.metrics import Difference, Measure
from taskmem.evaluation.streaming import GradedAnswer
from taskmem.records import Memory, Question, Segment, one_line, read_json, read_records

BASE, BEFORE, AFTER = "base", "phase_one", "phase_two"
"""The arms the report compares by name: the policy as it came, after Phase One, and with the task's own adapter."""
LEARNED, FOCUSED = f"{BEFORE}-{BASE}", f"{AFTER}-{BEFORE}"
TRAINING, VALIDATION = "training.json", "validation.json"


@dataclass(frozen=True)
class Run:
    """A finished run. `results` is the content of results.json; the paths are those of its stages.

    `phase_one` holds training.json and validation.json; `adapters` (arm -> folder) training.json, and may lack some;
    `arms` (arm -> folder) memories.jsonl and graded.jsonl; `segments` and `questions` are the held-out split's;
    `feedback` are the task's questions that Phase Two learned from; `verdict` is the gate's record, if there was one.
    """

    results: Mapping[str, Any]
    phase_one: Path
    adapters: Mapping[str, Path]
    arms: Mapping[str, Path]
    segments: Path
    questions: Path
    feedback: tuple[Question, ...] = ()
    verdict: Mapping[str, Any] | None = None


class _Known(BaseModel):
    # what a newer version adds beside these is not the report's business
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Arm(_Known):
    """One arm's measures."""

    overall: Measure
    on_task: Measure
    by_type: dict[str, Measure]
    format_rate: float
    wrong_fact_rate: float


class Paired(_Known):
    """One arm's accuracy less another's."""

    overall: Difference
    on_task: Difference


class Results(_Known):
    """results.json. `paired` is keyed "arm-other arm"."""

    task: str
    seed: int
    profile: str = "unknown"
    base: str = "unknown"
    commit: str = "unknown"
    arms: Annotated[dict[str, Arm], Field(min_length=1)]
    paired: dict[str, Paired]


class Validation(_Known):
    """validation.json: the development split's score per checkpoint (step), and the step that was taken."""

    picked: int
    scores: dict[int, float]


class Verdict(BaseModel):
    """The gate's record; fields beyond these are shown as they are."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    environment: str = ""
    promote: bool
    reasons: tuple[str, ...] = ()


Steps = list[dict[str, float]]
_Steps = TypeAdapter(Annotated[Steps, Field(min_length=1)])
M = TypeVar("M", bound=BaseModel)


def checked(value: Any, kind: type[M], where: str) -> M:
    """`value` as a `kind`; UserError naming the file and the field otherwise."""
    try:
        # the order of the arms is the order they are shown in
        return kind.model_validate_json(json.dumps(value))
    except ValidationError as error:
        raise UserError(_mistake(error, where)) from None


def _mistake(error: ValidationError, where: str) -> str:
    first = error.errors(include_url=False)[0]
    field = one_line(".".join(str(part) for part in first["loc"])) or "the document"
    return f"{where}: {field}: {first['msg']}; run the stage that writes it again"


def read_results(results: Mapping[str, Any]) -> Results:
    """The content of results.json; UserError where a number the report needs is not there."""
    read = checked(results, Results, "results.json")
    for name in (BASE, BEFORE, AFTER):
        if name not in read.arms:
            raise UserError(f"results.json: arms.{name} is missing; run the loop again")
    for name in (LEARNED, FOCUSED):
        if name not in read.paired:
            raise UserError(f"results.json: paired.{name} is missing; run the loop again")
    return read


def read_steps(path: Path, key: str | None = None) -> Steps:
    """The training log at `path` (below `key`, if given): one mapping of numbers per step."""
    content = read_json(path)
    try:
        return _Steps.validate_python(content if key is None else dict(content)[key])
    except ValidationError as error:
        raise UserError(_mistake(error, str(path))) from None
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: holds no {key!r}; train again") from None


def read_validation(folder: Path) -> Validation:
    """The validation scores of Phase One."""
    return checked(read_json(folder / VALIDATION), Validation, str(folder / VALIDATION))


Graded = Mapping[str, Mapping[str, GradedAnswer]]
Remembered = Mapping[str, Mapping[tuple[str, int], Memory]]


@dataclass(frozen=True)
class Watched:
    """The held-out split: its segments in order, the questions about them, and per arm what became of both."""

    segments: tuple[Segment, ...]
    questions: tuple[Question, ...]
    memories: Remembered
    graded: Graded


def read_watched(run: Run, arms: tuple[str, ...]) -> Watched:
    """Read the held-out split and every arm; UserError where an arm lacks a segment or a question."""
    segments = tuple(sorted(read_records(run.segments / "segments.jsonl", Segment), key=lambda s: (s.stream, s.index)))
    streams = {s.stream for s in segments}
    # nothing was filmed of a refused stream, so there is nothing to show
    questions = tuple(q for q in read_records(run.questions, Question) if q.stream in streams)
    memories: dict[str, dict[tuple[str, int], Memory]] = {}
    graded: dict[str, dict[str, GradedAnswer]] = {}
    for arm in arms:
        if arm not in run.arms:
            raise UserError(
                f"arm {arm}: results.json has it, but no folder was given; give the folder of its evaluation"
            )
        folder = run.arms[arm]
        memories[arm] = {(m.stream, m.index): m for m in read_records(folder / "memories.jsonl", Memory)}
        graded[arm] = {g.question: g for g in read_records(folder / "graded.jsonl", GradedAnswer)}
        for segment in segments:
            if (segment.stream, segment.index) not in memories[arm]:
                where = f"segment {segment.index} of stream {segment.stream}"
                raise UserError(
                    f"{folder / 'memories.jsonl'}: no memory of {where}; evaluate the arm on these segments"
                )
        for question in questions:
            if question.id not in graded[arm]:
                raise UserError(f"{folder / 'graded.jsonl'}: no answer to {question.id}; evaluate the arm again")
    return Watched(segments, questions, memories, graded)
