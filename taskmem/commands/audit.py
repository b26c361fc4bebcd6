"""`taskmem audit`: which feedback made this answer, and can the adapter be made again?"""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs, so that --help is quick

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from taskmem.errors import UserError
from taskmem.saying import say

if TYPE_CHECKING:
    from taskmem.audit.diff import Diff
    from taskmem.audit.links import Chain
    from taskmem.audit.rebuild import Rebuilt
    from taskmem.config import Profile

audit_app = typer.Typer(
    no_args_is_help=True, help="Which feedback made an answer, and can its adapter be made again? See docs/audit.md."
)

BROKEN = 2
StoreUrl = Annotated[str, typer.Option("--store", help="Folder or URL of the object store that holds the registry.")]
Lineage = Annotated[str, typer.Option("--lineage", help="URL of the git repository of the lineage.")]
Adapter = Annotated[str, typer.Argument(metavar="ENV@V", help="An adapter, as in door@v3.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write everything to this JSON file.", dir_okay=False)]
Html = Annotated[Path | None, typer.Option("--html", help="Write the chain to this HTML file.", dir_okay=False)]
ShowText = Annotated[bool, typer.Option("--show-text", help="Show the texts of the questions, which users wrote.")]


@audit_app.command()
def adapter(
    name: Adapter,
    store: StoreUrl,
    lineage: Lineage,
    json: Json = None,
    html: Html = None,
    show_text: ShowText = False,
) -> None:
    """The whole chain of an adapter: who promoted it on what evidence, and what it was trained on.

    Exit code 0 if every link holds; else 2, with a line for each that does not.
    """
    from taskmem.audit.adapter import audit_adapter
    from taskmem.store import open_store

    with _work() as work:
        chain = audit_adapter(open_store(store, read_only=True), lineage, name, work, show_text)
    _chain(chain, json, html)


@audit_app.command()
def request(
    id_: Annotated[str, typer.Argument(metavar="ID", help="The request's id, as the response log has it.")],
    responses: Annotated[
        list[Path],
        typer.Option("--responses", help="A response log, or a folder of responses*.jsonl; may be repeated."),
    ],
    store: StoreUrl,
    lineage: Lineage,
    json: Json = None,
    html: Html = None,
    show_text: ShowText = False,
) -> None:
    """The adapter, policy, image and memories that answered a request, and then the adapter's whole chain."""
    from taskmem.audit.request import audit_request
    from taskmem.store import open_store

    with _work() as work:
        chain = audit_request(open_store(store, read_only=True), lineage, id_, responses, work, show_text)
    _chain(chain, json, html)


@audit_app.command()
def verify(name: Adapter, store: StoreUrl, lineage: Lineage, json: Json = None) -> None:
    """Train an adapter again from its recorded inputs, and compare it with the registry's, byte by byte.

    Exit code 0 if it is identical. Of an adapter that is not, it says how far the vectors are apart.
    """
    from taskmem.audit.rebuild import rebuild
    from taskmem.audit.show import broken_lines
    from taskmem.records import write_json
    from taskmem.store import open_store

    with _work() as work:
        done = rebuild(open_store(store, read_only=True), lineage, name, work, _train, say)
    _rebuilt(done)
    if json is not None:
        write_json(json, done.document())
        say(json)
    _end([*broken_lines(done.chain.links), *([] if done.identical else [done.verdict])])


@audit_app.command("diff")
def diff_versions(
    one: Adapter,
    other: Annotated[str, typer.Argument(metavar="[ENV@]V", help="The adapter to compare with; a version is enough.")],
    store: StoreUrl,
    lineage: Lineage,
    json: Json = None,
) -> None:
    """What changed from one adapter to another: feedback, pairs, judges, settings, policy, code, image, vectors."""
    from taskmem.audit.diff import diff
    from taskmem.records import write_json
    from taskmem.store import open_store

    with _work() as work:
        found = diff(open_store(store, read_only=True), lineage, one, other, work)
    _show(_diff(found))
    if json is not None:
        write_json(json, found.document())
        say(json)
    _end([f"{name}: {link.line}" for name, link in found.broken])


def _train(
    preferences: Path,
    rollouts: Path,
    segments: Path,
    policy: Path,
    name: str,
    profile: "Profile",
    seed: int,
    out: Path,
) -> None:
    """Phase Two as the nightly run does it."""
    from taskmem.progress import silent
    from taskmem.stages.adapt import phase_two_of_each

    # the stage takes a folder of environments
    pairs = out.with_name("pairs")
    shutil.copytree(preferences, pairs / name)
    paths = (pairs, rollouts, segments, policy)
    (done,) = phase_two_of_each(*paths, [name], profile, seed, out, silent, None, say)
    if done.status != "ready":
        raise UserError(f"{name}: cannot be trained here: {done.reason}")


@contextmanager
def _work() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="taskmem-audit-") as folder:
        yield Path(folder)


def _chain(chain: "Chain", json: Path | None, html: Path | None) -> None:
    from taskmem.audit.page import write_page
    from taskmem.audit.show import broken_lines, chain_table, facts_table, texts_table
    from taskmem.records import write_json

    _show(chain_table(chain))
    _show(facts_table(chain))
    if chain.texts:
        _show(texts_table(chain.texts))
    for note in chain.notes:
        say(f"note: {note}")
    if json is not None:
        write_json(json, chain.document())
    if html is not None:
        write_page(chain, html)
    for path in filter(None, (json, html)):
        say(path)
    _end(broken_lines(chain.links))


def _rebuilt(done: "Rebuilt") -> None:
    from taskmem.audit.show import chain_table, short

    _show(chain_table(done.chain))
    if done.files:
        table = _table("file", "registry", "made here")
        for name, (registered, here) in done.files.items():
            table.add_row(name, short(registered), short(here))
        _show(table)
    for side, said in done.sides.items():
        for name, value in said.items():
            say(f"{side}: {name}: {value}")
    for note in done.chain.notes:
        say(f"note: {note}")
    say(done.verdict)


def _diff(found: "Diff") -> Table:
    table = _table("", *(side.name for side in found.sides))
    for name, change in (("feedback", found.feedback), ("pairs", found.pairs), ("judges", found.judges)):
        if change is None:
            table.add_row(name, "not known", "not known")
        else:
            table.add_row(
                name, f"{len(change.removed)} only here", f"{len(change.added)} only here, {change.same} in both"
            )
    _add_changes(table, "settings." if found.settings else "", found.settings or {})
    _add_changes(table, "", found.told)
    if found.vectors is not None:
        norms, cosine = found.vectors.norms, found.vectors.cosine
        table.add_row("norm", *(f"{norm:.6g}" for norm in norms))
        said = (
            ("not comparable", "") if cosine is None else (f"{cosine:.6f}", f"distance {found.vectors.difference:.6g}")
        )
        table.add_row("cosine", *said)
    return table


def _add_changes(table: Table, prefix: str, changes: Mapping[str, Sequence[Any]]) -> None:
    from taskmem.audit.show import brief

    for key, values in changes.items():
        if key != "norm":
            table.add_row(Text(f"{prefix}{key}"), *(Text(brief(value)) for value in values))


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE_HEAD

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(Text(name), overflow="fold")
    return table


def _show(table: Table) -> None:
    Console().print(table)


def _end(broken: Sequence[str]) -> None:
    """Exit code 2 and a line for each thing that does not hold."""
    for line in broken:
        Console(stderr=True, soft_wrap=True).print(f"taskmem: {line}", style="red", markup=False, highlight=False)
    if broken:
        raise typer.Exit(BROKEN)
