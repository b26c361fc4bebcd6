"""`taskmem serve gateway`."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs, so that --help is quick

from pathlib import Path
from typing import Annotated

import typer

from taskmem.cli import MINIATURE, ProfileName


def gateway(
    store: Annotated[str, typer.Option("--store", help="Folder or URL of the object store with adapters and tokens.")],
    adapters: Annotated[
        Path,
        typer.Option(
            "--adapters", help="Folder for adapters; the policy's server reads it by the same path.", file_okay=False
        ),
    ],
    responses: Annotated[Path, typer.Option("--responses", help="Folder for the response log.", file_okay=False)],
    policy_server: Annotated[
        str, typer.Option("--policy-server", help="URL of the policy's server.")
    ] = "http://127.0.0.1:8000",
    image: Annotated[
        str, typer.Option("--image", help="What runs, for the response log: an image's digest.")
    ] = "local",
    instance: Annotated[
        str, typer.Option("--instance", help="Name of this gateway's response log; each gateway needs its own.")
    ] = "gateway",
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port for callers.")] = 8100,
    operations_port: Annotated[
        int, typer.Option("--operations-port", help="Port of /metrics with environments' names; not for callers.")
    ] = 8101,
    profile: ProfileName = MINIATURE,
    settings: Annotated[
        Path | None, typer.Option("--settings", help="YAML file of limits and time-outs.", dir_okay=False)
    ] = None,
) -> None:
    """The gateway before the policy's server: each caller gets its own environment's adapter, an OpenAI-compatible API.

    `taskmem token create` makes the tokens it asks for. A champion is known from the store, at most a second old unless
    --settings says otherwise.
    """
    from taskmem.gateway.running import serve_gateway

    serve_gateway(
        store=store,
        policy_server=policy_server,
        adapters=adapters,
        responses=responses,
        image=image,
        instance=instance,
        host=host,
        port=port,
        operations_port=operations_port,
        settings=settings,
        profile=profile,
    )
