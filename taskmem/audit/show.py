"""The chain for a terminal of 80 columns."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from taskmem.audit.links import Chain, Link, Status
from taskmem.records import one_line

SIGNS: dict[Status, str] = {"verified": "✓", "damaged": "✗", "missing": "?", "erased": "∅"}
STYLES: dict[Status, str] = {"verified": "green", "damaged": "bold red", "missing": "bold red", "erased": "yellow"}
DIGITS, LISTED = 12, 3
_LONG = 24  # hex digits from which a value is a digest, of which the first are enough here
_UNTOLD = ("document", "moves", "artifacts")


def chain_table(chain: Chain) -> Table:
    """Every link: whether it holds, the digest that others know it by, the one it was found with."""
    table = _table(chain.subject)
    table.add_column("link", overflow="fold")
    table.add_column("", no_wrap=True)
    table.add_column("named by", overflow="fold")
    table.add_column("digest", no_wrap=True)
    table.add_column("found", no_wrap=True)
    for link in chain.links:
        sign = Text(f"{SIGNS[link.status]} {link.status}", style=STYLES[link.status])
        table.add_row(Text(link.name), sign, Text(link.named_by), Text(short(link.expected)), Text(short(link.found)))
    return table


def facts_table(chain: Chain) -> Table:
    """What the links tell, in short: lists by their number and first entries, digests by their first digits."""
    table = _table("")
    table.add_column("link", no_wrap=True)
    table.add_column("what it tells", overflow="fold")
    for link in chain.links:
        told = "; ".join(f"{name.replace('_', ' ')} {brief(value)}" for name, value in facts_of(link).items())
        if told:
            table.add_row(Text(link.name), Text(told))
    return table


def facts_of(link: Link) -> dict[str, Any]:
    """The facts of a link that fit on a line; the JSON and the page have all."""
    return {name: value for name, value in link.facts.items() if name not in _UNTOLD and value is not None}


def texts_table(texts: Mapping[str, str]) -> Table:
    """The questions' texts, which are what users wrote."""
    table = _table("")
    table.add_column("question", overflow="fold")
    table.add_column("its text", overflow="fold")
    for id_, text in texts.items():
        table.add_row(Text(one_line(id_)), Text(one_line(text)))
    return table


def short(digest: str | None) -> str:
    """The first digits of a digest, also of an image's."""
    return digest.rpartition(":")[2][:DIGITS] if digest else "–"


def brief(value: Any) -> str:
    """A fact in a few words."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{str(name).replace('_', ' ')} {brief(part)}" for name, part in value.items())
    if isinstance(value, str):
        return one_line(_shortened(value))
    if isinstance(value, Sequence):
        return _listed(value)
    return "–" if value is None else str(value)


def _listed(values: Sequence[Any]) -> str:
    if not values:
        return "none"
    shown = [brief(value) for value in values[:LISTED]]
    more = f" and {len(values) - LISTED} more" if len(values) > LISTED else ""
    return f"{len(values)} ({', '.join(shown)}{more})"


def _shortened(text: str) -> str:
    head, colon, digest = text.rpartition(":")
    known = len(digest) > _LONG and set(digest) <= set("0123456789abcdef")
    return f"{head}{colon}{digest[:DIGITS]}" if known else text


def _table(title: str) -> Table:
    return Table(
        title=Text(title) if title else None,
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )


def broken_lines(links: Iterable[Link]) -> list[str]:
    """One line for each link that does not hold."""
    return [link.line for link in links if not link.holds]
