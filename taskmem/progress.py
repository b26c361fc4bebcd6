"""How far a stage has come: done of total, the one callback every stage takes; and a line about it that is worth reading."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
Note = Callable[[str], None]


def silent(done: int, total: int) -> None:
    """Nobody is watching."""


def unheard(line: str) -> None:
    """Nobody is listening."""
