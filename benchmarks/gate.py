"""Does the gate promote a challenger that is no better, and does it see one that is?

    make bench-gate          a few minutes on one core, from the runs that make bench-learning left

A night is one call of the gate's own `decide` on streams drawn with replacement from one measured run. On a null night each
stream's two arms are swapped with probability 1/2: the arms are equal by construction, and how often contexts, qualities and
answers differ, and how much those of one stream go together, is as measured. True gain comes from mixing in streams of the
measured champion (Phase One) against the measured challenger (Phase Two), unswapped. What the measured challengers lose in
fidelity or coverage is mixed in with what they win, so the win test's power stands beside the whole gate's.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from benchmarks.results import write_result
from taskmem.backends import backends_for
from taskmem.config import Profile, load_profile
from taskmem.errors import UserError
from taskmem.evaluation.gate import GatedContext, Quality, QuestionKey, Trial, Verdict, decide, sign_flip
from taskmem.evaluation.metrics import Graded
from taskmem.records import read_json
from taskmem.stages.common import QUESTIONS
from taskmem.stages.gate import weigh

PROFILE = "miniature"
CHAMPION, CHALLENGER, RANDOM = "phase_one", "phase_two", "phase_two_random_pairs"
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
STREAMS = (6, 12, 24, 48, 96)
NIGHT = 24  # streams of a measured run, and of a null night
REQUIREMENTS = ("unscored", "evidence", "win", "format", "faithful", "non_redundant", "coverage", "gold")
Null = Literal["random pairs", "own task"]
Nulls: tuple[Null, ...] = ("random pairs", "own task")
console = Console(width=140)


@dataclass(frozen=True)
class Stream:
    """What the gate sees of one held-out stream."""

    contexts: tuple[GatedContext, ...]
    champion: tuple[Graded, ...]
    challenger: tuple[Graded, ...]
    gold: frozenset[QuestionKey]

    def swapped(self) -> "Stream":
        """The arms the other way round."""
        return Stream(tuple(map(_swapped, self.contexts)), self.challenger, self.champion, self.gold)

    def named(self, name: str) -> "Stream":
        """The same under another name, so that a stream may be drawn twice."""
        return Stream(
            tuple(c.model_copy(update={"stream": name}) for c in self.contexts),
            tuple(replace(g, stream=name) for g in self.champion),
            tuple(replace(g, stream=name) for g in self.challenger),
            frozenset((environment, name, kind, question) for environment, _, kind, question in self.gold),
        )


def _swapped(context: GatedContext) -> GatedContext:
    other = {"champion": "challenger", "challenger": "champion"}
    return context.model_copy(
        update={
            "outcome": other.get(str(context.outcome), context.outcome),
            "champion": context.challenger,
            "challenger": context.champion,
        }
    )


def streams_of(trial: Trial) -> list[Stream]:
    """A trial, stream by stream."""
    return [
        Stream(
            tuple(c for c in trial.contexts if c.stream == name),
            tuple(g for g in trial.champion if g.stream == name),
            tuple(g for g in trial.challenger if g.stream == name),
            frozenset(key for key in trial.gold if key[1] == name),
        )
        for name in sorted({c.stream for c in trial.contexts})
    ]


class Run:
    """One measured run: Phase One against Phase Two (`own`) and against the random control (`random`), and nights of it."""

    def __init__(self, folder: Path, profile: Profile) -> None:
        self.name = folder.name
        self.task: str = read_json(folder / "results.json")["task"]
        self._profile = profile
        self.own, self.random = (self._weigh(folder, arm) for arm in (CHALLENGER, RANDOM))
        self._streams = {"own task": streams_of(self.own), "random pairs": streams_of(self.random)}
        self._copies: dict[tuple[str, int, bool, int], Stream] = {}

    def _weigh(self, folder: Path, arm: str) -> Trial:
        return weigh(
            folder / "arms" / CHAMPION,
            folder / "arms" / arm,
            folder / "segments" / "held_out",
            folder / "world" / "held_out" / QUESTIONS,
            folder / "feedback",
            self.task,
            backends_for(self._profile, folder / "world").judges,
            self._profile,
            seed=0,
        )

    def decide(self, trial: Trial, seed: int) -> Verdict:
        """The gate's verdict."""
        return decide(trial, self._profile.gate, self._profile.evaluation, seed)

    def night(self, rng: np.random.Generator, null: Null, streams: int, share: float) -> Verdict:
        """A night of `streams` streams: each shows the measured gain with probability `share`, else equal arms."""
        drawn: list[Stream] = []
        copies: Counter[int] = Counter()
        for source in rng.integers(len(self._streams[null]), size=streams).tolist():
            gains, swap = rng.random() < share, rng.random() < 0.5
            kind = "own task" if gains else null
            drawn.append(self._copy(kind, source, swap and not gains, copies[source]))
            copies[source] += 1
        trial = Trial(
            environment=self.task,
            contexts=[c for stream in drawn for c in stream.contexts],
            champion=[g for stream in drawn for g in stream.champion],
            challenger=[g for stream in drawn for g in stream.challenger],
            asked=self.own.asked,
            gold=frozenset().union(*(stream.gold for stream in drawn)),
        )
        return self.decide(trial, int(rng.integers(2**31)))

    def _copy(self, kind: str, source: int, swap: bool, copy: int) -> Stream:
        key = (kind, source, swap, copy)
        if key not in self._copies:
            stream = self._streams[kind][source]
            named = stream.named(f"{stream.contexts[0].stream}.{copy}")
            self._copies[key] = named.swapped() if swap else named
        return self._copies[key]


def measured_runs(folder: Path, profile: Profile) -> list[Run]:
    """The finished runs of bench-learning; UserError if there are none."""
    done = sorted(path.parent for path in folder.glob("*/results.json"))
    if not done:
        raise UserError(f"{folder}: no finished runs there; run make bench-learning first, or give --runs")
    return [Run(path, profile) for path in done]


def failed(verdict: Verdict) -> set[str]:
    """The requirements, of `REQUIREMENTS`, that a verdict says were not met."""
    test, gold = verdict.win_test, verdict.gold
    enough = test.wins + test.losses - test.by_grammar >= test.least_wins and test.streams >= test.least_streams
    met = {
        "unscored": verdict.unscored.passed,
        "evidence": enough and gold.asked >= gold.least,
        "win": test.passed,
        **{name: bound.passed for name, bound in verdict.quality.items()},
        "coverage": all(bound.passed for bound in verdict.coverage.values()),
        "gold": gold.passed,
    }
    return {name for name in REQUIREMENTS if not met[name]}


def _naive(verdict: Verdict) -> float:
    """The p-value of the same wins and losses, had every context a stream of its own."""
    return sign_flip([1] * verdict.win_test.wins + [-1] * verdict.win_test.losses)


def shares(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """How often the gate promoted, how often the win test alone would have (also had it taken the contexts of a stream as
    independent), and how often each requirement refused.
    """
    refusals = Counter(name for verdict in verdicts for name in failed(verdict))
    return {
        "nights": len(verdicts),
        "promoted": sum(v.promote for v in verdicts) / len(verdicts),
        "win_test_alone": sum(v.win_test.passed for v in verdicts) / len(verdicts),
        "as_if_contexts_were_independent": sum(_naive(v) <= 1 - v.confidence for v in verdicts) / len(verdicts),
        "refused_by": {name: refusals[name] / len(verdicts) for name in REQUIREMENTS},
    }


def nights(runs: Sequence[Run], null: Null, count: int, streams: int, share: float, seed: int) -> dict[str, Any]:
    """`count` nights, the runs taking turns."""
    rng = np.random.default_rng([seed, Nulls.index(null), streams, int(100 * share)])
    return shares([runs[n % len(runs)].night(rng, null, streams, share) for n in range(count)])


def discordance(pairs: Sequence[Trial]) -> dict[str, float]:
    """How often two measured arms differ, and how much the contexts of one stream go together.

    `variance_inflation` is the variance of a stream's wins minus losses over that of as many independent contexts.
    """
    contexts = [c for e in pairs for c in e.contexts]
    decided = sum(c.outcome != "tie" for c in contexts)
    nets: Counter[tuple[int, str]] = Counter()
    for number, trial in enumerate(pairs):
        for c in trial.contexts:
            nets[number, c.stream] += {"challenger": 1, "champion": -1}.get(str(c.outcome), 0)
    inflation = sum(net * net for net in nets.values()) / decided
    answers = [pair for e in pairs for pair in _pairs(e)]
    return {
        "decided": decided / len(contexts),
        "variance_inflation": inflation,
        "correlation_in_stream": (inflation - 1) / (decided / len(nets) - 1),
        **{name: _differ(contexts, _quality_of(name)) for name in ("format", "faithful", "non_redundant")},
        "gold_correct": _mean(a.correct != b.correct for e in pairs for a, b in _pairs(e) if a.key in e.gold),
        "answered": _mean(a.answered != b.answered for a, b in answers),
    }


def _pairs(trial: Trial) -> Iterable[tuple[Graded, Graded]]:
    other = {g.key: g for g in trial.challenger}
    return ((g, other[g.key]) for g in trial.champion)


def _mean(values: Iterable[bool]) -> float:
    return float(np.mean([*values]))


def _quality_of(name: str) -> Callable[[Quality | None], bool | None]:
    return lambda quality: getattr(quality, name)


def _differ(contexts: Sequence[GatedContext], of: Callable[[Quality | None], bool | None]) -> float:
    both = [(of(c.champion), of(c.challenger)) for c in contexts if c.reason is None]
    return _mean(a != b for a, b in both if a is not None and b is not None)


def _figures(verdict: Verdict) -> dict[str, Any]:
    """The numbers of one verdict that the table and the result file show."""
    test = verdict.win_test
    return {
        "promote": verdict.promote,
        "wins": test.wins,
        "losses": test.losses,
        "ties": test.ties,
        "p_value": test.p_value,
        **{f"{name}_fall": bound.fall for name, bound in verdict.quality.items()},
        "largest_coverage_fall": max((bound.fall for bound in verdict.coverage.values()), default=0.0),
        "gold_difference": verdict.gold.difference,
        "gold_limit": verdict.gold.interval[1],
        "reasons": list(verdict.reasons),
    }


def _table(title: str, columns: Sequence[str], left: int) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < left else "right", no_wrap=True)
    return table


def _run_table(title: str, verdicts: dict[str, Verdict], runs: Sequence[Run]) -> Table:
    names = ("run", "task", "promote", "won", "lost", "tied", "p", "format", "faithful", "non-red.", "coverage", "gold")
    table = _table(title, (*names, "refused by"), left=3)
    for run in runs:
        verdict = verdicts[run.name]
        f = _figures(verdict)
        falls = [f[f"{name}_fall"] for name in ("format", "faithful", "non_redundant")]
        counts = [str(f[name]) for name in ("wins", "losses", "ties")]
        numbers = [f"{x:+.3f}" for x in (*falls, f["largest_coverage_fall"], f["gold_difference"])]
        by = ", ".join(name for name in REQUIREMENTS if name in failed(verdict))
        table.add_row(run.name, run.task, "yes" if f["promote"] else "no", *counts, f"{f['p_value']:.2g}", *numbers, by)
    return table


def _shares_table(title: str, rows: dict[str, dict[str, Any]]) -> Table:
    table = _table(title, ("arms", "promoted", "win test", "naive test", *REQUIREMENTS), left=1)
    for name, row in rows.items():
        refused = [f"{row['refused_by'][requirement]:.3f}" for requirement in REQUIREMENTS]
        tests = [row[key] for key in ("promoted", "win_test_alone", "as_if_contexts_were_independent")]
        table.add_row(name, *(f"{share:.4f}" for share in tests), *refused)
    return table


def _power_table(cells: dict[str, dict[str, Any]], gains: dict[str, float]) -> Table:
    title = "power: share promoted / share that the win test alone passes, by true gain and held-out streams"
    columns = ("mixed in", "net wins", "on task", *(f"{streams} streams" for streams in STREAMS))
    table = _table(title, columns, left=0)
    for share in SHARES:
        row = [cells[f"gain {share:g}, {streams} streams"] for streams in STREAMS]
        shown = [f"{cell['promoted']:.3f} / {cell['win_test_alone']:.3f}" for cell in row]
        table.add_row(f"{share:g}", *(f"{share * gains[name]:+.3f}" for name in ("net_wins", "on_task")), *shown)
    return table


def _gains(runs: Sequence[Run], verdicts: dict[str, Verdict]) -> dict[str, float]:
    """The measured gain of Phase Two: wins minus losses per context, and accuracy on the task's questions."""
    won = [verdicts[run.name].win_test for run in runs]
    return {
        "net_wins": float(np.mean([(t.wins - t.losses) / (t.wins + t.losses + t.ties) for t in won])),
        "on_task": float(np.mean([verdicts[run.name].gold.difference for run in runs])),
    }


def _simulate(
    measured: Sequence[Run], null_nights: int, power_nights: int, seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The null nights, by the arms that were swapped, and the power curve's cells."""
    null = {f"swapped {n}": nights(measured, n, null_nights, NIGHT, 0.0, seed) for n in Nulls}
    power = {
        f"gain {share:g}, {streams} streams": nights(measured, "random pairs", power_nights, streams, share, seed + 1)
        for share in SHARES
        for streams in STREAMS
    }
    return null, power


def _ratios(null: dict[str, dict[str, Any]], level: float, count: int) -> dict[str, float]:
    """False positives of the gate and of its win test alone; `allowed` is the level plus two standard errors."""
    return {
        **{f"promoted though equal, {name}": row["promoted"] for name, row in null.items()},
        **{f"win test alone though equal, {name}": row["win_test_alone"] for name, row in null.items()},
        "allowed": level + 2 * math.sqrt(level * (1 - level) / count),
    }


def main(
    runs: Annotated[Path, typer.Option(help="What make bench-learning wrote.")] = Path("runs/bench-learning"),
    null_nights: Annotated[int, typer.Option(help="Nights with a challenger equal to the champion.")] = 2000,
    power_nights: Annotated[int, typer.Option(help="Nights for each cell of the power curve.")] = 400,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Measured verdicts, false positives, power."""
    profile = load_profile(PROFILE)
    try:
        measured = measured_runs(runs, profile)
    except UserError as error:
        console.print(str(error), soft_wrap=True)
        sys.exit(2)
    own = {run.name: run.decide(run.own, seed) for run in measured}
    control = {run.name: run.decide(run.random, seed) for run in measured}
    differ = {
        "random pairs": discordance([r.random for r in measured]),
        "own task": discordance([r.own for r in measured]),
    }
    console.print(_run_table("measured: Phase Two against Phase One; falls, largest coverage fall", own, measured))
    console.print(_run_table("measured: the control, trained on random pairs", control, measured))
    null, power = _simulate(measured, null_nights, power_nights, seed)
    console.print(_shares_table(f"equal arms, {NIGHT} streams: shares of {null_nights} nights; refused by", null))
    gains = _gains(measured, own)
    console.print(_power_table(power, gains))
    ratios = _ratios(null, 1 - profile.gate.confidence, null_nights)
    settings = {
        "profile": PROFILE,
        "gate": profile.gate.model_dump(mode="json"),
        "runs": [run.name for run in measured],
        "null_nights": null_nights,
        "power_nights": power_nights,
        "seed": seed,
    }
    sides = {
        "measured": {name: _figures(verdict) for name, verdict in own.items()},
        "measured control": {name: _figures(verdict) for name, verdict in control.items()},
        "discordance": differ,
        "equal arms": null,
        "gain": gains,
        "power": power,
    }
    console.print(f"how often the arms differ: {differ}")
    console.print(f"{write_result('gate', settings, sides, ratios)}")
    console.print(
        f"promotes an equal challenger no more often than allowed: {max(ratios.values()) <= ratios['allowed']}"
    )
    console.print(ratios)


if __name__ == "__main__":
    typer.run(main)
