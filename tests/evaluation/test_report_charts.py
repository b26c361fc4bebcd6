"""Charts as pure functions of numbers: scales, labels that do not meet, escaped names."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from taskmem.evaluation.metrics import Difference
from taskmem.evaluation.report import words
from taskmem.evaluation.report.charts import MOST_POINTS, Bar, Line, Row, bar_chart, forest, line_chart, thinned
from taskmem.evaluation.report.svg import Element, spread, ticks

finite = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 6))


def drawn(chart: str) -> Element:
    return ElementTree.fromstring(chart)


@given(finite, finite)
@example(0.00012, -400401.0)
def test_ticks_cover_what_they_are_for_at_even_steps(a: float, b: float) -> None:
    low, high = sorted((a, b))
    made = ticks(low, high)
    slack = 1e-6 * (made[1] - made[0])
    assert made[0] <= low + slack
    assert made[-1] >= high - slack
    assert 2 <= len(made) <= 8
    steps = [y - x for x, y in pairwise(made)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3, abs=1e-9)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=6))
def test_labels_are_moved_apart_and_keep_their_order(places: list[float]) -> None:
    moved = spread(places, gap=14, low=0, high=100)
    order = sorted(range(len(places)), key=lambda i: (places[i], i))
    for before, after in pairwise(order):
        assert moved[after] - moved[before] >= 14 - 1e-9
    assert all(-1e-9 <= y <= 100 + 1e-9 for y in moved)


def test_a_long_curve_is_thinned_to_means_and_a_short_one_is_left() -> None:
    short = tuple((float(x), float(x)) for x in range(MOST_POINTS))
    assert thinned(short) == short
    long = [(float(x), float(x % 2)) for x in range(10 * MOST_POINTS)]
    assert len(thinned(long)) == MOST_POINTS
    assert {y for _, y in thinned(long)} == {0.5}


def test_every_curve_is_drawn_and_named_inside_the_picture() -> None:
    lines = [Line(name, ((1, y), (2, y), (3, y)), n) for n, (name, y) in enumerate({"a": 1.0, "b": 1.01}.items())]
    chart = drawn(line_chart("Reward <x>", lines, marked=2.0, mark="taken"))
    assert [e.get("class") for e in chart.iter("polyline")] == ["curve c0", "curve c1"]
    assert {"a", "b", "taken", "step"} <= {e.text for e in chart.iter("text")}
    assert chart.findtext("title") == "Reward <x>"
    assert "a: 1 at first, 1 at last" in (chart.findtext("desc") or "")


def test_a_curve_of_one_step_can_be_drawn() -> None:
    chart = line_chart("one", [Line("a", ((1.0, 0.0),), 0)])
    assert "nan" not in chart
    assert len(list(drawn(chart).iter("circle"))) == 1


def test_bars_are_as_long_as_their_values_and_numbered() -> None:
    bars = [Bar("half", 0.5, (0.4, 0.6), 0), Bar("whole", 1.0, (1.0, 1.0), 1, hollow=True), Bar("none", 0, (0, 0), 2)]
    chart = drawn(bar_chart("t", bars))
    widths = [float(e.get("width", "")) for e in chart.iter("rect")]
    assert widths[1] == 2 * widths[0] > 0 == widths[2]
    assert [e.get("class") for e in chart.iter("rect")] == ["bar c0", "hollow c1", "bar c2"]
    assert {"50.0", "100.0", "0.0", "half", "whole", "none"} <= {e.text for e in chart.iter("text")}


def test_a_dot_is_filled_only_where_the_interval_excludes_zero() -> None:
    rows = [Row("up", 0.1, (0.05, 0.2)), Row("unsure", 0.1, (-0.05, 0.2)), Row("down", -0.1, (-0.2, -0.05))]
    chart = drawn(forest("t", rows, -0.2, 0.2))
    assert [e.get("class") for e in chart.iter("circle")] == ["certain", "unsure", "certain"]
    places = [float(e.get("cx", "")) for e in chart.iter("circle")]
    zero = float(next(e for e in chart.iter("line") if e.get("class") == "zero").get("x1", ""))
    assert places[2] < zero < places[0] == places[1]


def test_names_from_outside_are_escaped() -> None:
    chart = bar_chart("<script>", [Bar("<b>&", 0.5, (0.4, 0.6), 0)])
    assert "<script>" not in chart
    assert "<b>" not in chart
    assert re.search(r"&lt;b&gt;&amp;", chart)


@pytest.mark.parametrize(
    ("value", "written"), [(0.1234, "+12.3"), (-0.1234, "−12.3"), (0.0, "0.0"), (0.0004, "0.0"), (-0.0004, "0.0")]
)
def test_differences_carry_their_sign(value: float, written: str) -> None:
    assert words.points(value) == written


@pytest.mark.parametrize(
    ("interval", "written"),
    [
        ((0.1, 0.3), "adds 20.0 points"),
        ((-0.3, -0.1), "costs 20.0 points"),
        ((0.0, 0.4), "makes no certain difference (+20.0 points)"),
    ],
)
def test_a_change_is_claimed_only_where_it_is_certain(interval: tuple[float, float], written: str) -> None:
    assert words.change(Difference(mean=sum(interval) / 2, ci95=interval)) == written


def test_an_unknown_arm_keeps_its_name() -> None:
    assert words.label("my_arm") == "my arm"
    assert words.note("my_arm") == ""
    assert not words.is_control("my_arm")
    assert words.is_control("phase_two_other_task")
