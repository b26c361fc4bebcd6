"""Two adapters side by side, as bytes and as vectors."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from taskmem.errors import UserError
from taskmem.files import atomic_write
from taskmem.records import one_line

EXPLAINED = 1e-3
"""The relative difference up to which other hardware explains it. Another processor's instructions (SSE, AVX2, AVX-512) make one
of 5e-7 in the miniature's float32; to leave out one of five pairs makes one of 0.5."""


@dataclass(frozen=True)
class Distance:
    """How far two vectors are apart: their Euclidean norms, the norm of their difference and the cosine between them.

    `difference` and `cosine` are None where they are of different layers or sizes and so cannot be compared.
    """

    layers: tuple[int, int]
    norms: tuple[float, float]
    difference: float | None
    cosine: float | None

    @property
    def explained(self) -> bool:
        """True if another processor or another version of torch could have made the one of the other's inputs."""
        return self.difference is not None and self.difference <= EXPLAINED * self.norms[0]

    def document(self) -> dict[str, Any]:
        """The distance as JSON."""
        return asdict(self)


def distance(one: Path, other: Path) -> Distance:
    """The distance of the vectors in two adapter folders; UserError for a folder that holds no adapter."""
    (first, a), (second, b) = (_read(folder) for folder in (one, other))
    norms = (math.hypot(*a), math.hypot(*b))
    if first != second or len(a) != len(b) or not all(norms):
        return Distance((first, second), norms, None, None)
    apart = math.dist(a, b)
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return Distance((first, second), norms, apart, dot / (norms[0] * norms[1]))


def lay_files(contents: dict[str, bytes], folder: Path) -> Path:
    """The files of an adapter in `folder`; returns it."""
    for name, data in contents.items():
        atomic_write(folder / name, data)
    return folder


def _read(folder: Path) -> tuple[int, Sequence[float]]:
    # torch comes with it
    from taskmem.steer import read_adapter  # noqa: PLC0415

    try:
        layer, vector = read_adapter(folder)
    except ValueError as error:
        raise UserError(f"{folder}: {one_line(str(error))}") from None
    return layer, vector.tolist()
