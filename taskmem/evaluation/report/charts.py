"""The report's charts: pure functions from numbers to SVG. Colours, dashes and fills are classes; style.css gives both themes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from taskmem.evaluation.metrics import Interval
from taskmem.evaluation.report.svg import Element, element, line, picture, spread, text, ticks
from taskmem.evaluation.report.words import percent, points

WIDTH = 340.0
MOST_POINTS = 240  # more than a panel has pixels for
STYLES = 6


@dataclass(frozen=True)
class Line:
    """One curve: (x, y) in order; `style` numbers its colour and dashes."""

    name: str
    points: tuple[tuple[float, float], ...]
    style: int


@dataclass(frozen=True)
class Bar:
    """One bar with its interval, as fractions of 1; `hollow` bars are controls."""

    name: str
    value: float
    interval: Interval
    style: int
    hollow: bool = False


@dataclass(frozen=True)
class Row:
    """One difference with its interval."""

    name: str
    mean: float
    interval: Interval


def thinned(values: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """`values`, or the means of MOST_POINTS equal stretches of them if there are more."""
    if len(values) <= MOST_POINTS:
        return tuple(values)
    edges = [round(i * len(values) / MOST_POINTS) for i in range(MOST_POINTS + 1)]
    parts = [values[a:b] for a, b in pairwise(edges)]
    return tuple((part[-1][0], sum(y for _, y in part) / len(part)) for part in parts)


def line_chart(title: str, lines: Sequence[Line], marked: float | None = None, mark: str = "") -> Markup:
    """Curves over steps, each named at its right end. `marked` is an x that a vertical line marks, named `mark`."""
    lines = [Line(c.name, thinned(c.points), c.style) for c in lines]
    left, right, top, bottom = 44.0, WIDTH - (82 if len(lines) > 1 else 16), 14.0, 168.0
    xs = [x for curve in lines for x, _ in curve.points]
    scale = ticks(min(y for c in lines for _, y in c.points), max(y for c in lines for _, y in c.points))
    first, last = min(xs), max(xs)

    def across(x: float) -> float:
        return left + (right - left) * ((x - first) / (last - first) if last > first else 0.5)

    def up(y: float) -> float:
        return bottom - (bottom - top) * (y - scale[0]) / (scale[-1] - scale[0])

    drawn: list[Element] = []
    for tick in scale:
        drawn += [
            line(left, up(tick), right, up(tick), "grid"),
            text(left - 6, up(tick) + 4, f"{tick:g}", "tick", "end"),
        ]
    drawn += [text(across(x), bottom + 18, f"{x:g}", "tick", "middle") for x in sorted({first, last})]
    drawn.append(text((left + right) / 2, bottom + 18, "step", "tick", "middle"))
    if marked is not None:
        near_end = across(marked) > (left + right) / 2
        drawn.append(line(across(marked), top, across(marked), bottom, "marked"))
        drawn.append(
            text(across(marked) + (-5 if near_end else 5), bottom - 6, mark, "tick", "end" if near_end else "start")
        )
    for curve in lines:
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in curve.points)
        drawn.append(element("polyline", points=path, class_=f"curve c{curve.style % STYLES}"))
        if len(curve.points) < 12:
            style = f"dot c{curve.style % STYLES}"
            drawn += [element("circle", cx=across(x), cy=up(y), r=3, class_=style) for x, y in curve.points]
    if len(lines) > 1:
        ends = spread([up(c.points[-1][1]) for c in lines], 14, top, bottom)
        drawn += [text(right + 6, y + 4, c.name, f"end c{c.style % STYLES}") for c, y in zip(lines, ends, strict=True)]
    told = "; ".join(f"{c.name}: {c.points[0][1]:.3g} at first, {c.points[-1][1]:.3g} at last" for c in lines)
    return picture(WIDTH, bottom + 26, title, f"Steps {first:g} to {last:g}. {told}.", drawn)


def bar_chart(title: str, bars: Sequence[Bar]) -> Markup:
    """Horizontal bars from 0 to 1 with their intervals as whiskers, each named and numbered beside it."""
    left, right, top, step = 128.0, WIDTH - 44, 6.0, 24.0
    bottom = top + step * len(bars)

    def across(value: float) -> float:
        return left + (right - left) * value

    drawn: list[Element] = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        drawn.append(line(across(tick), top, across(tick), bottom, "grid"))
        if tick in (0, 0.5, 1):
            drawn.append(text(across(tick), bottom + 16, f"{100 * tick:g}", "tick", "middle"))
    for number, bar in enumerate(bars):
        y = top + step * number + step / 2
        style = f"{'hollow' if bar.hollow else 'bar'} c{bar.style % STYLES}"
        low, high = (across(edge) for edge in bar.interval)
        drawn += [
            text(left - 8, y + 4, bar.name, "name", "end"),
            element("rect", x=left, y=y - 8, width=across(bar.value) - left, height=16, class_=style),
            line(low, y, high, y, "under"),
            line(low, y, high, y, "whisker"),
            line(low, y - 4, low, y + 4, "whisker"),
            line(high, y - 4, high, y + 4, "whisker"),
            text(WIDTH, y + 4, percent(bar.value), "value", "end"),
        ]
    told = "; ".join(f"{b.name} {percent(b.value)}" for b in bars)
    return picture(WIDTH, bottom + 22, title, f"Per cent right. {told}.", drawn)


def forest(title: str, rows: Sequence[Row], low: float, high: float) -> Markup:
    """Differences as dots with their intervals on one scale, low to high; the thick line is no difference."""
    scale = ticks(min(low, 0.0), max(high, 0.0))
    left, right, top, step = 10.0, WIDTH - 10, 4.0, 42.0
    bottom = top + step * len(rows)

    def across(value: float) -> float:
        return left + (right - left) * (value - scale[0]) / (scale[-1] - scale[0])

    drawn: list[Element] = []
    for tick in scale:
        drawn.append(text(across(tick), bottom + 17, points(tick).removesuffix(".0"), "tick", "middle"))
    for number, row in enumerate(rows):
        y = top + step * number + 28
        start, end = (across(edge) for edge in row.interval)
        drawn += [line(across(t), y - 9, across(t), y + 9, "zero" if t == 0 else "grid") for t in scale]
        style = "certain" if row.interval[0] > 0 or row.interval[1] < 0 else "unsure"
        drawn += [
            text(left, y - 13, row.name, "name"),
            text(right, y - 13, points(row.mean), "value", "end"),
            line(start, y, end, y, "range"),
            line(start, y - 5, start, y + 5, "range"),
            line(end, y - 5, end, y + 5, "range"),
            element("circle", cx=across(row.mean), cy=y, r=5, class_=style),
        ]
    told = "; ".join(f"{r.name} {points(r.mean)} ({points(r.interval[0])} to {points(r.interval[1])})" for r in rows)
    return picture(WIDTH, bottom + 24, title, f"Percentage points. {told}.", drawn)
