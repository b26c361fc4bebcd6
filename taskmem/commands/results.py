"""taskmem results: evaluated arms as the few numbers and curves that one compares between experiments."""

# ruff: noqa: PLC0415 - a command imports its stage when it runs, so that --help is quick

from pathlib import Path
from typing import Annotated, Any

import typer

from taskmem.cli import Out
from taskmem.errors import UserError
from taskmem.records import read_json, write_json
from taskmem.saying import say

MEASURES = ("accuracy", "coverage", "precision")
GATE = "gate"
RATES = ("format_rate", "wrong_fact_rate")


def results(
    arms: Annotated[list[Path], typer.Argument(help="Folders that `taskmem evaluate` wrote, named like their arms.")],
    environment: Annotated[str, typer.Option("--environment", help="The task whose questions are told apart.")],
    verdict: Annotated[Path, typer.Option("--verdict", help="Folder that `taskmem gate` wrote.")],
    out: Out,
) -> None:
    """Write ARM.json and types/ARM.json for each arm, and gate.json: flat files, as DVC's metrics and plots want them."""
    from taskmem.stages.common import SUMMARY
    from taskmem.stages.gate import VERDICT

    if len({arm.name for arm in arms} | {GATE}) <= len(arms):
        raise UserError(
            f"arms {', '.join(map(str, arms))}: each needs a folder name of its own, and none may be {GATE}"
        )
    for arm in arms:
        summary = read_json(arm / SUMMARY)
        write_json(out / f"{arm.name}.json", _metrics(summary, environment, arm))
        write_json(out / "types" / f"{arm.name}.json", _types(summary))
    write_json(out / f"{GATE}.json", _gate(read_json(verdict / VERDICT)))
    say(out)


def _metrics(summary: dict[str, Any], environment: str, arm: Path) -> dict[str, Any]:
    by_type = summary["by_type"]
    if environment not in by_type:
        raise UserError(f"{arm}: no questions of task {environment}; it has those of: {', '.join(by_type)}")
    overall, on_task = ({name: part[name] for name in MEASURES} for part in (summary["overall"], by_type[environment]))
    return {**overall, "on_task": on_task, **{name: summary[name] for name in RATES}}


def _types(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"type": kind, **{name: m[name] for name in MEASURES}} for kind, m in summary["by_type"].items()]


def _gate(verdict: dict[str, Any]) -> dict[str, Any]:
    test, gold = verdict["win_test"], verdict["gold"]
    counts = {name: test[name] for name in ("wins", "losses", "ties", "p_value")}
    return {"promote": verdict["promote"], **counts, "gold": {name: gold[name] for name in ("champion", "challenger")}}
