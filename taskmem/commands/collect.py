"""taskmem collect: the questions people asked, from logs or from parts in an object store."""

# ruff: noqa: PLC0415 - a command imports its stage when it runs, so that --help is quick

from pathlib import Path
from typing import Annotated

import typer

from taskmem.cli import MINIATURE, Out, ProfileName
from taskmem.config import load_profile
from taskmem.saying import say


def collect(
    log: Annotated[
        str, typer.Argument(help="The deployment's event log, its folder of them, or the object store with its parts.")
    ],
    out: Out,
    since: Annotated[
        Path | None, typer.Option("--since", help="watermark.json of the collection before; by default everything.")
    ] = None,
    environment: Annotated[str | None, typer.Option("--environment", help="One environment; by default all.")] = None,
    profile: ProfileName = MINIATURE,
) -> None:
    """Collect the recent questions of every environment; those since a watermark are the new ones."""
    from taskmem.feedback import read_watermark
    from taskmem.stages.collect import feedback_collection

    before = read_watermark(since) if since else None
    found = feedback_collection(log, before, load_profile(profile), out, environment)
    counts = "  ".join(f"{name} {len(asked)}" for name, asked in found.questions.items()) or "no questions"
    say(f"{counts}; {len(found.refused)} lines in {out / 'refused.jsonl'}")
