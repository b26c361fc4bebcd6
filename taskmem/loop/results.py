"""results.json: what the loop measured, in a stable shape that other tools read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from taskmem.config import EvaluationSettings, Profile
from taskmem.errors import UserError
from taskmem.evaluation.metrics import Graded, measure, paired_difference
from taskmem.lineage.code import commit
from taskmem.lineage.outcome import Outcome
from taskmem.records import read_json
from taskmem.stages.common import SUMMARY, read_graded

ARMS = ("base", "task_prompt", "phase_one", "phase_two", "phase_two_other_task", "phase_two_random_pairs")
PAIRED = (
    ("phase_one", "base"),
    ("phase_two", "phase_one"),
    ("phase_two_other_task", "phase_one"),
    ("phase_two_random_pairs", "phase_one"),
)


def _on(graded: Sequence[Graded], task: str) -> list[Graded]:
    return [g for g in graded if g.type == task]


def arm_results(folder: Path, task: str, settings: EvaluationSettings, seed: int) -> dict[str, Any]:
    """One arm: overall, on the task, by type, and its rates."""
    summary = read_json(folder / SUMMARY)
    return {
        "overall": summary["overall"],
        "on_task": measure(_on(read_graded(folder), task), settings, seed).model_dump(mode="json"),
        "by_type": summary["by_type"],
        "format_rate": summary["format_rate"],
        "wrong_fact_rate": summary["wrong_fact_rate"],
    }


def compare_arms(folders: Mapping[str, Path], task: str, settings: EvaluationSettings, seed: int) -> dict[str, Any]:
    """The paired differences of `PAIRED`, overall and on the task."""
    graded = {arm: read_graded(folder) for arm, folder in folders.items()}
    return {
        f"{a}-{b}": {
            "overall": paired_difference(graded[a], graded[b], settings, seed).model_dump(mode="json"),
            "on_task": paired_difference(_on(graded[a], task), _on(graded[b], task), settings, seed).model_dump(
                mode="json"
            ),
        }
        for a, b in PAIRED
    }


def loop_results(
    arms: Mapping[str, Path],
    task: str,
    base: str,
    profile: Profile,
    seed: int,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The content of results.json: `arms` are evaluated arms' folders, `base` the base policy's digest."""
    missing = [arm for arm in ARMS if arm not in arms]
    if missing:
        raise UserError(f"results: no evaluation of the arms {', '.join(missing)}; run those stages first")
    settings, folders = profile.evaluation, {arm: arms[arm] for arm in ARMS}
    return {
        "schema": 1,
        "seed": seed,
        "base": base,
        "profile": profile.name,
        "commit": commit(),
        "seconds": dict(seconds),
        "task": task,
        "arms": {arm: arm_results(folder, task, settings, seed) for arm, folder in folders.items()},
        "paired": compare_arms(folders, task, settings, seed),
    }


def results_table(results: Mapping[str, Any]) -> Table:
    """Accuracy, coverage and precision of every arm, overall and on the deployment's task."""
    table = _table(f"seed {results['seed']}, held-out streams: all questions | the task's own ({results['task']})")
    table.add_column("arm", no_wrap=True)
    for name in ("acc", "cov", "prec", "acc", "cov", "prec", "format", "wrong"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, arm in results["arms"].items():
        cells = [
            f"{arm[part][m]:.3f}" for part in ("overall", "on_task") for m in ("accuracy", "coverage", "precision")
        ]
        table.add_row(name, *cells, f"{arm['format_rate']:.3f}", f"{arm['wrong_fact_rate']:.3f}")
    return table


def differences_table(results: Mapping[str, Any]) -> Table:
    """The paired differences with their intervals."""
    table = _table("difference in accuracy (95 % interval)")
    table.add_column("arm", no_wrap=True)
    table.add_column("less", no_wrap=True)
    for name in ("overall", "on task"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, difference in results["paired"].items():
        table.add_row(*name.split("-"), *(_interval(difference[part]) for part in ("overall", "on_task")))
    return table


def outcomes_table(outcomes: Sequence[Outcome], title: str = "adapters: what the gate said") -> Table:
    """What became of every environment, and why."""
    table = _table(title)
    for name in ("environment", "adapter", "outcome"):
        table.add_column(name, no_wrap=True)
    table.add_column("reason", overflow="fold")
    for outcome in outcomes:
        table.add_row(outcome.environment, outcome.name, outcome.status, Text(outcome.reason))
    return table


def markdown_table(results: Mapping[str, Any]) -> str:
    """The arms as a Markdown table."""
    parts = [(part, m) for part in ("overall", "on_task") for m in ("accuracy", "coverage", "precision")]
    rows = [
        f"| {name} | {' | '.join(f'{arm[part][m]:.3f}' for part, m in parts)} |"
        for name, arm in results["arms"].items()
    ]
    head = f"| arm | {' | '.join(f'{part} {m}'.replace('_', ' ') for part, m in parts)} |"
    return "\n".join([head, f"|---{'|---' * len(parts)}|", *rows]) + "\n"


def _table(title: str) -> Table:
    # narrow enough for a terminal of 80 columns
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)


def _interval(difference: Mapping[str, Any]) -> str:
    low, high = difference["ci95"]
    return f"{difference['mean']:+.3f} [{low:+.2f}, {high:+.2f}]"
