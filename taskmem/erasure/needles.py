"""Many texts looked for at once, also inside of archives and as other formats escape them."""

import bz2
import gzip
import html
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

LEAST = 12  # bytes; shorter texts ("the red box") are anybody's
LARGEST = 1 << 30  # bytes that an archive may expand to
_DEEPEST = 4
_PIECE = 1 << 20
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_MARKDOWN = re.compile(r"([\\`*_{}\[\]|#!~])")
_PACKED: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"\x1f\x8b", gzip.decompress),
    (b"BZh", bz2.decompress),
    (b"\xfd7zXZ\x00", lzma.decompress),
)
_DAMAGES = (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


class SealedArchiveError(Exception):
    """An archive that cannot be looked into: encrypted, damaged, or too large."""


class Needles:
    """The `texts` of at least `LEAST` bytes, in every way they are commonly escaped."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._by_start: dict[int, dict[int, set[bytes]]] = {}
        for text in texts:
            for form in _forms(text):
                data = form.encode("utf-8", "surrogatepass")
                if len(data) >= LEAST:
                    start = int(_starts(data[:LEAST])[0])
                    self._by_start.setdefault(start, {}).setdefault(len(data), set()).add(data)
        self._starts = np.array(sorted(self._by_start), dtype=np.uint64)

    def __bool__(self) -> bool:
        return bool(self._by_start)

    def within(self, data: bytes) -> bool:
        """Whether any of the texts stands in `data`."""
        if not self._by_start or len(data) < LEAST:
            return False
        for at in range(0, len(data) - LEAST + 1, _PIECE):
            starts = _starts(data[at : at + _PIECE + LEAST - 1])
            places = np.searchsorted(self._starts, starts).clip(max=len(self._starts) - 1)
            for offset in np.flatnonzero(self._starts[places] == starts):
                if self._here(data, at + int(offset), int(starts[offset])):
                    return True
        return False

    def _here(self, data: bytes, at: int, start: int) -> bool:
        return any(data[at : at + length] in known for length, known in self._by_start[start].items())


def _starts(data: bytes) -> NDArray[np.uint64]:
    """A hash of each `LEAST` bytes that follow one another in `data`."""
    one = np.frombuffer(data, dtype=np.uint8).astype(np.uint64)
    two = one[:-1] | one[1:] << np.uint64(8)
    four = two[:-2] | two[2:] << np.uint64(16)
    eight = four[:-4] | four[4:] << np.uint64(32)
    starts: NDArray[np.uint64] = eight[:-4] * _FACTOR + four[8:]
    return starts


def _forms(text: str) -> set[str]:
    escaped = html.escape(text)
    return {
        text,
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
        repr(text)[1:-1],
        escaped,
        html.escape(text, quote=False),
        escaped.replace("&quot;", "&#34;").replace("&#x27;", "&#39;"),
        # a table of outcomes in Markdown
        _MARKDOWN.sub(r"\\\1", html.escape(text, quote=False)),
    }


def unpacked(data: bytes, depth: int = 0) -> Iterator[bytes]:
    """`data` and, where it is an archive, what is in it; SealedArchiveError for one that cannot be looked into."""
    yield data
    try:
        if zipfile.is_zipfile(io.BytesIO(data)):
            inner = _members(data)
        else:
            inner = iter([open_(data) for magic, open_ in _PACKED if data.startswith(magic)])
        for member in inner:
            if depth == _DEEPEST:
                raise SealedArchiveError
            yield from unpacked(member, depth + 1)
    except _DAMAGES:
        raise SealedArchiveError from None


def _members(data: bytes) -> Iterator[bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > LARGEST:
            raise SealedArchiveError
        for entry in archive.infolist():
            yield entry.filename.encode()
            yield archive.read(entry)
