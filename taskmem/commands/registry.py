"""`taskmem registry`: what is in the registry, and the operator's hand on it."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs, so that --help is quick

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from taskmem.errors import UserError
from taskmem.saying import say

if TYPE_CHECKING:
    from taskmem.registry import CurrentPolicy, Manifest, Pointer, Promotion, Standing
    from taskmem.store import Store

registry_app = typer.Typer(
    no_args_is_help=True, help="Adapters by environment: versions, champions, and the log of every change."
)

StoreUrl = Annotated[str, typer.Option("--store", help="Folder or URL of the object store.")]
Adapter = Annotated[str, typer.Argument(metavar="ENV@V", help="An adapter, as in door@v3.")]
By = Annotated[str, typer.Option("--by", help="Who does this, for the log.")]
Why = Annotated[str | None, typer.Option("--reason", help="Why, for the log.")]
NONE = "none"


@registry_app.command("list")
def list_environments(
    store: StoreUrl,
    environment: Annotated[str | None, typer.Option("--environment", help="Only this environment.")] = None,
) -> None:
    """Every environment: its versions, champion and challenger, and what is served.

    An environment is served without adapter while its champion is of another policy than the current one.
    """
    from taskmem.registry import current_policy, environments, standing
    from taskmem.registry.objects import key_of

    registry = _open(store, read_only=True)
    current = current_policy(registry)
    names = environments(registry) if environment is None else [_known(registry, environment)]
    known = [standing(registry, name, current) for name in names]
    table = _table("environment")
    for name in ("versions", "champion", "served", "challenger", "policy"):
        table.add_column(name, no_wrap=True, justify="right" if name == "versions" else "left")
    for one in known:
        version = one.champion.version if one.champion else None
        count = str(sum(1 for _ in registry.list(key_of(one.environment, "versions", ""))))
        policy = _short(one.manifest.policy if one.manifest else None)
        table.add_row(Text(one.environment), count, version or NONE, one.served or NONE, one.challenger or NONE, policy)
    _show(_policy_line(current), table)


@registry_app.command()
def show(
    name: Annotated[
        str, typer.Argument(metavar="ENV[@V]", help="An environment, or one version of it: door, door@v3.")
    ],
    store: StoreUrl,
) -> None:
    """An environment's pointers, the manifest of its champion or of one version, and the log of its promotions."""
    from taskmem.registry import current_policy, promotion_log, read_manifest, standing

    registry = _open(store, read_only=True)
    environment, _, version = name.partition("@")
    here = standing(registry, _known(registry, environment), current_policy(registry))
    manifest = read_manifest(registry, environment, version) if "@" in name else here.manifest
    _show(environment, _pointers(here))
    if manifest is not None:
        _show(f"\n{manifest.name}", _manifest(manifest))
    _show(f"\n{environment}: promotions", _log(promotion_log(registry, environment)))


@registry_app.command()
def promote(
    adapter: Adapter,
    store: StoreUrl,
    verdict: Annotated[Path, typer.Option("--verdict", help="verdict.json of a gate, with its held.json beside it.")],
    by: By,
    reason: Annotated[
        str | None, typer.Option("--reason", help="Promote in spite of what the verdict says; why, for the log.")
    ] = None,
) -> None:
    """Make a version the champion of its environment, on the gate's verdict.

    Refused if the verdict does not say promote, or is about another environment, another adapter or another champion.
    """
    from taskmem.registry import champion
    from taskmem.stages.promotion import promote_by_hand

    registry, (environment, version) = _open(store), _split(adapter)
    before = champion(registry, environment)
    after = promote_by_hand(registry, environment, version, verdict, by, datetime.now(UTC), reason)
    _moved(registry, environment, before, after)


@registry_app.command()
def rollback(
    environment: Annotated[str, typer.Argument(metavar="ENV", help="The environment.")],
    store: StoreUrl,
    by: By,
    to: Annotated[
        str | None, typer.Option("--to", metavar="V|none", help="An earlier champion, or none for no adapter.")
    ] = None,
    reason: Why = None,
) -> None:
    """Make an earlier champion the champion again: by default the one before this one, in the end no adapter."""
    from taskmem.registry import champion
    from taskmem.registry import rollback as roll_back

    registry = _open(store)
    before = champion(registry, environment)
    after = roll_back(registry, environment, by, datetime.now(UTC), to, reason)
    _moved(registry, environment, before, after)


@registry_app.command()
def verify(
    store: StoreUrl,
    environment: Annotated[
        str | None, typer.Argument(metavar="[ENV]", help="Only this environment; by default all, and the policy's log.")
    ] = None,
) -> None:
    """Hold every object against its digest: versions, files, verdicts, pointers and logs; name each damaged one."""
    from taskmem.registry import environments
    from taskmem.registry import verify as verify_environment
    from taskmem.registry.verify import verify_policies

    registry = _open(store, read_only=True)
    names = environments(registry) if environment is None else [_known(registry, environment)]
    damages = [damage for name in names for damage in verify_environment(registry, name)]
    if environment is None:
        damages += verify_policies(registry)
    for damage in damages:
        say(f"{damage.key}: {damage.what}")
    if damages:
        raise UserError(f"{store}: {len(damages)} damaged or missing objects; see the list")
    say(f"{len(names)} environments: nothing damaged, nothing missing")


@registry_app.command()
def migrate(
    store: StoreUrl,
    policy: Annotated[
        str | None, typer.Option("--policy", metavar="DIGEST", help="Serve this policy from now on, by its SHA-256.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="JSON file for the parameter `shards` of the adaptation pipeline.", dir_okay=False),
    ] = None,
    shards: Annotated[int, typer.Option("--shards", min=1, help="Into how many shards to divide them.")] = 1,
    by: Annotated[str | None, typer.Option("--by", help="Who does this; by default the login name.")] = None,
) -> None:
    """Show which adapters a new policy leaves behind; with --policy, serve it and have them adapted anew.

    An environment whose champion is of another policy is served without adapter, until the next nightly run adapts it from its
    kept contexts and questions: its feedback counts as unused again. Killed half-way, the same command completes it.
    """
    from taskmem.registry import current_policy, standings
    from taskmem.registry import migrate as migrate_all
    from taskmem.stages.promotion import operator

    registry = _open(store, read_only=policy is None)
    if policy is None:
        if out is not None:
            raise UserError(f"--out {out}: nothing is adapted anew without a new policy; give --policy too")
        known = standings(registry)
    else:
        known = migrate_all(registry, policy, by or f"taskmem registry migrate, as {operator()}", datetime.now(UTC))
    _show(_policy_line(current_policy(registry)), _migration(registry, known))
    if out is not None:
        _write_shards([one.environment for one in known if one.waiting], shards, out)
        say(out)


def _migration(registry: "Store", known: "Sequence[Standing]") -> Table:
    contexts = {
        policy: len({key.split("/", 3)[3] for key in registry.list(f"rollouts/{policy}/")})
        for policy in {one.manifest.policy for one in known if one.manifest}
    }
    table = _table("environment")
    for name in ("champion", "its policy", "eligible"):
        table.add_column(name, no_wrap=True)
    for name in ("contexts", "questions", "lines used"):
        table.add_column(name, no_wrap=True, justify="right")
    for one in known:
        made = one.manifest
        kept = (contexts[made.policy], made.feedback_count) if made else ("", "")
        lines = (one.used or {}).get("lines", 0) if one.used is not None else ""
        answer = "" if made is None else "yes" if one.eligible else "no"
        cells = (made.version if made else NONE, _short(made.policy if made else None), answer)
        table.add_row(Text(one.environment), *cells, *(str(number) for number in (*kept, lines)))
    return table


def _write_shards(environments: Sequence[str], count: int, out: Path) -> None:
    from taskmem.records import write_json
    from taskmem.stages.shard import Shard

    parts = [environments[number::count] for number in range(min(count, len(environments)))]
    shards = [
        Shard.parse({"name": f"migration-{number}", "environments": [{"environment": name} for name in part]})
        for number, part in enumerate(parts, 1)
    ]
    write_json(out, [shard.model_dump(mode="json", exclude_unset=True) for shard in shards])


def _pointers(here: "Standing") -> Table:
    table = _table("pointer")
    table.add_column("version", no_wrap=True)
    pointer = here.champion
    for name, version in (
        ("champion", pointer.version if pointer else None),
        ("previous", pointer.previous if pointer else None),
        ("challenger", here.challenger),
        ("served", here.served),
    ):
        table.add_row(name, version or NONE)
    return table


def _manifest(manifest: "Manifest") -> Table:
    table = _table("manifest")
    table.columns[0].no_wrap = True
    table.add_column("", overflow="fold")
    for field, value in manifest.model_dump(mode="json", exclude={"schema_version", "environment", "version"}).items():
        for name, text in _lines(field, value):
            table.add_row(name, Text(text))
    return table


def _lines(field: str, value: Any) -> list[tuple[str, str]]:
    if field == "files":
        return [(name, digest) for name, digest in value.items()]
    if field == "judges":
        return [("judge", f"{judge['role']}, {judge['model']}, prompt {judge['prompt_sha256']}") for judge in value]
    return [(field, NONE if value is None else str(value))]


def _log(log: "Sequence[Promotion]") -> Table:
    table = _table("no")
    table.columns[0].no_wrap, table.columns[0].justify = True, "right"
    for name in ("time (UTC)", "action", "from", "to", "verdict"):
        table.add_column(name, no_wrap=True)
    table.add_column("by, reason", overflow="fold")
    for entry in log:
        who = f"{entry.by}: {entry.reason}" if entry.reason else entry.by
        when = f"{entry.time.astimezone(UTC):%Y-%m-%d %H:%M}"
        cells = (entry.replaced_version or NONE, entry.version or NONE, _short(entry.verdict))
        table.add_row(str(entry.number), when, entry.action, *cells, Text(who))
    return table


def _moved(registry: "Store", environment: str, before: "Pointer | None", after: "Pointer") -> None:
    """Say what became of the champion, and whether it is served."""
    from taskmem.registry import current_policy, eligible, promotion_log

    was, now = (before.version if before else None) or NONE, after.version or NONE
    current: CurrentPolicy | None = current_policy(registry)
    if before == after:
        say(f"{environment}: {now} already, nothing changed")
    else:
        number = len(promotion_log(registry, environment))
        say(f"{environment}: {was} -> {now} (entry {number} of the log)")
    if current is not None and after.version and not eligible(after.policy, current):
        say(f"it is not served: policy {_short(current.policy)} is, and it is of {_short(after.policy)}")


def _open(url: str, read_only: bool = False) -> "Store":
    from taskmem.store import open_store

    return open_store(url, read_only)


def _known(registry: "Store", environment: str) -> str:
    from taskmem.registry.objects import key_of

    if next(iter(registry.list(key_of(environment, ""))), None) is None:
        raise UserError(f"environment {environment}: not in the registry; see `taskmem registry list`")
    return environment


def _split(name: str) -> tuple[str, str]:
    environment, at, version = name.partition("@")
    if not at:
        raise UserError(f"adapter {name}: names no version; give it as environment@version, as in door@v3")
    return environment, version


def _table(first: str) -> Table:
    """A table for a terminal of 80 columns, whose column `first` gives way to the others."""
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column(first, overflow="fold")
    return table


def _short(digest: str | None) -> str:
    return digest[:12] if digest else NONE


def _policy_line(current: "CurrentPolicy | None") -> str:
    return f"policy served: {current.policy if current else 'none set, so every adapter may be'}"


def _show(title: str, table: Table) -> None:
    console = Console()
    console.print(Text(title, overflow="fold"))
    console.print(table)
