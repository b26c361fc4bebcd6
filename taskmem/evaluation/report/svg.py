"""SVG, one element at a time: everything is escaped, every picture has a title and a description for those who hear it."""

import math
from collections.abc import Sequence
from xml.etree import ElementTree

from markupsafe import Markup

Element = ElementTree.Element


def element(tag: str, *children: Element | str, **attributes: str | float) -> Element:
    """An element; `_` in an attribute's name stands for `-`, `class_` for `class`, and numbers are written with one decimal."""
    node = Element(tag, {_name(name): _number(value) for name, value in attributes.items()})
    for child in children:
        if isinstance(child, str):
            node.text = (node.text or "") + child
        else:
            node.append(child)
    return node


def _name(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _number(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")


def picture(width: float, height: float, title: str, description: str, children: Sequence[Element]) -> Markup:
    """The <svg>, sized by its view box so that it grows and shrinks with its column."""
    about = (element("title", title), element("desc", description))
    root = element("svg", *about, *children, viewBox=f"0 0 {width:g} {height:g}", role="img")
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> Element:
    """Text whose baseline starts (or ends, or is centred) at x, y; `kind` is its class."""
    return element("text", content, x=x, y=y, class_=kind, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Element:
    """A straight line of class `kind`."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers that cover low to high, to a billionth of a step, `about` of them: steps of 1, 2, 2.5 or 5 times 10^n."""
    span = high - low
    if not span > 0:
        span = abs(low) or 1.0
        low, high = low - span / 2, low + span / 2
    rough = span / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """`places` moved apart until each is `gap` from the next, inside low to high, their order kept."""
    order = sorted(range(len(places)), key=lambda i: (places[i], i))
    moved = list(places)
    below = low
    for i in order:
        moved[i] = below = max(places[i], below)
        below += gap
    above = high
    for i in reversed(order):
        moved[i] = above = min(moved[i], above)
        above -= gap
    return moved
