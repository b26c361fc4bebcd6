"""taskmem serve policy: vLLM with one exported policy and every environment's adapter."""

# ruff: noqa: PLC0415 - a command imports its stage when it runs, so that --help is quick

import os
from pathlib import Path
from typing import Annotated

import typer

from taskmem.cli import MINIATURE, ProfileName
from taskmem.config import load_profile


def policy(
    context: typer.Context,
    policy: Annotated[Path, typer.Argument(help="Folder that `taskmem export` wrote.")],
    host: Annotated[str, typer.Option("--host", help="Whoever reaches it may load adapters.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Where it listens.")] = 8000,
    layer: Annotated[
        int | None, typer.Option("--layer", help="Decoder layer, from 0, to steer after; by default the profile's.")
    ] = None,
    max_norm: Annotated[
        float,
        typer.Option("--max-norm", min=0, help="Largest norm of a vector to accept; the paper scales them to 0.3."),
    ] = 3.0,
    slots: Annotated[int, typer.Option("--slots", min=1, help="Adapters that one batch may hold.")] = 64,
    kept: Annotated[
        int, typer.Option("--kept", min=1, help="Adapters in memory, least recently used out first.")
    ] = 1024,
    python: Annotated[
        Path | None,
        typer.Option(
            "--python",
            "--serving",
            help="Environment with vLLM, or its interpreter; by default this one, if it has it, else ./.venv-serving.",
        ),
    ] = None,
    profile: ProfileName = MINIATURE,
) -> None:
    """Serve an exported policy with vLLM, until it is told to stop; words after -- go to `vllm serve` as they are.

    Says on stdout when it is ready; vLLM's own words are on stderr. Ends with vLLM's exit code; SIGTERM and SIGINT are passed on.
    """
    from taskmem.vllm_plugin.check import serving_python
    from taskmem.vllm_plugin.server import NAME, Serving, check_serving, run_server, vllm_environment, vllm_words

    settings = load_profile(profile)
    steered = settings.phase_two.layer if layer is None else layer
    serving = Serving(policy, host, port, steered, max_norm, slots, max(slots, kept), tuple(context.args))
    export = check_serving(serving)
    vllm = vllm_words(serving, settings, export.policy)
    words = [str(serving_python(python)), "-m", "vllm.entrypoints.cli.main", "serve", *vllm]
    if export.checked is None:
        typer.echo(f"{policy}: not checked when it was exported (--no-check)", err=True)

    def ready() -> None:
        typer.echo(
            f"{serving.url}/v1: {NAME} {export.policy[:12]}, steered after layer {steered}, {slots} adapters at once"
        )

    raise typer.Exit(run_server(words, vllm_environment(os.environ), serving.url, ready))
