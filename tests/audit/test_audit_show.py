"""The chain on a terminal of 80 columns, as JSON and as a page."""

import io
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from audit_parts import CANARY, Place
from rich.console import Console
from rich.table import Table

from taskmem.audit.graph import chain_graph
from taskmem.audit.links import Chain, Link, Problem, compared, split_name
from taskmem.audit.page import write_page
from taskmem.audit.show import brief, broken_lines, chain_table, facts_table, short, texts_table
from taskmem.errors import UserError

EVIL = "<script>alert(1)</script> & [bold]"


@pytest.fixture(scope="module")
def whole(kept_place: Place, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return kept_place.audit("door@v2", tmp_path_factory.mktemp("whole"), show_text=True)


def shown(table: Table, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


def page(chain: Chain, tmp_path: Path) -> str:
    write_page(chain, tmp_path / "audit.html")
    return (tmp_path / "audit.html").read_text()


def link(name: str, status: str = "verified", *rests_on: str) -> Link:
    return Link(name, status, "place", "somebody", "a" * 64, "b" * 64, "why", {}, rests_on)  # type: ignore[arg-type]


def test_the_table_fits_80_columns_and_has_every_link_with_both_digests(whole: Chain) -> None:
    text = shown(chain_table(whole))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert text.count("✓ verified") == len(whole.links)
    for one in whole.links:
        assert text.count(short(one.expected)) >= 1
    assert max(len(line.rstrip()) for line in shown(facts_table(whole)).splitlines()) <= 80


def test_no_text_of_a_user_s_is_in_the_tables_but_in_its_own(whole: Chain) -> None:
    assert CANARY not in shown(chain_table(whole)) + shown(facts_table(whole))
    assert CANARY in shown(texts_table(whole.texts))


def test_the_page_is_whole_in_itself_and_dark_where_the_reader_is(whole: Chain, tmp_path: Path) -> None:
    text = page(whole, tmp_path)
    assert not re.findall(r"(?:src|href)\s*=|@import|url\(|<script", text)
    assert "prefers-color-scheme: dark" in text
    assert f"every one of {len(whole.links)} links holds" in text
    for one in whole.links:
        assert one.expected is not None
        assert one.expected in text
    assert CANARY in text
    assert page(whole, tmp_path / "again") == text


def test_the_page_shows_no_text_unless_it_was_asked_for(whole: Chain, tmp_path: Path) -> None:
    assert CANARY not in page(replace(whole, texts={}), tmp_path)


def test_the_page_says_what_does_not_hold_and_nothing_in_it_becomes_markup(whole: Chain, tmp_path: Path) -> None:
    bad = Link(EVIL, "missing", EVIL, EVIL, EVIL, None, EVIL, {EVIL: EVIL, "list": [EVIL]}, ("manifest",))
    text = page(replace(whole, subject=EVIL, links=(bad, *whole.links), notes=(EVIL,), texts={EVIL: EVIL}), tmp_path)
    assert f"1 of {len(whole.links) + 1} links do not hold" in text
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 8


Points = list[tuple[float, float]]


def drawn(*links: Link) -> tuple[ElementTree.Element, dict[str, tuple[float, float, float, float]], list[Points]]:
    """A graph's picture, its boxes by name as left, upper, right and lower side, and the ways between them."""
    svg = ElementTree.fromstring(str(chain_graph("a chain", links)))
    parts = [(node.tag.rpartition("}")[2], node) for node in svg]
    sides = [
        [float(node.get(side, "nan")) for side in ("x", "y", "width", "height")] for tag, node in parts if tag == "rect"
    ]
    boxes = {one.name: (x, y, x + w, y + h) for one, (x, y, w, h) in zip(links, sides, strict=True)}
    told = [node.get("points", "") for tag, node in parts if tag == "polyline"]
    ways = [[(float(x), float(y)) for x, y in (point.split(",") for point in way.split())] for way in told]
    return svg, boxes, ways


def test_the_graph_joins_each_link_with_what_it_rests_on_below_it() -> None:
    links = [link("answer", "verified", "adapter", "elsewhere"), link("adapter", "damaged", "pairs"), link("pairs")]
    svg, boxes, ways = drawn(*links)
    below = [(way[0][1], way[-1][1]) for way in ways]
    assert below == [(boxes["answer"][3], boxes["adapter"][1]), (boxes["adapter"][3], boxes["pairs"][1])]
    edges = [node.get("class") for node in svg if node.tag.endswith("polyline")]
    assert edges == ["edge is-damaged", "edge is-verified"]
    words = [one.text for one in svg.iter() if one.tag.endswith("text")]
    assert words.count("✗ damaged") == 1
    assert svg[1].text == "answer verified; adapter damaged; pairs verified"


def crosses(start: tuple[float, float], end: tuple[float, float], box: tuple[float, float, float, float]) -> bool:
    left, top, right, bottom = box
    places = [(start[0] + (end[0] - start[0]) * n / 200, start[1] + (end[1] - start[1]) * n / 200) for n in range(201)]
    return any(left < x < right and top < y < bottom for x, y in places)


def test_no_line_of_the_graph_goes_behind_a_box(whole: Chain) -> None:
    _, boxes, ways = drawn(*whole.links)
    assert len(ways) > len(whole.links)
    for way in ways:
        for start, end in pairwise(way):
            assert not [name for name, box in boxes.items() if crosses(start, end, box)]


def test_a_long_name_stands_in_its_box_in_two_lines(whole: Chain) -> None:
    svg, _, _ = drawn(*whole.links)
    names = [node.text for node in svg if node.get("class") == "name"]
    assert names.count("adapter_model.safetensors") == 2
    assert "in the lineage" in names
    assert not [name for name in names if name and "…" in name]


def test_links_that_rest_on_each_other_have_a_graph_all_the_same() -> None:
    svg = str(chain_graph("a circle", [link("one", "verified", "other"), link("other", "verified", "one")]))
    assert svg.count("<rect") == 2


def test_the_json_is_what_it_should_be(whole: Chain) -> None:
    document = json.loads(json.dumps(whole.document()))
    assert (document["subject"], document["holds"], len(document["links"])) == ("door@v2", True, len(whole.links))
    assert "questions" in document
    assert "questions" not in replace(whole, texts={}).document()


def test_a_broken_link_is_one_line_whatever_is_in_it() -> None:
    bad = replace(link("pairs", "damaged"), reason="two\nlines \x1b[31m")
    (line,) = broken_lines([link("adapter"), bad])
    assert line.isprintable()
    assert line.startswith("pairs: damaged: place: two\\nlines")
    assert "(somebody says aaaaaaaaaaaa, found bbbbbbbbbbbb)" in line


@pytest.mark.parametrize(
    ("expected", "found", "status"),
    [("a", "a", "verified"), ("a", "b", "damaged"), ("a", None, "missing"), (None, "b", "damaged")],
)
def test_two_digests_make_a_link(expected: str | None, found: str | None, status: str) -> None:
    assert compared("x", "place", "y", expected, found).status == status


def test_a_problem_outweighs_equal_digests() -> None:
    made = compared("x", "place", "y", "a", "a", problems=[Problem("erased", "there", "gone")])
    assert (made.status, made.where, made.reason) == ("erased", "there", "gone")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (True, "yes"), (0.123456, "0.1235"), (None, "–"), ([], "none"), ("x\ny", "x\\ny"), ({"a_b": 1}, "a b 1"),
        ("f" * 64, "f" * 12), ("image@sha256:" + "7" * 64, "image@sha256:" + "7" * 12), (["q1", "q2"], "2 (q1, q2)"),
        (list("abcd"), "4 (a, b, c and 1 more)"),
    ],
)  # fmt: skip
def test_a_fact_is_said_in_a_few_words(value: object, said: str) -> None:
    assert brief(value) == said


@pytest.mark.parametrize("name", ["door", "@v1", "door@", ""])
def test_a_name_without_environment_or_version_is_a_mistake(name: str) -> None:
    with pytest.raises(UserError, match="give it as environment@version"):
        split_name(name)
