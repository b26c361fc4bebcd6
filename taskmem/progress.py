"""How far a stage has come: done of total. The one callback every stage takes."""

from collections.abc import Callable

Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """Nobody is watching."""
