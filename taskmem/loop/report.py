"""The last step of a run: results.json, the page and the table that people read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskmem.backends import Backends, backends_for
from taskmem.config import Profile
from taskmem.evaluation.report.inputs import Run
from taskmem.evaluation.report.page import write_report
from taskmem.feedback import read_collection
from taskmem.files import atomic_write, sha256_tree
from taskmem.lineage.outcome import OUTCOMES, Outcome
from taskmem.loop.results import loop_results, markdown_table
from taskmem.loop.tasks import ADAPTED, ADAPTER, OWN
from taskmem.records import Question, read_json, read_records, write_json
from taskmem.stages.common import QUESTIONS, footage
from taskmem.stages.gate import VERDICT

RESULTS = "results.json"


@dataclass(frozen=True)
class ReportPaths:
    """Folders that a run left: `adapters` and `verdicts` one for each shard, the others as their stages wrote them."""

    base: Path
    arms: Mapping[str, Path]
    adapters: Sequence[Path]
    verdicts: Sequence[Path]
    training: Path
    segments: Path
    questions: Path
    feedback: Path


def write_run(
    paths: ReportPaths,
    task: str,
    backends: Backends,
    profile: Profile,
    seed: int,
    results: Path,
    report: Path,
    table: Path,
) -> dict[str, float]:
    """Write `results`/results.json, the HTML page `report` and the Markdown `table`; return the accuracies by arm."""
    measured = loop_results(paths.arms, task, sha256_tree(paths.base), profile, seed, {})
    write_json(results / RESULTS, measured)
    film = footage(paths.segments, profile)
    run = Run(
        results=measured,
        phase_one=paths.training,
        adapters={outcome.name: shard / outcome.name for shard in paths.adapters for outcome in _outcomes(shard)},
        arms=paths.arms,
        segments=paths.segments,
        questions=paths.questions,
        feedback=_recent(paths.feedback, task),
        verdict=_verdict(paths.verdicts),
    )
    write_report(run, film.frames_of, backends.evidence, report)
    atomic_write(table, markdown_table(measured))
    return {f"{arm}_accuracy": measures["overall"]["accuracy"] for arm, measures in measured["arms"].items()}


def loop_report(run: Path, profile: Profile, report: Path) -> None:
    """Write the HTML page of a finished `taskmem loop` in the folder `run`, without a verdict: the loop promotes nothing."""
    results = read_json(run / RESULTS)
    film = footage(run / "segments" / "held_out", profile)
    shown = Run(
        results=results,
        phase_one=run / "phase_one",
        adapters={arm: run / "adapters" / arm / ADAPTER for arm in ADAPTED},
        arms={arm: run / "arms" / arm for arm in results["arms"]},
        segments=run / "segments" / "held_out",
        questions=run / "world" / "held_out" / QUESTIONS,
        feedback=read_collection(run / "feedback").questions.get(results["task"], ()),
    )
    write_report(shown, film.frames_of, backends_for(profile, run / "world").evidence, report)


def _outcomes(shard: Path) -> list[Outcome]:
    return read_records(shard / OUTCOMES, Outcome)


def _recent(feedback: Path, task: str) -> tuple[Question, ...]:
    ready = [o.name for o in _outcomes(feedback) if o.environment == task and o.status == "ready"]
    return read_collection(feedback / ready[0]).questions.get(task, ()) if ready else ()


def _verdict(verdicts: Sequence[Path]) -> Mapping[str, Any] | None:
    """That of the task's own adapter, if it came as far as the gate."""
    found = [path for folder in verdicts if (path := folder / OWN / VERDICT).exists()]
    return read_json(found[0]) if found else None
