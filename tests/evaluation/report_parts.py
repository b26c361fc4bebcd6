"""A small finished run: rendered streams, cut and read as in the loop; what the arms remembered is written by hand."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from taskmem.config import Profile, load_profile
from taskmem.evaluation.metrics import breakdown
from taskmem.evaluation.report.inputs import Run
from taskmem.evaluation.report.page import write_report
from taskmem.evaluation.streaming import ask, graded_answers
from taskmem.loop.results import ARMS, arm_results, compare_arms
from taskmem.records import Memory, Question, Segment, read_records, write_json, write_records
from taskmem.stages.common import GRADED, MEMORIES, SUMMARY
from taskmem.stages.evaluate import rates
from taskmem.stages.segmentation import segmentation
from taskmem.video.frames import read_clip
from taskmem.world.evidence import WorldEvidence
from taskmem.world.facts import VALUES, Facts, describe
from taskmem.world.judges import WorldAnswerer, WorldFactChecker, WorldGrader, WorldTruth
from taskmem.world.splits import render_split

TASK = "object"
KEEPS = {
    "base": ("figure",),
    "task_prompt": ("object",),
    "phase_one": ("figure", "room", "door"),
    "phase_two": ("figure", "room", "object"),
    "phase_two_other_task": ("door", "lamps"),
    "phase_two_random_pairs": ("figure", "lamps"),
}
BROKEN, LYING = 2, 3
"""The segments of every stream where Phase Two breaks the format, and where it states another object."""


@dataclass(frozen=True)
class Finished:
    """A run to report on, and what its report needs beside."""

    run: Run
    profile: Profile
    root: Path

    def frames_of(self, segment: Segment) -> np.ndarray:
        return read_clip(self.run.segments / segment.clip, self.profile.video.limits)

    def report(self, out: Path, **changes: Any) -> str:
        """The page's text, after changing fields of the run."""
        write_report(replace(self.run, **changes), self.frames_of, WorldEvidence(), out)
        return out.read_text(encoding="utf-8")


def _text(arm: str, index: int, facts: Facts) -> str | None:
    if arm == "phase_two" and index == BROKEN:
        return None
    if arm == "phase_two" and index == LYING:
        other = next(value for value in VALUES[TASK] if value != facts[TASK])
        return describe({**facts, TASK: other}, KEEPS[arm])
    return describe(facts, KEEPS[arm])


def _arm(folder: Path, arm: str, segments: list[Segment], questions: list[Question], truth: WorldTruth) -> Path:
    memories = [
        Memory(
            stream=s.stream,
            index=s.index,
            start_s=s.start_s,
            end_s=s.end_s,
            text=_text(arm, s.index, truth.at(s.stream, s.index)),
            think_tokens=0,
            memory_tokens=9,
            policy="a" * 64,
        )
        for s in segments
    ]
    answers = graded_answers(ask(questions, memories, WorldAnswerer()), WorldGrader())
    write_records(folder / MEMORIES, memories)
    write_records(folder / GRADED, answers)
    settings = load_profile("miniature").evaluation
    measures = breakdown([a.graded for a in answers], settings, seed=0).model_dump(mode="json")
    write_json(folder / SUMMARY, {**measures, **rates(memories, WorldFactChecker(truth))})
    return folder


def _training(root: Path) -> dict[str, Path]:
    steps = [{"step": n, "reward": 2 + n / 10, "format_reward": 0.9, "quality_reward": n / 10} for n in range(1, 6)]
    write_json(root / "phase_one" / "training.json", steps)
    write_json(root / "phase_one" / "validation.json", {"picked": 4, "scores": {"2": 0.5, "4": 0.75}})
    pairs = [{"step": n, "loss": 0.7 / n, "rewards/margins": n / 9, "rewards/accuracies": 0.5} for n in range(1, 6)]
    folders = {arm: root / "adapters" / arm for arm in ARMS[3:]}
    for folder in folders.values():
        write_json(folder / "training.json", {"trained_norm": 1.0, "steps": pairs})
    return folders


def finish(root: Path) -> Finished:
    """Render, cut, remember, answer and measure."""
    profile = load_profile("miniature")
    assert profile.world is not None
    world = root / "world"
    render_split(world, "held_out", profile.world.model_copy(update={"held_out": 3, "stream_segments": 5}), seed=0)
    segmentation(world / "videos", profile, root / "segments")
    segments = read_records(root / "segments" / "segments.jsonl", Segment)
    questions = read_records(world / "questions.jsonl", Question)
    truth = WorldTruth.read(world / "truth.jsonl")
    arms = {arm: _arm(root / "arms" / arm, arm, segments, questions, truth) for arm in ARMS}
    results = {
        "schema": 1,
        "seed": 0,
        "base": "b" * 64,
        "profile": profile.name,
        "commit": "c" * 40,
        "seconds": {"arms/base": 1.0},
        "task": TASK,
        "arms": {arm: arm_results(folder, TASK, profile.evaluation, 0) for arm, folder in arms.items()},
        "paired": compare_arms(arms, TASK, profile.evaluation, 0),
    }
    recent = tuple(q.without_answer() for q in questions if q.type == TASK)[:3]
    adapters = _training(root)
    run = Run(results, root / "phase_one", adapters, arms, root / "segments", world / "questions.jsonl", recent)
    return Finished(run, profile, root)


def changed(results: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """A deep copy of results with some top-level fields replaced."""
    copy: dict[str, Any] = json.loads(json.dumps(results))
    return {**copy, **fields}


class Page(HTMLParser):
    """What an HTML page consists of; fails on tags that do not nest."""

    VOID = frozenset({"meta", "img", "br", "rect", "line", "circle", "polyline"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.marks: list[tuple[str | None, str]] = []
        self.rows: list[list[str]] = []
        """Every table row as the text of its cells."""
        self.words = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "mark":
            self.marks.append((dict(attrs)["class"], ""))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words += data
        if {"td", "th"} & {*self._open}:
            self.rows[-1][-1] += data
        if self._open and self._open[-1] == "mark":
            kind, before = self.marks.pop()
            self.marks.append((kind, before + data))

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)
