"""Does the policy learn what to remember? Five seeds on each of two bases, every arm on the same held-out questions.

    make bench-learning          about 20 minutes on two cores; runs/bench-learning keeps what is done

The two bases are the shipped one and one rebuilt from another seed by the same recipe. Differences are paired by question; the
intervals resample runs and then streams within a run.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.results import write_result
from taskmem.cli import shipped_base
from taskmem.config import load_profile
from taskmem.evaluation.metrics import Graded, pooled_difference
from taskmem.loop.results import ARMS
from taskmem.records import read_json
from taskmem.stages.common import read_graded

SECOND_BASE_SEED = 1
Runs = list[tuple[Path, dict[str, Any]]]
console = Console(width=120)


def _command(*arguments: str, log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with log.open("w") as handle:
        done = subprocess.run(
            [sys.executable, "-m", "pipelines.cli", *arguments],
            stdout=handle,
            stderr=handle,
            env=environment,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"taskmem {' '.join(arguments)} failed with {done.returncode}; see {log}")


def _all_runs(work: Path, seeds: int, jobs: int) -> Runs:
    second = work / "second_base"
    if not second.exists():
        console.print(f"pretraining the second base (seed {SECOND_BASE_SEED})")
        _command("world", "pretrain", "--seed", str(SECOND_BASE_SEED), "--out", str(second), log=work / "pretrain.log")
    plan = [
        (name, base, seed) for seed in range(seeds) for name, base in (("shipped", shipped_base()), ("second", second))
    ]

    def one(run: tuple[str, Path, int]) -> tuple[Path, dict[str, Any]]:
        name, base, seed = run
        out = work / f"{name}-{seed}"
        _command("loop", "--seed", str(seed), "--base", str(base), "--out", str(out), log=work / f"{name}-{seed}.log")
        results = read_json(out / "results.json")
        console.print(f"{out.name}: task {results['task']}, {sum(results['seconds'].values()):.0f} s")
        return out, results

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, plan))


def _graded(run: Path, arm: str, task: str | None) -> list[Graded]:
    return [g for g in read_graded(run / "arms" / arm) if task is None or g.type == task]


def _pooled(runs: Runs, left: str, right: str, on_task: bool) -> dict[str, Any]:
    pairs = []
    for run, results in runs:
        task = results["task"] if on_task else None
        pairs.append((_graded(run, left, task), _graded(run, right, task)))
    return pooled_difference(pairs, load_profile("miniature").evaluation, seed=0).model_dump(mode="json")


def _claims(runs: Runs) -> dict[str, dict[str, Any]]:
    return {
        "phase_one - base, overall": _pooled(runs, "phase_one", "base", on_task=False),
        "task_prompt - base, on task": _pooled(runs, "task_prompt", "base", on_task=True),
        "phase_two - phase_one, overall": _pooled(runs, "phase_two", "phase_one", on_task=False),
        "phase_two - phase_one, on task": _pooled(runs, "phase_two", "phase_one", on_task=True),
        "phase_two - random pairs, on task": _pooled(runs, "phase_two", "phase_two_random_pairs", on_task=True),
        "phase_two - other task, on task": _pooled(runs, "phase_two", "phase_two_other_task", on_task=True),
    }


def _arm_means(runs: Runs) -> dict[str, dict[str, Any]]:
    count = len(runs)

    def mean(arm: str, *path: str) -> float:
        total = 0.0
        for _, results in runs:
            value = results["arms"][arm]
            for step in path:
                value = value[step]
            total += value
        return total / count

    types = sorted(runs[0][1]["arms"]["base"]["by_type"])
    return {
        arm: {
            "overall": mean(arm, "overall", "accuracy"),
            "on_task": mean(arm, "on_task", "accuracy"),
            "by_type": {kind: mean(arm, "by_type", kind, "accuracy") for kind in types},
            "format_rate": mean(arm, "format_rate"),
            "wrong_fact_rate": mean(arm, "wrong_fact_rate"),
        }
        for arm in ARMS
    }


def _run_table(runs: Runs) -> Table:
    table = _table("accuracy per run: all questions / the task's own")
    for name in ("run", "task", *(arm.removeprefix("phase_two_") for arm in ARMS), "s"):
        table.add_column(name, justify="left" if name in ("run", "task") else "right", no_wrap=True)
    for run, results in runs:
        cells = [f"{a['overall']['accuracy']:.3f}/{a['on_task']['accuracy']:.3f}" for a in results["arms"].values()]
        table.add_row(run.name, results["task"], *cells, f"{sum(results['seconds'].values()):.0f}")
    return table


def _arm_table(means: dict[str, dict[str, Any]]) -> Table:
    types = sorted(means["base"]["by_type"])
    table = _table("pooled means: accuracy overall, on the task, by question type; format kept, wrong facts")
    for name in ("arm", "overall", "on task", *types, "format", "wrong"):
        table.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
    for arm, m in means.items():
        kinds = [f"{m['by_type'][kind]:.3f}" for kind in types]
        rates = [f"{m[name]:.3f}" for name in ("format_rate", "wrong_fact_rate")]
        table.add_row(arm, f"{m['overall']:.3f}", f"{m['on_task']:.3f}", *kinds, *rates)
    return table


def _claim_table(claims: dict[str, dict[str, Any]]) -> Table:
    table = _table("pooled differences in accuracy, paired by question")
    for name in ("difference", "mean", "interval"):
        table.add_column(name, justify="left" if name == "difference" else "right", no_wrap=True)
    for name, claim in claims.items():
        table.add_row(name, f"{claim['mean']:+.3f}", "[{:+.3f}, {:+.3f}]".format(*claim["ci95"]))
    return table


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False
    )


def _identity_holds(runs: Sequence[tuple[Path, dict[str, Any]]]) -> bool:
    cells = [
        cell
        for _, results in runs
        for arm in results["arms"].values()
        for cell in (arm["overall"], arm["on_task"], *arm["by_type"].values())
    ]
    return all(abs(c["accuracy"] - c["coverage"] * c["precision"]) < 1e-12 for c in cells)


def main(
    seeds: Annotated[int, typer.Option(help="Seeds per base.")] = 5,
    jobs: Annotated[int, typer.Option(help="Runs at the same time, one thread each.")] = 2,
    out: Annotated[Path, typer.Option(help="Where the runs are kept.")] = Path("runs/bench-learning"),
) -> None:
    """Run every seed on both bases and pool."""
    runs = _all_runs(out, seeds, jobs)
    means, claims = _arm_means(runs), _claims(runs)
    console.print(_run_table(runs))
    console.print(_arm_table(means))
    console.print(_claim_table(claims))
    console.print(f"accuracy = coverage x precision in every cell: {_identity_holds(runs)}")
    worst = min(means["phase_one"]["by_type"][k] - means["base"]["by_type"][k] for k in means["base"]["by_type"])
    console.print(f"largest fall of a question type from base to Phase One: {min(0.0, worst):+.3f}")
    settings = {"seeds": seeds, "bases": ["shipped", f"seed {SECOND_BASE_SEED}"], "profile": "miniature"}
    differences = {name: claim["mean"] for name, claim in claims.items()}
    path = write_result("learning", settings, {"arms": means, "claims": claims}, differences)
    console.print(f"{path}")
    console.print(differences)


if __name__ == "__main__":
    typer.run(main)
