"""Attempts of stages as processes of this machine."""

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from kfp import local
from kfp.local import subprocess_task_handler
from kfp.local.status import Status

from pipelines.local.attempt import Attempt, Ended, Transcript, stage_environment
from pipelines.local.quiet import replaced

_SCRIPT = '"$program_path/ephemeral_component.py"'
# The read ends when this process dies, however it dies, for then the kernel closes the pipe; unlike a parent-death signal
# this reaches grandchildren too, and it keeps the group's id from being given to anybody else before we kill the group.
_LIFELINE = 'exec 3<&0; (read -r _ <&3; kill -KILL 0) >/dev/null 2>&1 & exec "$@" 3<&- </dev/null'
_DRAIN_SECONDS = 5.0


class Processes:
    """The attempts that run now. Each is a session of its own, which dies as a whole: when the attempt ends, when `stop`
    is called, and when this process dies, by SIGKILL too."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()

    @contextmanager
    def installed(self, out: Path, temporary: Path, images: Iterable[str], here: threading.local) -> Iterator[Any]:
        """See `Attempts.installed`; neither images nor what lies outside of `out` matter to a process."""
        handler = partial(_Handler, self, temporary, here)
        with replaced(subprocess_task_handler, SubprocessTaskHandler=handler):
            yield local.SubprocessRunner(use_venv=False)

    def run(self, command: Sequence[str], environment: Mapping[str, str], transcript: Transcript) -> Ended:
        """Run `command` to its end. After `stop` nothing runs: the attempt ends as killed."""
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
        reader = _Reader(process, transcript)
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
        return Ended(code, tuple(transcript.lines))

    def stop(self) -> None:
        """Kill every attempt and let no further one begin."""
        with self._lock:
            self.stopped.set()
            for process in self._running:
                _kill(process)


class _Handler(subprocess_task_handler.SubprocessTaskHandler):
    """One attempt, made by the stage that this thread is at."""

    def __init__(self, processes: Processes, temporary: Path, here: threading.local, **given: Any) -> None:
        super().__init__(**given)
        self._processes, self._temporary = processes, temporary
        self._attempt: Attempt = here.attempt

    def run(self) -> Status:
        environment = stage_environment(os.environ, self.env_vars, self._temporary)
        command = with_this_interpreter(self.full_command)
        self._attempt.ended = self._processes.run(command, environment, self._attempt.transcript)
        return Status.SUCCESS if self._attempt.ended.code == 0 else Status.FAILURE


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

    def __init__(self, process: subprocess.Popen[str], transcript: Transcript) -> None:
        super().__init__(daemon=True)
        self._process, self._transcript = process, transcript
        self.error: Exception | None = None

    def run(self) -> None:
        assert self._process.stdout is not None
        try:
            with self._process.stdout as said:
                self._transcript.write(said)
        except Exception as error:
            self.error = error
            if self._process.poll() is None:
                _kill(self._process)


def _kill(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    assert process.stdin is not None
    process.stdin.close()
