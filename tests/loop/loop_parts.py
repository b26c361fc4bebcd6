"""A display that keeps what it was told, and arms made by hand."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from taskmem.config import EvaluationSettings, load_profile
from taskmem.evaluation.metrics import breakdown
from taskmem.evaluation.streaming import GradedAnswer
from taskmem.loop.results import ARMS
from taskmem.progress import Progress, silent
from taskmem.records import write_json, write_records
from taskmem.stages.common import GRADED, SUMMARY

TASK = "door"
STREAMS = ("s0", "s1", "s2")


class Listener:
    """Implements `runner.Display`."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.unchanged: list[str] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        self.ran.append(name)
        yield silent

    def skipped(self, name: str) -> None:
        self.unchanged.append(name)


def evaluation() -> EvaluationSettings:
    return load_profile("miniature").evaluation


def write_arm(folder: Path, marks: Mapping[str, str], format_rate: float = 0.5, wrong_fact_rate: float = 0.25) -> Path:
    """An evaluated arm: for every type one mark per stream, `+` right, `-` wrong, `0` not answered."""
    answers = [
        GradedAnswer(
            question=f"{stream}.{kind}",
            stream=stream,
            environment=kind,
            type=kind,
            answer=None if mark == "0" else "said",
            correct=mark == "+",
        )
        for kind, row in marks.items()
        for stream, mark in zip(STREAMS, row, strict=True)
    ]
    write_records(folder / GRADED, answers)
    measures = breakdown([a.graded for a in answers], evaluation(), seed=0).model_dump(mode="json")
    write_json(folder / SUMMARY, {**measures, "format_rate": format_rate, "wrong_fact_rate": wrong_fact_rate})
    return folder


def write_arms(root: Path) -> dict[str, Path]:
    """All six arms; only phase_two differs from the others, by one right answer about the door."""
    marks = {arm: {"door": "+00", "room": "+-0"} for arm in ARMS}
    marks["phase_two"]["door"] = "++0"
    return {arm: write_arm(root / arm, marks[arm]) for arm in ARMS}
