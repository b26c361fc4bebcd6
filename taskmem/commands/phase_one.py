"""taskmem phase-one: train the base policy, in one process or as one of torchrun's; or say what it would need of a GPU."""

# ruff: noqa: PLC0415 - a command imports its stage when it runs, so that --help is quick

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from taskmem.cli import MINIATURE, Resume, Seed, World, fresh, stage_progress
from taskmem.config import load_profile, profile_names
from taskmem.errors import UserError
from taskmem.saying import say

if TYPE_CHECKING:
    from taskmem.phase_one.plan import Plan

PAPER = "qwen3-vl-30b"
WIDTH = 80


def phase_one(
    segments: Annotated[Path | None, typer.Argument(help="Folder that `taskmem segment` wrote.")] = None,
    policy: Annotated[Path | None, typer.Option("--policy", help="Folder of the policy checkpoint.")] = None,
    development: Annotated[
        Path | None, typer.Option("--development", help="Segments of the development split.")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option("--questions", help="questions.jsonl of the development split.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write to.", file_okay=False)] = None,
    world: World = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile",
            help=f"One of {', '.join(profile_names())}, or a YAML file; {MINIATURE} if not given, {PAPER} with --plan.",
        ),
    ] = None,
    seed: Seed = 0,
    resume: Resume = True,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what each GPU needs, and whether that fits.")] = False,
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, help="With --plan; by default the profile's.")] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option("--gpus-per-node", min=1, help="With --plan; by default the profile's.")
    ] = None,
    gpu_memory: Annotated[
        float | None, typer.Option("--gpu-memory", min=1.0, help="GB of one; with --plan; by default the profile's.")
    ] = None,
) -> None:
    """Train the base policy with GSPO; the checkpoint is picked on the development split.

    In several processes: torchrun --nproc-per-node N --no-python taskmem phase-one ... --out FOLDER-THAT-ALL-SHARE
    """
    if plan:
        _plan(policy, profile or PAPER, nodes, gpus_per_node, gpu_memory)
        return
    given = {
        "SEGMENTS": segments,
        "--policy": policy,
        "--development": development,
        "--questions": questions,
        "--out": out,
    }
    missing = [name for name, value in given.items() if value is None]
    if segments is None or policy is None or development is None or questions is None or out is None:
        raise UserError(f"phase-one: {', '.join(missing)} missing; see --help")
    if (nodes, gpus_per_node, gpu_memory) != (None, None, None):
        raise UserError(
            "--nodes, --gpus-per-node and --gpu-memory go with --plan; torchrun says how many processes train"
        )
    from taskmem.backends import opened_backends
    from taskmem.phase_one.ranks import Ranks
    from taskmem.stages.train_policy import phase_one as stage

    ranks = Ranks.of(os.environ)
    settings = load_profile(profile or MINIATURE)
    if ranks.count == 1:
        fresh(out, resume, "run.json")
    elif not resume:
        raise UserError("--no-resume: several processes cannot remove what they start from; remove it yourself")
    paths = (segments, policy, development, questions)
    with opened_backends(settings, world, segments, ranks.own(out)) as ends:
        if not ranks.first:
            stage(*paths, ends, settings, seed, out, ranks=ranks)
            return
        with stage_progress("phase-one") as progress:
            stage(*paths, ends, settings, seed, out, progress, ranks)
    say(out / "policy")


def _plan(
    policy: Path | None, profile: str, nodes: int | None, gpus_per_node: int | None, gpu_memory: float | None
) -> None:
    from taskmem.phase_one.plan import checked, plan, topology_of
    from taskmem.phase_one.sizes import read_config, sizes_of, true_config

    settings = load_profile(profile)
    topology = topology_of(settings.cluster, nodes, gpus_per_node, gpu_memory)
    sizes = sizes_of(read_config(policy / "config.json") if policy else true_config())
    _show(plan(sizes, settings, topology))
    checked(sizes, settings, topology)


def _show(planned: "Plan") -> None:
    # the same lines whatever the terminal is
    wide = Console(width=WIDTH)
    title = f"Phase One on {planned.topology}: GB of each GPU"
    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False
    )
    table.add_column("term", no_wrap=True)
    table.add_column("GB", justify="right", no_wrap=True)
    table.add_column("what it is made of")
    moments = {"always": "held always", "sampling": "while rollouts are written", "learning": "while it learns"}
    for moment, title in moments.items():
        table.add_section()
        table.add_row(Text(title, style="bold"), f"{planned.held(moment):.1f}", "")  # type: ignore[arg-type]
        for term in (term for term in planned.terms if term.moment == moment):
            table.add_row(f"  {term.name}", f"{term.gb:.1f}", Text(term.why))
    table.add_section()
    verdict = "fits" if planned.fits else "does not fit"
    table.add_row("at its worst", f"{planned.peak:.1f}", f"of {planned.topology.memory:g}: {verdict}")
    wide.print(table)
    wide.print(
        f"The volume for checkpoints needs {planned.volume:,.0f} GB. Rollouts are written by the training processes; a vLLM "
        f"beside them, one copy on two GPUs, would hold {planned.vllm:.1f} GB of weights in place of the gathered ones.",
        highlight=False,
        markup=False,
    )
