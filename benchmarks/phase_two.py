"""How much cheaper is Phase Two than DPO on the whole model by TRL's own trainer?

    make bench-phase-two          about ten minutes on one core

A random model of 24 layers with the steer layer at 11, one context of real frames, completions of 60 tokens. "full" is TRL's
DPOTrainer as it comes, two rows a pair, six pairs one after another, which is faster than all at once; its reference is a pass
without the adapter in EVERY step, for TRL refuses to make it once for video. Gradient checkpointing, TRL's default, is off, for
it makes steps slower. Both are sides of their own too. "ours" is `fit` over trunks, made for all eight rollouts as they are in
use. Every side is a process of its own, and they step by turns, one at a time. A ratio is full over ours in seconds (medians),
and ours over full in memory; "with cache cost" adds trunk and reference, made once, spread over 10 steps. Loading weights and
the processor's work on the frames, which both sides do once, are left out.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from transformers import Qwen3VLMoeConfig

from benchmarks.flops import Decoder, Rows, vision
from benchmarks.phase_two_sides import ROLLOUTS, SideName, Size, Task, encoder_of, prompt_of, write_policy
from benchmarks.results import write_result
from taskmem.errors import UserError
from taskmem.records import write_json

SPREAD = 10
AGREE = 1e-4
QUICK = Size(layers=4, layer=1, hidden=64, experts=4, expert_size=32, vision_depth=2, vision_hidden=64, side=32)
WANTED = {
    "unpacked": 3.0,
    "unpacked_with_cache_cost": None,
    "packed_4": 10.0,
    "packed_4_with_cache_cost": 7.0,
    "peak_memory": 0.6,
}
BOUNDS = {
    "unpacked": "the upper half, forward and back, over one row of prompt and completions; most of it attention",
    "unpacked_with_cache_cost": "one pass of the vision tower and the lower half and one of the reference, over 10 steps",
    "packed_4": "the same row: six pairs share its prompt, and more candidates add only their own tokens",
    "packed_4_with_cache_cost": "the same pass, which weighs more the less a step costs",
    "peak_memory": "the upper half's weights, and what it keeps for its backward: one prompt, where TRL keeps two",
}
Sides = dict[str, dict[str, Any]]
console = Console(width=140)


class Side:
    """One process that takes steps when told to."""

    def __init__(self, name: str, task: Task, folder: Path) -> None:
        self.name = name
        self.steps: list[dict[str, float]] = []
        self._log = folder / f"{name}.log"
        write_json(folder / f"{name}.json", asdict(task))
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.phase_two_sides", str(folder / f"{name}.json")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
                text=True,
            )
        self._next = self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise UserError(f"{self.name}: ended early with {self._process.wait()}; see {self._log}")
        read: dict[str, Any] = json.loads(line)
        return read

    @property
    def ready(self) -> bool:
        """Whether it waits for another step; then nothing in it runs."""
        return "ready" in self._next

    def step(self) -> None:
        """Take one, and come to rest again."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self.steps.append(self._read())
        self._next = self._read()

    def result(self) -> dict[str, Any]:
        """The outcome, with the medians of the steps."""
        self._process.wait()
        of = {name: [step[name] for step in self.steps] for name in ("seconds", "cpu_seconds")}
        medians = {name: median(values) for name, values in of.items()}
        return {**medians, "all_seconds": of["seconds"], **self._next}

    def stop(self) -> None:
        """End the process, if it has not ended."""
        self._process.kill()
        self._process.wait()


def alternate(tasks: Mapping[str, Task], folder: Path) -> Sides:
    """Run the sides by turns, a step each, until all have taken theirs; their results by name."""
    sides: list[Side] = []
    try:
        for name, task in tasks.items():
            sides.append(Side(name, task, folder))
        while any(side.ready for side in sides):
            for side in sides:
                if side.ready:
                    side.step()
                    console.print(f"{side.name}, step {len(side.steps)}: {side.steps[-1]['seconds']:.2f} s")
        return {side.name: side.result() for side in sides}
    finally:
        for side in sides:
            side.stop()


def tasks_of(policy: Path, size: Size, quick: bool) -> tuple[dict[str, Task], dict[str, Task]]:
    """The sides with one pair of two candidates, and those with all six pairs of four; fewer steps where nothing is spread."""
    few = 2 if quick else 3

    def task(side: SideName, candidates: int, steps: int) -> Task:
        return Task(side, str(policy), size, candidates, steps)

    full, ours = (task(side, 2, few if quick else SPREAD) for side in ("full", "ours"))
    one = {
        "full": full,
        "ours": ours,
        "full_reference_once": replace(full, reference_once=True, steps=few),
        "full_checkpointed": replace(full, checkpointing=True, steps=few),
    }
    full, ours = (task(side, 4, few) for side in ("full", "ours"))
    six = {"full_packed_4": full, "ours_packed_4": ours, "ours_packed_4_sources": replace(ours, sources=True)}
    return one, six


def apart(found: Sequence[float], wanted: Sequence[float]) -> float:
    """Relative error."""
    a, b = torch.tensor(found, dtype=torch.float64), torch.tensor(wanted, dtype=torch.float64)
    return float((a - b).norm() / b.norm())


def differences(sides: Sides) -> dict[str, float]:
    """Each side's first gradient against that of TRL as it comes on the same pairs."""
    pairs = {name: "full_packed_4" if "packed_4" in name else "full" for name in sides}
    return {name: apart(sides[name]["gradient"], sides[of]["gradient"]) for name, of in pairs.items() if name != of}


def _with_once(side: Mapping[str, Any]) -> float:
    return float(side["seconds"] + side["once_seconds"] / SPREAD)


def ratios_of(sides: Sides) -> dict[str, float]:
    """What is wanted first, then the same against other baselines and with each pair's gradient made."""
    full, ours, full_4, ours_4 = (sides[n] for n in ("full", "ours", "full_packed_4", "ours_packed_4"))
    once, checkpointed = sides["full_reference_once"], sides["full_checkpointed"]
    with_sources = sides["ours_packed_4_sources"]
    return {
        "unpacked": full["seconds"] / ours["seconds"],
        "unpacked_with_cache_cost": full["seconds"] / _with_once(ours),
        "packed_4": full_4["seconds"] / ours_4["seconds"],
        "packed_4_with_cache_cost": full_4["seconds"] / _with_once(ours_4),
        "peak_memory": ours["peak_bytes"] / full["peak_bytes"],
        "unpacked_against_reference_once": once["seconds"] / ours["seconds"],
        "unpacked_with_cache_cost_against_reference_once": _with_once(once) / _with_once(ours),
        "unpacked_against_checkpointed": checkpointed["seconds"] / ours["seconds"],
        "packed_4_with_every_pairs_gradient": full_4["seconds"] / with_sources["seconds"],
        "peak_memory_against_checkpointed": ours["peak_bytes"] / checkpointed["peak_bytes"],
        "peak_memory_packed_4": ours_4["peak_bytes"] / full_4["peak_bytes"],
    }


def cpu_ratios(sides: Sides) -> dict[str, float]:
    """The same of processor time, which others on the machine hardly change."""
    pairs = {"unpacked": ("full", "ours"), "packed_4": ("full_packed_4", "ours_packed_4")}
    return {name: sides[full]["cpu_seconds"] / sides[ours]["cpu_seconds"] for name, (full, ours) in pairs.items()}


class Arithmetic(NamedTuple):
    """Operations of a step of TRL's, of a step of ours, and of what ours makes once."""

    full: int
    ours: int
    once: int


def arithmetic(policy: Path, size: Size, candidates: int) -> Arithmetic:
    """Counted from the sizes (see flops.py)."""
    config = Qwen3VLMoeConfig.from_pretrained(policy, local_files_only=True)
    prompt = prompt_of(encoder_of(policy, size), size)
    decoder, layers, upper = Decoder.of(config.text_config), size.layers, size.layers - size.layer - 1
    t, h, w = prompt.grids[0]
    seen = vision(config.vision_config, t * h * w * len(prompt.grids), h * w)
    count = 2 * math.comb(candidates, 2)
    rows = Rows.packed(len(prompt.ids), [size.completion]).times(count)
    packed = Rows.packed(len(prompt.ids), [size.completion] * candidates)
    full = 2 * (decoder.forward(layers, rows) + count * seen) + decoder.backward(upper, rows)
    full += 3 * decoder.head(count * size.completion)
    head = decoder.head(candidates * size.completion)
    ours = decoder.forward(upper, packed) + decoder.backward(upper, packed) + 2 * head
    cached = Rows.packed(len(prompt.ids), [size.completion] * ROLLOUTS)
    once = decoder.forward(layers - upper, cached) + seen + decoder.forward(upper, packed) + head
    return Arithmetic(full, ours, once)


def arithmetic_ratios(one: Arithmetic, four: Arithmetic) -> dict[str, float]:
    """What the ratios of seconds would be if every operation took the same time."""
    return {
        "unpacked": one.full / one.ours,
        "unpacked_with_cache_cost": one.full / (one.ours + one.once / SPREAD),
        "packed_4": four.full / four.ours,
        "packed_4_with_cache_cost": four.full / (four.ours + four.once / SPREAD),
    }


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    return table


def _side_table(sides: Sides, differ: Mapping[str, float]) -> Table:
    columns = ("side", "steps", "s a step", "of it CPU", "once, s", "load, s", "peak MB", "gradient apart")
    table = _table("medians; gradient of the first step against TRL's", columns)
    for name, s in sides.items():
        seconds = [f"{s[key]:.2f}" for key in ("seconds", "cpu_seconds", "once_seconds", "load_seconds")]
        gradient = f"{differ[name]:.1e}" if name in differ else "-"
        table.add_row(name, str(len(s["all_seconds"])), *seconds, f"{s['peak_bytes'] / 1e6:.0f}", gradient)
    return table


def _ratio_table(ratios: Mapping[str, float], of_cpu: Mapping[str, float], counted: Mapping[str, float]) -> Table:
    table = _table("ratios", ("", "wanted", "measured", "of CPU time", "counted operations"))
    for name, wanted in WANTED.items():
        asked = "-" if wanted is None else f"{'<=' if name == 'peak_memory' else '>='} {wanted:g}"
        others = [f"{of[name]:.2f}" if name in of else "-" for of in (of_cpu, counted)]
        table.add_row(name, asked, f"{ratios[name]:.2f}", *others)
    return table


def measure(size: Size, quick: bool, out: Path) -> tuple[Sides, dict[str, float]]:
    """All sides, and the ratios that counting gives; UserError if a side's first gradient is not TRL's."""
    policy = out / "policy"
    write_policy(size, policy)
    sides: Sides = {}
    for tasks in tasks_of(policy, size, quick):
        sides |= alternate(tasks, out)
    if far := {name: by for name, by in differences(sides).items() if not by <= AGREE}:
        raise UserError(
            f"first gradients are further than {AGREE:g} from TRL's: {far}; the sides do not train the same"
        )
    return sides, arithmetic_ratios(*(arithmetic(policy, size, candidates) for candidates in (2, 4)))


def main(
    quick: Annotated[
        bool, typer.Option(help="A tiny model and two steps, to see that it runs; writes no result.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where the policy and the sides' logs go.")] = Path("runs/bench-phase-two"),
) -> None:
    """Run all sides and compare."""
    size = QUICK if quick else Size()
    load = [os.getloadavg()[0]]
    try:
        sides, counted = measure(size, quick, out)
    except UserError as error:
        console.print(str(error), soft_wrap=True)
        sys.exit(2)
    load.append(os.getloadavg()[0])
    ratios, of_cpu, differ = ratios_of(sides), cpu_ratios(sides), differences(sides)
    console.print(_side_table(sides, differ))
    console.print(f"vectors after {len(sides['full']['all_seconds'])} steps apart: {_vectors(sides):.1e}")
    console.print(f"load of the machine before and after: {load[0]:.1f}, {load[1]:.1f}")
    console.print(_ratio_table(ratios, of_cpu, counted))
    for name, why in BOUNDS.items():
        console.print(f"{name} is bounded by {why}", soft_wrap=True)
    if not quick:
        settings = {**asdict(size), "prompt_tokens": sides["full"]["prompt_tokens"], "spread": SPREAD, "load": load}
        kept = {name: {k: v for k, v in s.items() if k not in ("gradient", "vector")} for name, s in sides.items()}
        extra = {"gradients_apart": differ, "vectors_apart": {"ours": _vectors(sides)}}
        extra |= {"ratios_of_cpu_seconds": of_cpu, "ratios_of_counted_operations": counted}
        console.print(f"{write_result('phase_two', settings, {**kept, **extra}, ratios)}")
    console.print({name: round(value, 3) for name, value in ratios.items()})


def _vectors(sides: Sides) -> float:
    return apart(sides["ours"]["vector"], sides["full"]["vector"])


if __name__ == "__main__":
    typer.run(main)
