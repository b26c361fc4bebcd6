"""`taskmem token`: who may call the gateway and the agent, and for which environment."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs, so that --help is quick

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from taskmem.saying import say

token_app = typer.Typer(no_args_is_help=True, help="Bearer tokens: each is for one environment, and kept as a digest.")

StoreUrl = Annotated[str, typer.Option("--store", help="Folder or URL of the object store.")]
DIGITS = 12


@token_app.command()
def create(
    environment: Annotated[str, typer.Argument(metavar="ENV", help="The environment that its callers belong to.")],
    store: StoreUrl,
    by: Annotated[str, typer.Option("--by", help="Who makes it.")],
    label: Annotated[str, typer.Option("--label", help="What it is for.")] = "",
) -> None:
    """Make a token and print it, once: it cannot be had again."""
    from taskmem.gateway.tokens import create_token
    from taskmem.store import open_store

    say(create_token(open_store(store), environment, by, datetime.now(UTC), label))


@token_app.command("list")
def list_tokens(
    store: StoreUrl,
    environment: Annotated[str | None, typer.Argument(metavar="[ENV]", help="Only this environment's.")] = None,
) -> None:
    """Every token by the first digits of its digest: whose, what for, by whom, and whether it is revoked."""
    from taskmem.gateway.tokens import tokens
    from taskmem.store import open_store

    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for name in ("digest", "environment", "created (UTC)", "revoked (UTC)", "by", "label"):
        table.add_column(name, no_wrap=name in ("digest",), overflow="fold")
    for digest, token in tokens(open_store(store, read_only=True), environment):
        times = [f"{time.astimezone(UTC):%Y-%m-%d %H:%M}" if time else "" for time in (token.created, token.revoked)]
        table.add_row(digest[:DIGITS], Text(token.environment), *times, Text(token.by), Text(token.label))
    Console().print(table)


@token_app.command()
def revoke(
    digest: Annotated[
        str, typer.Argument(metavar="DIGEST-PREFIX", help="8 or more digits of its digest, from the list.")
    ],
    store: StoreUrl,
) -> None:
    """Make a token good for nothing, within seconds, wherever it is used."""
    from taskmem.gateway.tokens import revoke_token
    from taskmem.store import open_store

    whole, token = revoke_token(open_store(store), digest, datetime.now(UTC))
    say(f"{whole[:DIGITS]} of {token.environment}: revoked")
