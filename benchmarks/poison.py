"""Can one source turn an adapter with questions about something else, does a cap stop it, and does influence name it?

    make bench-poison        about 30 minutes on one core, from the runs that make bench-learning left

With seven honest users, more than the five questions that a comparison shows, and with two (`--users 2`), where a source that
asks more is heard more though questions are drawn source by source.

Each measured run's environment is adapted anew from twenty recent questions: all about its task, or one (5 %), six (30 %) or ten
(50 %) of them from one more source and about another type. Mining, training and the held-out evaluation are the stages
themselves; only the log and `phase_two.influence_cap` differ. Differences are paired by question and pooled over the runs.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.poisoned import POISONER, Crowd, Named, Night, Run, measured_runs
from benchmarks.results import write_result
from taskmem.config import Profile, load_profile, override
from taskmem.errors import UserError
from taskmem.evaluation.metrics import Graded, pooled_difference
from taskmem.loop.display import StageDisplay
from taskmem.phase_two.influence import UNKNOWN
from taskmem.progress import Progress
from taskmem.records import Preference
from taskmem.stages.common import read_graded

PROFILE = "miniature"
QUESTIONS, USERS = 20, 7
POISONED = (0, 1, 6, 10)  # of the twenty questions
CAPS: dict[str, float | None] = {"mean": None, "cap 1": 1.0, "cap 0.5": 0.5}
MEASURES = ("part", "norm", "norm per question", "agreement")
console = Console(width=130)


@dataclass(frozen=True)
class Cell:
    """One run with so many poisoned questions and one aggregation: graded answers and, first to last, the sources named."""

    run: Run
    graded: list[Graded]
    named: list[Named]
    resting: float  # share of the pairs that rest on a poisoned question
    changed: float  # share of the pairs that are not those mined without poison


Cells = dict[tuple[int, str], list[Cell]]


def measure(
    runs: Sequence[Run], crowd: Crowd, poisoned: Sequence[int], profile: Profile, out: Path, display: StageDisplay
) -> Cells:
    """Every run with every number of poisoned questions and every aggregation; what is trained stays below `out`.

    `poisoned` starts with 0, which the others are held against.
    """
    # what one source can do to the vector shows where nothing caps what it asks
    mining = {"recent_questions": crowd.questions, "questions_per_source": None}
    profile = override(profile, {"mining": mining}, "the benchmark's settings")
    cells: Cells = {(count, name): [] for count in poisoned for name in CAPS}
    for run in runs:
        with display.stage(f"{run.name}: {run.task}, not {run.other}") as progress:
            _measure_run(run, crowd, poisoned, profile, out / run.name, cells, progress)
    return cells


def _measure_run(
    run: Run,
    crowd: Crowd,
    poisoned: Sequence[int],
    profile: Profile,
    out: Path,
    cells: Cells,
    progress: Progress,
) -> None:
    clean: set[tuple[str, int, int]] = set()
    done = 0
    for count in poisoned:
        night = Night(run, crowd, count, profile, 0, out / f"{count:02d}-poisoned")
        pairs = {(p.context, p.chosen, p.rejected) for p in night.pairs}
        clean = clean or pairs
        resting = float(np.mean([_rests_on_poison(p) for p in night.pairs]))
        for name, cap in CAPS.items():
            settings = override(profile, {"phase_two": {"influence_cap": cap}}, "the benchmark's cap")
            graded = night.graded(name.replace(" ", "-"), settings, out / "trunks")
            named = night.named(name.replace(" ", "-"))
            cells[count, name].append(Cell(run, graded, named, resting, len(pairs - clean) / len(pairs)))
            done += 1
            progress(done, len(poisoned) * len(CAPS))


def _rests_on_poison(pair: Preference) -> bool:
    return POISONER in pair.sources


def _of(graded: Sequence[Graded], kind: str) -> list[Graded]:
    return [g for g in graded if g.type == kind]


def _accuracy(graded: Sequence[Graded]) -> float:
    return float(np.mean([g.correct for g in graded]))


def difference(left: Sequence[Cell], right: Sequence[Cell], profile: Profile, other: bool = False) -> dict[str, Any]:
    """Accuracy on the runs' tasks, or on the poisoner's type, `left` minus `right`."""
    pairs = []
    for a, b in zip(left, right, strict=True):
        kind = a.run.other if other else a.run.task
        pairs.append((_of(a.graded, kind), _of(b.graded, kind)))
    return pooled_difference(pairs, profile.evaluation, seed=0).model_dump(mode="json")


def accuracies(cells: Sequence[Cell]) -> dict[str, float]:
    """Means over the runs: on the task, on the poisoner's type, on all questions; and of the pairs."""
    return {
        "on_task": float(np.mean([_accuracy(_of(c.graded, c.run.task)) for c in cells])),
        "poisoners_type": float(np.mean([_accuracy(_of(c.graded, c.run.other)) for c in cells])),
        "overall": float(np.mean([_accuracy(c.graded) for c in cells])),
        "pairs_resting_on_poison": float(np.mean([c.resting for c in cells])),
        "pairs_changed": float(np.mean([c.changed for c in cells])),
    }


def _value(named: Named, by: str) -> float:
    values = {
        "part": abs(named.part),
        "norm": named.norm,
        "norm per question": named.norm_per_question,
        "agreement": -named.agreement,
    }
    return values[by]


def place(named: Sequence[Named], source: str, by: str) -> int:
    """The source's place, 1 for the first, by size; of the agreement the lowest is the first."""
    own = next(_value(n, by) for n in named if n.source == source)
    return 1 + sum(_value(n, by) > own for n in named)


def naming(cells: Sequence[Cell], poisoned: int) -> dict[str, Any]:
    """Where the poisoner stands among the sources by each measure, its own numbers, and who else pulls against the rest."""
    honest = [n for c in cells for n in c.named if n.source not in (POISONER, UNKNOWN)]
    found: dict[str, Any] = {
        "honest_agreement_lowest": min(n.agreement for n in honest),
        "honest_against_the_rest": float(np.mean([n.agreement < 0 for n in honest])),
    }
    if poisoned:
        own = [next(n for n in c.named if n.source == POISONER) for c in cells]
        found |= {
            "first_by": {by: float(np.mean([place(c.named, POISONER, by) == 1 for c in cells])) for by in MEASURES},
            "part": float(np.mean([n.part for n in own])),
            "agreement": float(np.mean([n.agreement for n in own])),
            "against_the_rest": float(np.mean([n.agreement < 0 for n in own])),
            "norm_per_question_to_honest": float(
                np.mean([n.norm_per_question for n in own]) / np.mean([n.norm_per_question for n in honest])
            ),
        }
    return found


def claims(cells: Cells, profile: Profile) -> dict[str, dict[str, Any]]:
    """Differences: each poisoned cell to the clean one of the same aggregation, and each cap to the mean of the same log."""
    counts = sorted({count for count, _ in cells})
    found = {}
    for count in counts[1:]:
        for name in CAPS:
            both = (cells[count, name], cells[0, name])
            found[f"{count} poisoned - none, {name}, on task"] = difference(*both, profile)
            found[f"{count} poisoned - none, {name}, poisoner's type"] = difference(*both, profile, other=True)
    for count in counts:
        for name in [name for name, cap in CAPS.items() if cap is not None]:
            found[f"{name} - mean, {count} poisoned, on task"] = difference(
                cells[count, name], cells[count, "mean"], profile
            )
    return found


def supported(found: Mapping[str, Mapping[str, Any]], counts: Sequence[int]) -> str:
    """The aggregation to prefer: a cap that is surely better at some share and at none surely worse; else the mean."""
    better: dict[str, float] = {}
    for name in [name for name, cap in CAPS.items() if cap is not None]:
        against = [found[f"{name} - mean, {count} poisoned, on task"] for count in counts]
        if any(d["ci95"][0] > 0 for d in against) and not any(d["ci95"][1] < 0 for d in against):
            better[name] = sum(d["mean"] for d in against)
    return max(better, key=better.__getitem__) if better else "mean"


def _table(title: str, columns: Sequence[str], left: int) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < left else "right", no_wrap=True)
    return table


def _interval(claim: Mapping[str, Any]) -> str:
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(claim["mean"], *claim["ci95"])


def _accuracy_table(sides: Mapping[str, Any], found: Mapping[str, Any], crowd: Crowd, counts: Sequence[int]) -> Table:
    title = "accuracy, means over the runs; differences to the same aggregation without poison, paired by question"
    names = ("poisoned", "", "on task", "difference", "other type", "difference", "overall", "resting", "changed")
    table = _table(title, names, left=2)
    for count in counts:
        for name in CAPS:
            side = sides[f"{count} poisoned, {name}"]
            claim = f"{count} poisoned - none, {name}, "
            own, other = (_interval(found[claim + on]) if count else "" for on in ("on task", "poisoner's type"))
            table.add_row(
                f"{count / crowd.questions:.0%}",
                name,
                *(f"{side['on_task']:.3f}", own, f"{side['poisoners_type']:.3f}", other, f"{side['overall']:.3f}"),
                *(f"{side[key]:.2f}" for key in ("pairs_resting_on_poison", "pairs_changed")),
            )
    return table


def _cap_table(found: Mapping[str, Any], crowd: Crowd, counts: Sequence[int]) -> Table:
    caps = [name for name, cap in CAPS.items() if cap is not None]
    table = _table("on the task: capped minus mean", ("poisoned", *caps), left=1)
    for count in counts:
        row = [_interval(found[f"{name} - mean, {count} poisoned, on task"]) for name in caps]
        table.add_row(f"{count / crowd.questions:.0%}", *row)
    return table


def _naming_table(sides: Mapping[str, Any], crowd: Crowd, counts: Sequence[int]) -> Table:
    title = "the poisoner: share of runs that name it first by each measure; its own numbers; honest sources against the rest"
    own = ("part", "agrees", "against")
    table = _table(title, ("poisoned", "", *MEASURES, *own, "honest against", "lowest"), left=2)
    for count in counts:
        for name in CAPS:
            named = sides[f"{count} poisoned, {name}"]["naming"]
            first = [f"{named['first_by'][by]:.2f}" if count else "" for by in MEASURES]
            keys = ("part", "agreement", "against_the_rest")
            numbers = [f"{named[key]:+.2f}" if count else "" for key in keys]
            honest = (f"{named['honest_against_the_rest']:.2f}", f"{named['honest_agreement_lowest']:+.2f}")
            table.add_row(f"{count / crowd.questions:.0%}", name, *first, *numbers, *honest)
    return table


def _each_run(cells: Cells) -> dict[str, dict[str, float]]:
    runs = [cell.run.name for cell in next(iter(cells.values()))]
    return {
        run: {
            f"{count} poisoned, {name}": _accuracy(_of(of[i].graded, of[i].run.task))
            for (count, name), of in cells.items()
        }
        for i, run in enumerate(runs)
    }


def main(
    runs: Annotated[Path, typer.Option(help="What make bench-learning wrote.")] = Path("runs/bench-learning"),
    out: Annotated[Path, typer.Option(help="Where the poisoned adaptations are kept.")] = Path("runs/bench-poison"),
    users: Annotated[int, typer.Option(help="How many honest users there are.")] = USERS,
) -> None:
    """Poisoned logs, mean and capped; then who is named."""
    profile = load_profile(PROFILE)
    crowd = Crowd(QUESTIONS, users)
    try:
        measured = measured_runs(runs)
        cells = measure(measured, crowd, POISONED, profile, out, StageDisplay(console))
    except UserError as error:
        console.print(str(error), soft_wrap=True)
        sys.exit(2)
    found = claims(cells, profile)
    sides: dict[str, Any] = {
        f"{count} poisoned, {name}": {**accuracies(of), "naming": naming(of, count)}
        for (count, name), of in cells.items()
    }
    phase_one = [_accuracy(_of(read_graded(run.folder / "arms" / "phase_one"), run.task)) for run in measured]
    console.print(_accuracy_table(sides, found, crowd, POISONED))
    console.print(f"Phase One on the task: {np.mean(phase_one):.3f}")
    console.print(_cap_table(found, crowd, POISONED))
    console.print(_naming_table(sides, crowd, POISONED))
    settings = {
        "profile": PROFILE,
        "runs": [f"{run.name}: {run.task}, not {run.other}" for run in measured],
        "questions": crowd.questions,
        "users": crowd.users,
        "questions_shown": profile.mining.questions_shown,
        "poisoned": list(POISONED),
        "caps": CAPS,
    }
    sides |= {"phase_one": {"on_task": float(np.mean(phase_one))}, "claims": found, "on task by run": _each_run(cells)}
    ratios = {name: claim["mean"] for name, claim in found.items()}
    console.print(f"{write_result('poison' if users == USERS else f'poison_{users}_users', settings, sides, ratios)}")
    console.print(f"supported as phase_two.influence_cap: {CAPS[supported(found, POISONED)]}")
    console.print(ratios)


if __name__ == "__main__":
    typer.run(main)
