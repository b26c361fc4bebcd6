"""taskmem gate and taskmem results: what they refuse, and the flat files that DVC reads."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipelines.cli import app
from taskmem.errors import UserError
from taskmem.records import write_json

MEASURES = {"accuracy": 0.5, "coverage": 0.6, "precision": 0.8}
SUMMARY = {"overall": MEASURES, "by_type": {"door": MEASURES}, "format_rate": 0.9, "wrong_fact_rate": 0.1}
VERDICT = {
    "promote": True,
    "win_test": {"wins": 4, "losses": 1, "ties": 2, "p_value": 0.25, "streams": 3},
    "gold": {"champion": 0.4, "challenger": 0.6, "asked": 20},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for arm in ("base", "gate", "again/base"):
        write_json(tmp_path / arm / "summary.json", SUMMARY)
    write_json(tmp_path / "verdict" / "verdict.json", VERDICT)
    return tmp_path


def told(line: str) -> Any:
    return CliRunner().invoke(app, line.split())


def test_results_are_one_flat_file_for_each_arm_and_one_for_the_gate(here: Path) -> None:
    assert told("results base --environment door --verdict verdict --out out").exit_code == 0
    read = {p.relative_to(here / "out").as_posix(): json.loads(p.read_text()) for p in (here / "out").rglob("*.json")}
    gate = {"promote": True, "wins": 4, "losses": 1, "ties": 2, "p_value": 0.25}
    assert read == {
        "base.json": {**MEASURES, "on_task": MEASURES, "format_rate": 0.9, "wrong_fact_rate": 0.1},
        "types/base.json": [{"type": "door", **MEASURES}],
        "gate.json": {**gate, "gold": {"champion": 0.4, "challenger": 0.6}},
    }


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "results base --environment room --verdict verdict --out out",
            "base: no questions of task room; it has those of: door",
        ),
        (
            "results base again/base --environment door --verdict verdict --out out",
            "each needs a folder name of its own",
        ),
        ("results gate --environment door --verdict verdict --out out", "none may be gate"),
        ("results nowhere --environment door --verdict verdict --out out", "nowhere/summary.json: cannot be read"),
        ("results base --environment door --verdict nowhere --out out", "nowhere/verdict.json: cannot be read"),
        (
            "gate a --policy p --champion c --segments s --questions q --feedback f --environment e --out out",
            "--world is missing",
        ),
        (
            "gate a --policy p --champion c --segments s --questions q --feedback f --environment e --world base --out out",
            "base: no truth.jsonl there",
        ),
    ],
)
def test_a_mistake_says_what_and_where(here: Path, line: str, says: str) -> None:
    error = told(line).exception
    assert isinstance(error, UserError)
    assert says in str(error)
    assert not (here / "out" / "gate.json").exists()
