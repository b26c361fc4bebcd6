"""Texts are found wherever they stand, however they are escaped or packed."""

import bz2
import gzip
import html
import io
import json
import lzma
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskmem.erasure.needles import LEAST, Needles, SealedArchiveError, unpacked

TEXT = 'Zoë said "it\'s <here>", & left_'


@given(
    texts=st.lists(st.text(min_size=LEAST, max_size=40), min_size=1, max_size=5),
    before=st.binary(max_size=40),
    after=st.binary(max_size=40),
    which=st.integers(0, 4),
)
def test_each_of_many_texts_is_found(texts: list[str], before: bytes, after: bytes, which: int) -> None:
    text = texts[which % len(texts)]
    assert Needles(texts).within(before + text.encode() + after)


@given(text=st.text(min_size=LEAST, max_size=40), data=st.binary(max_size=200))
def test_what_is_not_there_is_not_found(text: str, data: bytes) -> None:
    ways = {text, json.dumps(text)[1:-1], html.escape(text), html.escape(text, quote=False), repr(text)[1:-1]}
    if not any(way.encode() in data for way in ways):
        assert not Needles([text]).within(data)


@pytest.mark.parametrize("at", [0, 1, (1 << 20) - LEAST, (1 << 20) - 5, (1 << 20) - 1, 1 << 20, 3 << 20])
def test_a_text_is_found_across_the_pieces_in_which_a_file_is_read(at: int) -> None:
    assert Needles([TEXT]).within(b"." * at + TEXT.encode())


@pytest.mark.parametrize(
    "page",
    [
        json.dumps({"a": TEXT}),
        json.dumps({"a": TEXT}, ensure_ascii=False),
        html.escape(TEXT),
        html.escape(TEXT, quote=False),
        repr([TEXT]),
        html.escape(TEXT).replace("&quot;", "&#34;").replace("&#x27;", "&#39;"),
        html.escape(TEXT, quote=False).replace("_", r"\_"),
    ],
)
def test_a_text_is_found_as_a_page_or_a_log_writes_it(page: str) -> None:
    assert Needles([TEXT]).within(page.encode())


def test_short_texts_are_anybodys() -> None:
    assert not Needles(["a red box", "", "ab"])
    assert not Needles(["a red box"]).within(b"a red box")


def test_texts_that_begin_alike_are_told_apart() -> None:
    needles = Needles(["the person opens the door", "the person opens the window"])
    assert needles.within(b"the person opens the window")
    assert not needles.within(b"the person opens the fridge")


def zipped(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize(
    "packed",
    [
        gzip.compress(TEXT.encode() * 9),
        bz2.compress(TEXT.encode() * 9),
        lzma.compress(TEXT.encode() * 9),
        zipped("a.txt", TEXT.encode() * 9),
        zipped("inner.zip", zipped("a.gz", gzip.compress(TEXT.encode() * 9))),
    ],
    ids=["gzip", "bz2", "xz", "zip", "zip of a zip of gzip"],
)
def test_archives_are_looked_into(packed: bytes) -> None:
    assert not Needles([TEXT]).within(packed)
    assert any(Needles([TEXT]).within(part) for part in unpacked(packed))


@pytest.mark.parametrize("packed", [gzip.compress(b"x" * 99)[:-20], b"BZh9garbage", b"\xfd7zXZ\x00garbage"])
def test_an_archive_that_cannot_be_looked_into_is_said_so(packed: bytes) -> None:
    with pytest.raises(SealedArchiveError):
        list(unpacked(packed))
