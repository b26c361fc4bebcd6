"""How far a stage has come: done of total, the one callback every stage takes; and a line about it that is worth reading."""

import time
from collections.abc import Callable

Progress = Callable[[int, int], None]
Note = Callable[[str], None]
SECONDS_BETWEEN = 0.2  # two lines of progress


def silent(done: int, total: int) -> None:
    """Nobody is watching."""


def unheard(line: str) -> None:
    """Nobody is listening."""


def progress_lines() -> Progress:
    """Progress as lines of the log, `::progress DONE/TOTAL`."""
    last = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal last
        if done >= total or time.monotonic() - last > SECONDS_BETWEEN:
            last = time.monotonic()
            print(f"::progress {done}/{total}", flush=True)

    return tell
