"""What lies in a bucket under a key: one header line, then the object's bytes.

    sha256 <hex of the bytes> writes <id> <id> ... seal <hex of this line up to here>

Every write draws an id; the line lists it first, then the ids of the writes it replaced, newest first. This gives two
things that S3 does not. No two writes have the same bytes, so S3's own ETag names one write, and If-Match replaces what
was read and not its like (A, then B, then A again). And a writer whose answer got lost finds its id, also where others
have gone on from its object since.
"""

import re
import uuid
from dataclasses import dataclass

from taskmem.files import sha256_bytes

# 17 bytes each; a lost answer is recognised through this many later writes
_REMEMBERED = 128
_LONGEST_LINE = 17 * _REMEMBERED + 200
_LINE = re.compile(rb"(sha256 ([0-9a-f]{64}) writes ([0-9a-f]{16}(?: [0-9a-f]{16})*)) seal ([0-9a-f]{64})")


@dataclass(frozen=True)
class Sealed:
    """An object's content with the SHA-256 of it in hex, and the ids of the writes that led to it, newest first."""

    data: bytes
    sha256: str
    writes: tuple[str, ...]


def new_write() -> str:
    """The id of a write."""
    return uuid.uuid4().hex[:16]


def seal(data: bytes, writes: tuple[str, ...]) -> bytes:
    """The bytes to keep in the bucket for `data`, written by `writes`, newest first."""
    line = f"sha256 {sha256_bytes(data)} writes {' '.join(writes[:_REMEMBERED])}"
    return f"{line} seal {sha256_bytes(line)}\n".encode() + data


def unseal(raw: bytes) -> Sealed:
    """What `seal` put into `raw`; ValueError if one bit of it changed or its end is missing."""
    end = raw.find(b"\n", 0, _LONGEST_LINE)
    line = _LINE.fullmatch(raw, 0, max(end, 0))
    data = raw[end + 1 :]
    digest = sha256_bytes(data)
    if line is None or sha256_bytes(line[1]) != line[4].decode() or digest != line[2].decode():
        raise ValueError("not the bytes that were stored")
    return Sealed(data, digest, tuple(line[3].decode().split(" ")))
