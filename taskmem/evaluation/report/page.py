"""report.html, put together: the inputs read, the charts drawn, the moments chosen, one template filled in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from taskmem.evaluation.protocols import Evidence
from taskmem.evaluation.report import words
from taskmem.evaluation.report.charts import Bar, Line, Row, bar_chart, forest, line_chart
from taskmem.evaluation.report.images import FramesOf, data_uri, pick_frames
from taskmem.evaluation.report.inputs import (
    AFTER,
    BEFORE,
    FOCUSED,
    LEARNED,
    TRAINING,
    Results,
    Run,
    Steps,
    Validation,
    Verdict,
    checked,
    read_results,
    read_steps,
    read_validation,
    read_watched,
)
from taskmem.evaluation.report.marking import AnswerText
from taskmem.evaluation.report.moments import Chosen, Moment, all_moments, choose
from taskmem.evaluation.report.verdicts import grids
from taskmem.files import atomic_write
from taskmem.policy.renderer import clock

TERM = "_reward"
PREFERENCE_CURVES = (
    ("loss", "Loss"),
    ("rewards/margins", "Margin between chosen and rejected"),
    ("rewards/accuracies", "Share of pairs ranked rightly"),
)


@dataclass(frozen=True)
class Picture:
    """One frame: where in the stream it was, and the image."""

    at: str
    uri: str


@dataclass(frozen=True)
class Scene:
    """A chosen moment with its frames."""

    chosen: Chosen
    frames: tuple[Picture, ...]


def write_report(run: Run, frames_of: FramesOf, evidence: Evidence | None, out: Path) -> None:
    """Write the report of `run` to `out`, one HTML file without any outside reference; the same inputs give the same bytes.

    `frames_of` gives a segment's frames, uint8 RGB [T, H, W, 3]. Without `evidence` the true answers' own words are
    marked. Curves of adapters that are missing and a verdict that was not given are said to be missing. Raises UserError
    where a file the report needs is missing or malformed, or an arm lacks a segment or a question.
    """
    results = read_results(run.results)
    watched = read_watched(run, tuple(results.arms))
    moments = all_moments(watched, evidence or AnswerText(), results.task)
    content = {
        **_headline(results),
        **_curves(run, list(results.arms)),
        **_gate(run.verdict),
        "feedback": run.feedback,
        "scenes": [Scene(chosen, _frames(chosen, frames_of)) for chosen in choose(moments)],
        "segments": len(watched.segments),
        "streams": len({segment.stream for segment in watched.segments}),
        "asked_about": len(moments),
        "counts": _counts(moments),
    }
    atomic_write(out, _templates().get_template("report.html").render(content))


def _headline(results: Results) -> dict[str, Any]:
    return {
        "results": results,
        "learned": results.paired[LEARNED],
        "focused": results.paired[FOCUSED],
        "before": BEFORE,
        "after": AFTER,
        "pairs": _pairs(results),
        "differences": _forests(results),
        "types": _types(results),
        "bars": _bars(results),
    }


def _curves(run: Run, arms: Sequence[str]) -> dict[str, Any]:
    logs = {arm: _adapter_steps(folder) for arm, folder in run.adapters.items()}
    return {
        "rewards": _reward_curves(read_steps(run.phase_one / TRAINING), read_validation(run.phase_one)),
        "preferences": _preference_curves({arm: log for arm, log in logs.items() if log}, arms),
        "without_curves": [arm for arm, log in logs.items() if not log],
    }


def _gate(record: Mapping[str, Any] | None) -> dict[str, Any]:
    if record is None:
        return {"verdict": None}
    verdict = checked(record, Verdict, "the gate's verdict")
    return {"verdict": verdict, "verdict_tables": grids(verdict.model_extra or {})}


def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    names = (
        "label",
        "note",
        "is_control",
        "percent",
        "points",
        "percent_range",
        "points_range",
        "change",
        "is_certain",
    )
    environment.filters.update({name: getattr(words, name) for name in names}, clock=clock)
    return environment


def _adapter_steps(folder: Path) -> Steps:
    path = folder / TRAINING
    return read_steps(path, "steps") if path.is_file() else []


def _styles(names: Sequence[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def _pairs(results: Results) -> list[tuple[str, str, Any]]:
    return [(*_split(name, results), paired) for name, paired in results.paired.items()]


def _split(name: str, results: Results) -> tuple[str, str]:
    """An arm's name may hold a hyphen itself: the two that results.json has are the right ones."""
    ways = [(name[:i], name[i + 1 :]) for i, c in enumerate(name) if c == "-"]
    return next((way for way in ways if {*way} <= results.arms.keys()), (name, ""))


def _forests(results: Results) -> list[Markup]:
    parts = {"All questions": "overall", f"The task's own questions ({results.task})": "on_task"}
    edges = [edge for p in results.paired.values() for d in (p.overall, p.on_task) for edge in d.ci95]
    drawn = []
    for title, part in parts.items():
        rows = []
        for arm, other, paired in _pairs(results):
            difference = getattr(paired, part)
            rows.append(Row(f"{words.label(arm)} {words.MINUS} {words.label(other)}", difference.mean, difference.ci95))
        drawn.append(forest(title, rows, min(edges), max(edges)))
    return drawn


def _types(results: Results) -> list[str]:
    """The question types, the task's first."""
    types = {kind for arm in results.arms.values() for kind in arm.by_type}
    return sorted(types, key=lambda kind: (kind != results.task, kind))


def _bars(results: Results) -> dict[str, Markup]:
    styles = _styles(list(results.arms))
    return {
        kind: bar_chart(
            f"Questions of type {kind}",
            [
                Bar(words.label(name), cell.accuracy, cell.ci95, styles[name], words.is_control(name))
                for name, arm in results.arms.items()
                if (cell := arm.by_type.get(kind))
            ],
        )
        for kind in _types(results)
    }


def _curve(name: str, steps: Steps, key: str, style: int) -> list[Line]:
    points = tuple((step["step"], step[key]) for step in steps if key in step and "step" in step)
    return [Line(name, points, style)] if points else []


def _reward_curves(steps: Steps, validation: Validation) -> dict[str, Markup]:
    terms = [key for key in steps[0] if key.endswith(TERM)]
    scores = [{"step": float(step), "score": score} for step, score in sorted(validation.scores.items())]
    panels = {
        "Reward, the sum of its terms": (_curve("reward", steps, "reward", 2), None),
        "Each term of the reward": (
            [c for i, key in enumerate(terms) for c in _curve(key.removesuffix(TERM), steps, key, i)],
            None,
        ),
        "Score on the development split": (_curve("score", scores, "score", 2), float(validation.picked)),
    }
    return {
        title: line_chart(title, lines, marked, f"taken: step {marked:g}" if marked is not None else "")
        for title, (lines, marked) in panels.items()
        if lines
    }


def _preference_curves(logs: Mapping[str, Steps], arms: Sequence[str]) -> dict[str, Markup]:
    styles = _styles([*arms, *(arm for arm in logs if arm not in arms)])
    panels = {}
    for key, title in PREFERENCE_CURVES:
        names = {arm: "own task" if arm == AFTER else words.label(arm).removeprefix("Control: ") for arm in logs}
        lines = [c for arm, log in logs.items() for c in _curve(names[arm], log, key, styles[arm])]
        if lines:
            panels[title] = line_chart(title, lines)
    return panels


def _counts(moments: Sequence[Moment]) -> dict[str, int]:
    """In how many segments Phase Two won or lost a question, of the task or another."""
    sides = {"won": (BEFORE, AFTER), "lost": (AFTER, BEFORE)}
    return {
        f"{whose}_{side}": sum(any((q.type == m.task) == (whose == "task") for q in m.turned(*arms)) for m in moments)
        for whose in ("task", "other")
        for side, arms in sides.items()
    }


def _frames(chosen: Chosen, frames_of: FramesOf) -> tuple[Picture, ...]:
    segment = chosen.moment.segment
    numbers, frames = pick_frames(frames_of(segment))
    # a clip has one frame per sampling interval, the first at the segment's start
    times = [clock(segment.start_s + number / segment.fps) for number in numbers]
    return tuple(Picture(at, data_uri(frame)) for at, frame in zip(times, frames, strict=True))
