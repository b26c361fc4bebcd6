"""One attempt of a stage: its processes, its log file and the progress lines it prints."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taskmem.progress import Progress

KEPT_LINES = 20
USER_ERROR = 2
# what the command line prints before a user's mistake
SAID = "taskmem: "
_PROGRESS = re.compile(r"::progress (\d+)/(\d+)\s*")
_SCRIPT = '"$program_path/ephemeral_component.py"'
# The read ends when this process dies, however it dies, for then the kernel closes the pipe; unlike a parent-death signal
# this reaches grandchildren too, and it keeps the group's id from being given to anybody else before we kill the group.
_LIFELINE = 'exec 3<&0; (read -r _ <&3; kill -KILL 0) >/dev/null 2>&1 & exec "$@" 3<&- </dev/null'
_DRAIN_SECONDS = 5.0


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


class Processes:
    """The attempts that run now. Each is a session of its own, which dies as a whole: when the attempt ends, when `stop`
    is called, and when this process dies, by SIGKILL too."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, *, attempt: int, progress: Progress
    ) -> Ended:
        """Run `command` to its end and write what it says to `log`; a line `::progress DONE/TOTAL` goes to `progress` instead.

        The first attempt begins the log, later ones go on in it. After `stop` nothing runs: the attempt ends as killed.
        """
        with self._lock:
            if self.stopped.is_set():
                return Ended(-signal.SIGKILL, ())
            process = subprocess.Popen(
                ["sh", "-c", _LIFELINE, "sh", *command],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
            self._running.add(process)
        reader = _Reader(process, log, attempt, progress)
        reader.start()
        try:
            code = process.wait()
        finally:
            with self._lock:
                _kill(process)
                self._running.discard(process)
        # only a process that left the session can hold the pipe longer
        reader.join(_DRAIN_SECONDS)
        if reader.error is not None:
            raise reader.error
        return Ended(code, tuple(reader.lines))

    def stop(self) -> None:
        """Kill every attempt and let no further one begin."""
        with self._lock:
            self.stopped.set()
            for process in self._running:
                _kill(process)


def stage_environment(variables: Mapping[str, str], temporary: Path) -> dict[str, str]:
    """The environment of a stage: one thread unless the user says otherwise, and temporary files in `temporary`."""
    defaults = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    return {**defaults, **os.environ, **variables, "TMPDIR": str(temporary)}


def with_this_interpreter(command: Sequence[str]) -> list[str]:
    """A component's command with this interpreter for `python3`.

    kfp's own replacement also rewrites the arguments, and with them every path that has `python3` in it.
    """
    scripts = [i for i, part in enumerate(command) if _SCRIPT in part]
    last = scripts[0] if scripts else -1
    python = shlex.quote(sys.executable)
    return [part.replace("python3", python) if i <= last else part for i, part in enumerate(command)]


class _Reader(threading.Thread):
    """Reads what an attempt says; if that cannot be written down, the attempt is killed and `error` says why."""

    def __init__(self, process: subprocess.Popen[str], log: Path, attempt: int, progress: Progress) -> None:
        super().__init__(daemon=True)
        self._process, self._log, self._attempt, self._progress = process, log, attempt, progress
        self._in_input = False
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._read()
        except Exception as error:
            self.error = error
            if self._process.poll() is None:
                _kill(self._process)

    def _read(self) -> None:
        assert self._process.stdout is not None
        # line by line, so that a person can follow the file
        mode = "w" if self._attempt == 1 else "a"
        with self._process.stdout as said, self._log.open(mode, encoding="utf-8", buffering=1) as log:
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


def _kill(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    assert process.stdin is not None
    process.stdin.close()
