"""The gate's record as tables, whatever numbers it holds: the report shows them all and knows none by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Grid:
    """One table: rows of cells, the first of each row its name; `columns` is empty where name and value say it all."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def grids(record: Mapping[str, Any]) -> list[Grid]:
    """Single values first, together; then a table for every group of values, and one for every group of like groups."""
    shown = {name: value for name, value in record.items() if not name.startswith("schema")}
    single = {name: value for name, value in shown.items() if _single(value)}
    made = [_pairs("What the gate was given and found", single)] if single else []
    for name, group in shown.items():
        if name in single or not group:
            continue
        rows = [value for value in group.values() if not _single(value)]
        made.append(_pairs(_words(name), group) if len(rows) < len(group) else _grid(_words(name), group))
    return made


def _single(value: Any) -> bool:
    return not isinstance(value, Mapping) or {"count", "of"} <= value.keys()


def _pairs(caption: str, group: Mapping[str, Any]) -> Grid:
    return Grid(caption, (), tuple((_words(name), written(value)) for name, value in group.items()))


def _grid(caption: str, group: Mapping[str, Mapping[str, Any]]) -> Grid:
    columns = tuple(dict.fromkeys(name for row in group.values() for name in row))
    rows = tuple(
        (_words(name), *(written(row[column]) if column in row else "" for column in columns))
        for name, row in group.items()
    )
    return Grid(caption, tuple(_words(column) for column in columns), rows)


def _words(name: str) -> str:
    return name.replace("_", " ")


def written(value: Any) -> str:
    """A value of a record for people: counts as "n of m", truth as a tick or a cross."""
    if isinstance(value, bool):
        return "✓ yes" if value else "✗ no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        if {"count", "of"} <= value.keys():
            return f"{value['count']} of {value['of']}"
        return "; ".join(f"{_words(name)} {written(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(written(part) for part in value)
    return "–" if value is None else str(value)
