"""`taskmem audit erase`: forget a stream or a source."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs, so that --help is quick

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from taskmem.erasure.erase import Erasure


def erase(
    target: Annotated[
        str,
        typer.Argument(
            metavar="STREAM|ENV/STREAM|SOURCE",
            help="A stream of all environments or of one, or the hash of a source: 64 hex digits.",
        ),
    ],
    store: Annotated[
        str, typer.Option("--store", help="Folder or URL of the object store, with its parts of feedback.")
    ],
    lineage: Annotated[str | None, typer.Option("--lineage", help="URL of the lineage repository.")] = None,
    events: Annotated[
        Path | None, typer.Option("--events", help="Folder of the agent's feedback logs.", file_okay=False)
    ] = None,
    folder: Annotated[
        list[Path] | None, typer.Option("--folder", help="A run folder or a cache; may be repeated.", file_okay=False)
    ] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Why, for the tombstone: name nobody.")] = None,
    by: Annotated[str | None, typer.Option("--by", help="Who does this; by default the login name.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be erased, and touch nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Erase all data of a stream or of a source of feedback, for good, and name the adapters that were trained on it.

    A tombstone stays: collectors refuse what arrives late. Of an ENV/STREAM only that goes which names its environment. Killed
    half-way, the same command completes it. Give all places at once: pages and logs that quote the target are known by what its
    records say.
    """
    from taskmem.erasure.erase import Places, preview
    from taskmem.erasure.erase import erase as erase_everywhere
    from taskmem.erasure.target import Target
    from taskmem.stages.promotion import operator

    what, places = Target.parse(target), Places(store, lineage, events, tuple(folder or ()))
    if dry_run or not yes:
        _show(preview(what, places), "would be erased")
        if dry_run:
            return
        typer.confirm(f"Erase {what.kind} {what.title} for good?", abort=True)
    who = by or f"taskmem audit erase, as {operator()}"
    done = erase_everywhere(what, places, who, datetime.now(UTC), reason)
    _show(done, "erased before, nothing changed" if done.again else "erased")


def _show(erasure: "Erasure", title: str) -> None:
    console = Console()
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("where", overflow="fold")
    for name in ("records", "files"):
        table.add_column(name, justify="right", no_wrap=True, min_width=8)
    for place, count in erasure.erased.items():
        table.add_row(Text(place), str(count.records), str(count.files))
    console.print(Text(f"{erasure.target.kind} {erasure.target.title}: {title}"), overflow="fold")
    console.print(table)
    _list(console, "adapters that rest on it, to be made anew by the next nightly run", erasure.adapters)
    _list(console, "files that go as a whole, for they quote it", erasure.files)
    _list(console, "what cannot be erased, and why", erasure.remaining)


def _list(console: Console, title: str, lines: tuple[str, ...]) -> None:
    console.print(Text(f"\n{title}:"), overflow="fold")
    for line in lines or ("none",):
        console.print(Padding(Text(line), (0, 0, 0, 2), expand=False), overflow="fold")
