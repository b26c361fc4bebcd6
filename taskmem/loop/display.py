"""Stages as a person wants to see them: one live line each on a terminal, one plain line each in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from taskmem.progress import Progress as Callback

WIDTH = 34


class StageDisplay:
    """Implements `runner.Display` on a console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def stage(self, name: str) -> Iterator[Callback]:
        """Show `name` with its progress until the block ends, then how long it took."""
        start = time.monotonic()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bar:
            task = bar.add_task(f"{name:<{WIDTH}}", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        self._line(name, "done", f"{time.monotonic() - start:6.1f} s")

    def skipped(self, name: str) -> None:
        """Say that `name` was done already."""
        self._line(name, "unchanged", "")

    def _line(self, name: str, what: str, more: str) -> None:
        self._console.print(f"  {name:<{WIDTH}} {what:<10}{more}", highlight=False)
