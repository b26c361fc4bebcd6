"""results.json and its tables, from arms made by hand."""

import io
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from loop_parts import TASK, evaluation, write_arm, write_arms
from rich.console import Console

from taskmem.lineage.code import commit
from taskmem.loop.results import ARMS, PAIRED, arm_results, compare_arms, differences_table, results_table

MEASURE = ["asked", "answered", "correct", "accuracy", "coverage", "precision", "ci95"]


def results(root: Path) -> dict[str, Any]:
    arms = write_arms(root)
    return {
        "seed": 0,
        "task": TASK,
        "arms": {arm: arm_results(folder, TASK, evaluation(), 0) for arm, folder in arms.items()},
        "paired": compare_arms(arms, TASK, evaluation(), 0),
    }


def printed(table: Any) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_an_arm_has_its_measures_overall_on_the_task_and_by_type(tmp_path: Path) -> None:
    arm = arm_results(write_arm(tmp_path, {"door": "+0-", "room": "+++"}, 0.9, 0.1), TASK, evaluation(), 0)
    assert list(arm) == ["overall", "on_task", "by_type", "format_rate", "wrong_fact_rate"]
    assert list(arm["overall"]) == list(arm["on_task"]) == list(arm["by_type"]["room"]) == MEASURE
    assert [arm["overall"][name] for name in MEASURE[:3]] == [6, 5, 4]
    assert [arm["on_task"][name] for name in MEASURE[:3]] == [3, 2, 1]
    assert (arm["format_rate"], arm["wrong_fact_rate"]) == (0.9, 0.1)


def test_on_task_is_the_task_s_own_cell(tmp_path: Path) -> None:
    arm = arm_results(write_arm(tmp_path, {"door": "+0-", "room": "+++"}), TASK, evaluation(), 0)
    assert arm["on_task"] == arm["by_type"][TASK]


def test_accuracy_is_coverage_times_precision_in_every_cell(tmp_path: Path) -> None:
    arm = arm_results(write_arm(tmp_path, {"door": "+0-", "room": "000", "lamps": "-+-"}), TASK, evaluation(), 0)
    cells = [arm["overall"], arm["on_task"], *arm["by_type"].values()]
    assert len(cells) == 5
    for cell in cells:
        assert cell["accuracy"] == pytest.approx(cell["coverage"] * cell["precision"], abs=1e-12)


def test_the_paired_differences_are_those_of_the_accuracies(tmp_path: Path) -> None:
    paired = results(tmp_path)["paired"]
    assert list(paired) == [f"{a}-{b}" for a, b in PAIRED]
    assert paired["phase_one-base"]["overall"] == {"mean": 0.0, "ci95": [0.0, 0.0]}
    assert paired["phase_two-phase_one"]["overall"]["mean"] == pytest.approx(1 / 6)
    assert paired["phase_two-phase_one"]["on_task"]["mean"] == pytest.approx(1 / 3)
    low, high = paired["phase_two-phase_one"]["on_task"]["ci95"]
    assert 0 <= low <= 1 / 3 <= high <= 1


def test_the_arms_are_those_of_the_contract() -> None:
    assert ARMS == ("base", "task_prompt", "phase_one", "phase_two", "phase_two_other_task", "phase_two_random_pairs")
    assert {arm for pair in PAIRED for arm in pair} <= set(ARMS)


def test_the_results_fit_into_80_columns_whole(tmp_path: Path) -> None:
    text = printed(results_table(results(tmp_path)))
    assert "…" not in text
    assert f"({TASK})" in text
    rows = [line for line in text.splitlines() if line.startswith(ARMS)]
    assert [row.split()[0] for row in rows] == list(ARMS)
    assert rows[3].split()[1:] == ["0.500", "0.667", "0.750", "0.667", "0.667", "1.000", "0.500", "0.250"]


def test_the_differences_fit_into_80_columns_whole_even_the_widest(tmp_path: Path) -> None:
    widest = {"mean": -1.0, "ci95": [-1.0, -1.0]}
    wide = {"paired": {name: {"overall": widest, "on_task": widest} for name in results(tmp_path)["paired"]}}
    for given in (wide, results(tmp_path)):
        text = printed(differences_table(given))
        assert "…" not in text
        rows = [line for line in text.splitlines() if line.startswith("phase")]
        assert [tuple(row.split()[:2]) for row in rows] == list(PAIRED)
        assert all(row.count("[") == row.count("]") == 2 for row in rows)


def test_the_commit_names_this_checkout() -> None:
    here = Path(__file__).parent
    head = subprocess.run(["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        assert commit() == "unknown"
    else:
        assert re.fullmatch(f"{head.stdout.strip()}(-dirty)?", commit())
