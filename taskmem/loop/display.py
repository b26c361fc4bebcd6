"""Stages as a person wants to see them: one live line each on a terminal, one plain line each in a log."""

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from taskmem.progress import Progress as Callback

WIDTH = 38
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class StageDisplay:
    """Implements `runner.Display` on a console; several stages, in several threads, may be live at once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._bars = self._new_bars()
        self._live = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[Callback]:
        """Show `name` with its progress until the block ends, then how long it took."""
        start = time.monotonic()
        with self.live(name) as progress:
            yield progress
        self.done(name, time.monotonic() - start)

    @contextmanager
    def live(self, name: str) -> Iterator[Callback]:
        """Show `name` with its progress until the block ends, and say nothing then."""
        bars = self._enter()
        task = bars.add_task(_fit(name), total=None)
        try:
            yield lambda done, total: bars.update(task, completed=done, total=total)
        finally:
            bars.remove_task(task)
            self._leave()

    def done(self, name: str, seconds: float, note: str = "") -> None:
        """Say that `name` has finished after so many seconds."""
        self._print(self._line(name, "done", seconds, note))

    def skipped(self, name: str) -> None:
        """Say that `name` was done already."""
        self._print(self._line(name, "unchanged"))

    def failed(
        self, name: str, seconds: float, reason: str, log: Path | None = None, lines: Sequence[str] = ()
    ) -> None:
        """Say that `name` has failed and why, with the last lines it wrote and the file that has them all."""
        block = [self._line(name, "failed", seconds, reason), *(f"    {_printable(line)}" for line in lines)]
        if log is not None:
            block.append(f"    log: {log}")
        # in one piece, for another stage may speak meanwhile
        self._print("\n".join(block))

    def note(self, text: str) -> None:
        """Say one thing that is no stage."""
        self._print(f"  {text}")

    def _enter(self) -> Progress:
        with self._lock:
            if self._live == 0:
                self._bars = self._new_bars()
                self._bars.start()
            self._live += 1
            return self._bars

    def _leave(self) -> None:
        with self._lock:
            self._live -= 1
            if self._live == 0:
                self._bars.stop()

    def _new_bars(self) -> Progress:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        return Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)

    def _line(self, name: str, what: str, seconds: float | None = None, note: str = "") -> str:
        took = "" if seconds is None else f"{seconds:6.1f} s"
        line, note = f"  {_fit(name)} {what:<10}{took}".rstrip(), _printable(note)
        if not note:
            return line
        return f"{line}  {note}" if len(line) + 2 + len(note) <= self._console.width else f"{line}\n    {note}"

    def _print(self, text: str) -> None:
        # a terminal breaks a long line better than we do: its parts can be copied together
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def _fit(name: str) -> str:
    """`name` in exactly WIDTH characters; of a longer one the middle is left out."""
    if len(name) <= WIDTH:
        return f"{name:<{WIDTH}}"
    head = (WIDTH - 1) // 2
    return f"{name[:head]}…{name[head + 1 - WIDTH :]}"


def _printable(text: str) -> str:
    """`text` without what would move the cursor or change colours."""
    return "".join(c for c in _ESCAPES.sub("", text).expandtabs(4) if c.isprintable())
