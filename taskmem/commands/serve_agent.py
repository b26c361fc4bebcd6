"""`taskmem serve agent`."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs, so that --help is quick

from pathlib import Path
from typing import Annotated

import typer


def agent(
    store: Annotated[
        str, typer.Option("--store", help="Folder or URL of the object store: tokens, feedback, adapters.")
    ],
    policy: Annotated[
        Path, typer.Option("--policy", help="Folder of the policy that is served, or its export.", file_okay=False)
    ],
    database: Annotated[
        str,
        typer.Option(
            "--database",
            envvar="TASKMEM_DATABASE_URL",
            help="sqlite:///FILE, for one agent, or postgresql://USER@HOST/NAME, for any number.",
        ),
    ],
    responses: Annotated[Path, typer.Option("--responses", help="Folder for the response log.", file_okay=False)],
    profile: Annotated[str, typer.Option("--profile", help="A shipped profile's name, or a YAML file.")] = "miniature",
    gateway: Annotated[str, typer.Option("--gateway", help="URL of the gateway.")] = "http://127.0.0.1:8100",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of what the policy samples.")] = 0,
    image: Annotated[
        str, typer.Option("--image", help="What runs, for the response log: an image's digest.")
    ] = "local",
    instance: Annotated[
        str, typer.Option("--instance", help="Name of this agent's response log; each agent needs its own.")
    ] = "agent",
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port for callers.")] = 8200,
    settings: Annotated[
        Path | None, typer.Option("--settings", help="YAML file of limits, see taskmem.agent.settings.", dir_okay=False)
    ] = None,
) -> None:
    """The agent: streams in, memories out, questions answered from memory, feedback kept; each caller's own alone.

    `taskmem token create` makes the tokens it asks for; memories are written by the gateway, with the caller's own token.
    """
    from taskmem.agent.settings import AgentSettings
    from taskmem.config import load_profile
    from taskmem.service.reading import read_settings
    from taskmem.stages.agent import Options, serve_agent

    chosen = read_settings(settings, AgentSettings)
    options = Options(store, gateway, database, policy, responses, instance, image, seed, chosen)
    serve_agent(options, load_profile(profile), host, port)
