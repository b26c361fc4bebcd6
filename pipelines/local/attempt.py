"""One attempt of a stage, however it is made: how it ends, and what it says."""

import re
import signal
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from taskmem.progress import Progress

KEPT_LINES = 20
USER_ERROR = 2
# what the command line prints before a user's mistake
SAID = "taskmem: "
_PROGRESS = re.compile(r"::progress (\d+)/(\d+)\s*")


@dataclass(frozen=True)
class Ended:
    """How an attempt ended: its exit status (negative: the signal) and the last lines it wrote."""

    code: int
    lines: tuple[str, ...]

    @property
    def user_error(self) -> bool:
        """Whether the stage blames its input, so that another attempt would end the same."""
        return self.code == USER_ERROR

    @property
    def said(self) -> str | None:
        """A user error in the stage's own words."""
        said = [line.removeprefix(SAID) for line in self.lines if line.startswith(SAID)]
        return said[-1] if self.user_error and said else None

    @property
    def reason(self) -> str:
        """Why the attempt failed, in a few words."""
        # a shell reports its child's death by signal n as 128 + n
        number = -self.code if self.code < 0 else self.code - 128
        if number in {s.value for s in signal.Signals}:
            return f"killed by {signal.Signals(number).name}"
        return self.said or f"exit status {self.code}"


class Transcript:
    """What an attempt says: into its log file, but progress to the screen. `lines` keeps the last ones.

    The first attempt begins the log, later ones go on in it; it is written line by line, so that a person can follow.
    """

    def __init__(self, log: Path, attempt: int, progress: Progress) -> None:
        self._log, self._attempt, self._progress = log, attempt, progress
        self._in_input = False
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)

    def write(self, said: Iterable[str]) -> None:
        """Write down all lines of `said`, to its end."""
        with self._log.open("w" if self._attempt == 1 else "a", encoding="utf-8", buffering=1) as log:
            if self._attempt > 1:
                log.write(f"--- attempt {self._attempt} ---\n")
            for line in said:
                if found := _PROGRESS.fullmatch(line):
                    self._progress(int(found[1]), int(found[2]))
                else:
                    log.write(line)
                    self._keep(line.rstrip())

    def _keep(self, line: str) -> None:
        # kfp begins every log with the whole of the task's input: in the log it is of use, among the last lines it is not
        if line.startswith("[KFP Executor "):
            self._in_input = line.endswith("Got executor_input:")
        elif self._in_input:
            self._in_input = line != "}"
        else:
            self.lines.append(line)


@dataclass
class Attempt:
    """What a handler is told of the attempt it makes, and how that ended."""

    transcript: Transcript
    ended: Ended | None = None


class Attempts(Protocol):
    """How attempts are made: as processes of this interpreter, or in containers of the stages' images."""

    stopped: threading.Event

    def installed(
        self, out: Path, temporary: Path, images: Iterable[str], here: threading.local
    ) -> AbstractContextManager[Any]:
        """What `local.init` is to be given, while kfp makes attempts this way; `here.attempt` is the one of a thread."""
        ...

    def stop(self) -> None:
        """Kill every attempt and let no further one begin."""
        ...


def stage_environment(given: Mapping[str, str], variables: Mapping[str, str], temporary: Path) -> dict[str, str]:
    """The environment of a stage: one thread unless the user's own (`given`) says otherwise, temporary files in `temporary`."""
    defaults = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    return {**defaults, **given, **variables, "TMPDIR": str(temporary)}
