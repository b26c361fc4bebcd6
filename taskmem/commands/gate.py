"""taskmem gate: one challenger held against one champion, without a store."""

# ruff: noqa: PLC0415 - a command imports its stage when it runs, so that --help is quick

from pathlib import Path
from typing import Annotated

import typer

from taskmem.cli import MINIATURE, Out, PolicyFolder, ProfileName, Seed, World, console
from taskmem.config import load_profile
from taskmem.saying import say


def gate(
    adapter: Annotated[Path, typer.Argument(help="Folder of the challenger, a steer adapter.")],
    policy: PolicyFolder,
    champion: Annotated[Path, typer.Option("--champion", help="The champion on these streams, by `taskmem evaluate`.")],
    segments: Annotated[Path, typer.Option("--segments", help="Segments of streams that nothing was mined from.")],
    questions: Annotated[Path, typer.Option("--questions", help="questions.jsonl about these streams.")],
    feedback: Annotated[Path, typer.Option("--feedback", help="Folder that `taskmem collect` wrote.")],
    environment: Annotated[str, typer.Option("--environment", help="Whose adapter it is.")],
    out: Out,
    world: World = None,
    profile: ProfileName = MINIATURE,
    seed: Seed = 0,
) -> None:
    """Evaluate a challenger and hold it against the champion: verdict.json, contexts.jsonl, challenger/. Promotes nothing."""
    from taskmem.backends import opened_backends
    from taskmem.loop.display import StageDisplay
    from taskmem.stages.common import read_graded
    from taskmem.stages.evaluate import streaming_eval
    from taskmem.stages.gate import gate as stage
    from taskmem.stages.gate import recent_questions

    settings = load_profile(profile)
    challenger, display = out / "challenger", StageDisplay(console)
    arms = (champion, challenger, segments, questions, feedback)
    with opened_backends(settings, world, segments, out) as ends:
        # an evaluation takes long: what is missing shows before it
        recent_questions(feedback, environment)
        read_graded(champion)
        with display.stage("evaluate the challenger") as progress:
            streaming_eval(segments, questions, policy, ends, settings, seed, challenger, adapter, progress=progress)
        with display.stage("gate") as progress:
            verdict = stage(*arms, environment, ends, settings, seed, out, progress)
    for line in verdict.reasons or ("passed",):
        say(f"  {line}")
