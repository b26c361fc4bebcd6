"""The chain as a picture: what rests on what, each link with its sign."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from taskmem.audit.links import Link
from taskmem.audit.show import SIGNS, short
from taskmem.evaluation.report.svg import Element, element, picture, text

WIDTH, LINE = 208, 16
ACROSS, DOWN = 16, 44
COLUMNS = 5
_FITS = 25  # characters of a line of a name in a box


def chain_graph(title: str, links: Sequence[Link]) -> Markup:
    """Boxes from what was served, above, to what it rests on, below, and a line for each link that rests on another."""
    known = {link.name: link for link in links}
    grid = _Grid(_rows(_depths(known), links))
    joined = [(name, below) for name, link in known.items() for below in link.rests_on if below in known]
    children = [
        element("polyline", points=grid.way(name, below), class_=f"edge is-{known[below].status}")
        for name, below in joined
    ]
    children += [node for name, link in known.items() for node in _box(grid.places[name], grid.height, link)]
    width = COLUMNS * WIDTH + (COLUMNS - 1) * ACROSS
    height = max((y for _, y in grid.places.values()), default=0) + grid.height
    said = "; ".join(f"{link.name} {link.status}" for link in links)
    return picture(width, height, title, said, children)


def _depths(known: Mapping[str, Link]) -> dict[str, int]:
    """How far below the top each link is: one further than the lowest that rests on it."""
    depths = dict.fromkeys(known, 0)
    for _ in known:  # the longest way visits each link once
        for name, link in known.items():
            for below in link.rests_on:
                if below in depths:
                    depths[below] = max(depths[below], min(depths[name] + 1, len(known)))
    return depths


def _rows(depths: Mapping[str, int], links: Sequence[Link]) -> list[list[str]]:
    """The names by depth, no row longer than there are columns."""
    rows: list[list[str]] = []
    for depth in sorted(set(depths.values())):
        row = [link.name for link in links if depths[link.name] == depth]
        rows += [row[start : start + COLUMNS] for start in range(0, len(row), COLUMNS)]
    return rows


class _Grid:
    """Where each box stands, its upper left corner, and the ways between them, which lead past boxes, not behind them."""

    def __init__(self, rows: Sequence[Sequence[str]]) -> None:
        self.height = 30 + LINE * max((len(_lines(name)) for row in rows for name in row), default=1)
        self._rows = rows
        self._row_of = {name: number for number, row in enumerate(rows) for name in row}
        self.places = {
            name: (self._left(row) + i * (WIDTH + ACROSS), number * (self.height + DOWN))
            for number, row in enumerate(rows)
            for i, name in enumerate(row)
        }

    def way(self, above: str, below: str) -> str:
        """The points of the line from the lower side of one box to the upper side of another."""
        start, end = (self.places[name][0] + WIDTH / 2 for name in (above, below))
        first, last = self._row_of[above], self._row_of[below]
        points = [(start, self.places[above][1] + self.height)]
        for between in range(first + 1, last):
            straight = start + (end - start) * (between - first) / (last - first)
            x, top = self._gap(between, straight), between * (self.height + DOWN)
            points += [(x, top), (x, top + self.height)]
        points.append((end, self.places[below][1]))
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)

    def _gap(self, number: int, wanted: float) -> float:
        """The middle of the gap between boxes of a row, or of the room beside them, that is nearest to `wanted`."""
        row, step = self._rows[number], WIDTH + ACROSS
        left = self._left(row) - ACROSS / 2
        free = [left + i * step for i in range(len(row) + 1)]
        outside = wanted < free[0] or wanted > free[-1]
        return wanted if outside else min(free, key=lambda x: abs(x - wanted))

    def _left(self, row: Sequence[str]) -> float:
        return (COLUMNS - len(row)) * (WIDTH + ACROSS) / 2


def _lines(name: str) -> list[str]:
    """A name in one line, or in two where it is long."""
    if len(name) <= _FITS or " " not in name:
        return [_cut(name)]
    at = name.rfind(" ", 0, _FITS + 1)
    at = at if at > 0 else name.index(" ")
    return [_cut(name[:at]), _cut(name[at + 1 :])]


def _cut(text: str) -> str:
    return text if len(text) <= _FITS else f"{text[: _FITS - 1]}…"


def _box(place: tuple[float, float], height: float, link: Link) -> list[Element]:
    x, y = place
    frame = element("rect", x=x, y=y, width=WIDTH, height=height, rx=7, class_=f"box is-{link.status}")
    names = [text(x + 10, y + 18 + n * LINE, part, "name") for n, part in enumerate(_lines(link.name))]
    sign = text(x + 10, y + height - 9, f"{SIGNS[link.status]} {link.status}", f"sign is-{link.status}")
    digest = text(x + WIDTH - 10, y + height - 9, short(link.found), "tick", "end")
    return [frame, *names, sign, digest]
