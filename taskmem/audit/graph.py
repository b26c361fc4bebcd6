"""The chain as a picture: what rests on what, each link with its sign."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from taskmem.audit.links import Link
from taskmem.audit.show import SIGNS, short
from taskmem.evaluation.report.svg import Element, element, line, picture, text

WIDTH, HEIGHT = 214, 46
ACROSS, DOWN = 10, 44
COLUMNS = 5
_FITS = 25  # characters of a name in a box


def chain_graph(title: str, links: Sequence[Link]) -> Markup:
    """Boxes from what was served, above, to what it rests on, below, and a line for each link that rests on another."""
    known = {link.name: link for link in links}
    rows = _rows(_depths(known), links)
    places = {name: place for number, row in enumerate(rows) for name, place in _placed(row, number).items()}
    joined = [(name, below) for name, link in known.items() for below in link.rests_on if below in known]
    children = [_edge(places[name], places[below], known[below]) for name, below in joined]
    children += [node for name, link in known.items() for node in _box(places[name], link)]
    width = COLUMNS * WIDTH + (COLUMNS - 1) * ACROSS
    height = max((y for _, y in places.values()), default=0) + HEIGHT
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


def _placed(row: Sequence[str], number: int) -> dict[str, tuple[float, float]]:
    step = WIDTH + ACROSS
    left = (COLUMNS - len(row)) * step / 2
    return {name: (left + i * step, number * (HEIGHT + DOWN)) for i, name in enumerate(row)}


def _edge(above: tuple[float, float], below: tuple[float, float], link: Link) -> Element:
    x1, x2 = above[0] + WIDTH / 2, below[0] + WIDTH / 2
    return line(x1, above[1] + HEIGHT, x2, below[1], f"edge is-{link.status}")


def _box(place: tuple[float, float], link: Link) -> list[Element]:
    x, y = place
    name = link.name if len(link.name) <= _FITS else f"{link.name[: _FITS - 1]}…"
    frame = element("rect", x=x, y=y, width=WIDTH, height=HEIGHT, rx=7, class_=f"box is-{link.status}")
    sign = text(x + 10, y + 37, f"{SIGNS[link.status]} {link.status}", f"sign is-{link.status}")
    digest = text(x + WIDTH - 10, y + 37, short(link.found), "tick", "end")
    return [frame, text(x + 10, y + 18, name, "name"), sign, digest]
