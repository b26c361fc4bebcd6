"""taskmem export: a policy as vLLM serves it."""

# ruff: noqa: PLC0415 - a command imports its stage when it runs, so that --help is quick

from pathlib import Path
from typing import Annotated

import typer

from taskmem.config import load_profile
from taskmem.errors import UserError


def export(
    policy: Annotated[Path, typer.Argument(help="Folder of the policy checkpoint.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.", file_okay=False)],
    segments: Annotated[
        Path | None, typer.Option("--segments", help="Folder that `taskmem segment` wrote; what the check reads.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Whether vLLM must write what transformers writes.")
    ] = True,
    serving: Annotated[
        Path | None,
        typer.Option(
            "--serving", help="Environment with vLLM; by default this one, if it has it, else ./.venv-serving."
        ),
    ] = None,
    profile: Annotated[
        str, typer.Option("--profile", help="A shipped profile, or the path of a YAML file.")
    ] = "miniature",
) -> None:
    """Write a policy as vLLM serves it: the hub's expert layout, the processor's files, export.json with the policy's digest.

    The check reads sample segments with both and compares greedy tokens in float32, before --out is written.
    """
    from taskmem.policy.export import export_policy
    from taskmem.policy.transformers_policy import policy_digest
    from taskmem.stages.common import footage
    from taskmem.vllm_plugin.check import Sample, greedy_check, serving_python

    settings = load_profile(profile)
    if check and segments is None:
        raise UserError(
            "--segments is missing: the check needs a folder that `taskmem segment` wrote; or use --no-check"
        )
    digest = policy_digest(policy)
    ready = None
    if check and segments is not None:
        film, folder = footage(segments, settings), segments
        sample = Sample(film.segments, lambda segment: folder / segment.clip, film.frames_of, settings)
        ready = greedy_check(policy, digest, sample, serving_python(serving))
    exported = export_policy(policy, digest, out, ready)
    if exported.checked is None:
        typer.echo("not checked (--no-check): nobody has seen vLLM write what transformers writes")
    else:
        done = exported.checked
        typer.echo(f"checked: vLLM {done.vllm} wrote the same {done.tokens} greedy tokens in {done.contexts} contexts")
    typer.echo(f"{out}: policy {digest[:12]}, {exported.transposed} expert matrices transposed")
