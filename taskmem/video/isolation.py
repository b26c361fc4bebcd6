"""Decoding in a process of its own: a file that crashes FFmpeg, eats the memory or hangs costs only itself."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from taskmem.config import VideoSettings
from taskmem.video.cut import Clip, Cut
from taskmem.video.decode import End
from taskmem.video.frames import Whole
from taskmem.video.probe import NotYetError, RefusedError
from taskmem.video.subtitles import Turn
from taskmem.video.wire import Channel, ClosedError

MAX_MEMORY_BYTES = 4 << 30  # address space; the reference frames of 8K video in 10 bits need about half of it
MAX_STALL_SECONDS = 120.0  # without a decoded frame and without a finished segment

START_SECONDS = 120.0  # imports from a slow disk
EXIT_SECONDS = 10.0  # between the end of a worker's socket and the end of the worker
ITS_OWN_FAULT = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP)


class _FaultError(RefusedError):
    """Refused for what the file did to the worker, which may be the work of a file before it."""


class DecodingWorker:
    """Cuts videos in one long-lived process, started for the first video and replaced when it dies; use it in `with`.

    A video is refused for a crash or for its memory only if that happens in a worker that had no other video before:
    otherwise a fresh worker tries it again. Nothing that a crashed worker made is kept.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._served = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def cut(self, descriptor: int, settings: VideoSettings, take: Callable[[Clip], None]) -> Cut:
        """Cut the file behind `descriptor`; `take` gets each clip in turn, from index 0, and again from 0 on a retry.

        Raises RefusedError if the file cannot be used, crashes the decoder or needs more than MAX_MEMORY_BYTES;
        NotYetError if it changes meanwhile, makes no progress for MAX_STALL_SECONDS, or if somebody kills the worker.
        RuntimeError if no worker can be started.
        """
        return _cut(self._twice("cut", descriptor, settings, take))

    def whole(self, descriptor: int, settings: VideoSettings) -> Whole:
        """Decode the clip behind `descriptor` to its end, within `settings.limits`; errors as `cut`."""
        answer = self._twice("whole", descriptor, settings, lambda _: None)
        return Whole(answer["frames"], answer["width"], answer["height"])

    def begin(self) -> None:
        """Start the process, if there is none, so that the next call need not wait for it; RuntimeError if that fails."""
        if self._channel is None:
            self._start()

    def interrupt(self) -> None:
        """End what is being decoded, from another thread: its call then raises NotYetError."""
        process = self._process
        if process is not None:
            process.kill()

    def _twice(
        self, kind: str, descriptor: int, settings: VideoSettings, take: Callable[[Clip], None]
    ) -> dict[str, Any]:
        """The worker's answer; a second, fresh worker is asked where the first may have suffered from another file."""
        fresh = not self._served
        try:
            return self._attempt(kind, descriptor, settings, take)
        except _FaultError:
            self.stop()
            if fresh:
                raise
        return self._twice(kind, descriptor, settings, take)

    def _attempt(
        self, kind: str, descriptor: int, settings: VideoSettings, take: Callable[[Clip], None]
    ) -> dict[str, Any]:
        channel = self._channel or self._start()
        self._served += 1
        question = {"kind": kind, "settings": settings.model_dump_json()}
        answer, data = self._exchange(channel, question, [descriptor])
        while answer["kind"] == "clip":
            sides = answer["width"], answer["height"]
            take(Clip(answer["index"], data, *sides, Fraction(answer["end"]), answer["total"]))
            answer, data = self._exchange(channel, {"kind": "next"})
        if answer["kind"] == "refused":
            raise (RefusedError if answer["lasting"] else NotYetError)(answer["reason"])
        if answer["kind"] == "no memory":
            raise _FaultError(f"needs more than {MAX_MEMORY_BYTES} bytes of memory")
        if answer["kind"] == "failed":
            raise NotYetError(f"the decoder failed ({answer['reason']})")
        return answer

    def _exchange(
        self, channel: Channel, message: dict[str, Any], descriptors: Sequence[int] = ()
    ) -> tuple[dict[str, Any], bytes]:
        """Send `message` and wait for what is no mere sign of life."""
        try:
            channel.send(message, descriptors=descriptors)
            while True:
                answer, data = channel.receive()
                if answer["kind"] != "alive":
                    return answer, data
        except TimeoutError:
            self.stop()
            words = f"no frame and no segment for {MAX_STALL_SECONDS:g} s; the decoder was stopped"
            raise NotYetError(words) from None
        except ClosedError as closed:
            raise self._death(closed) from None

    def _death(self, closed: ClosedError) -> RefusedError:
        """Why the worker is gone, which it is afterwards."""
        assert self._process is not None
        try:
            code = self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.stop()
            return _FaultError(f"the decoder broke off ({closed})")
        self.stop()
        if code >= 0:
            return _FaultError(f"the decoder crashed (exit status {code})")
        name = signal.Signals(-code).name
        if -code in ITS_OWN_FAULT:
            return _FaultError(f"the decoder crashed ({name})")
        return NotYetError(f"the decoder was killed from outside ({name})")

    def _start(self) -> Channel:
        ours, theirs = socket.socketpair()
        self._channel = channel = Channel(ours)
        with theirs:
            command = [sys.executable, "-P", "-m", "taskmem.video.worker", str(theirs.fileno()), str(MAX_MEMORY_BYTES)]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # never written to: it closes when this process ends, and the worker with it
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **_environment()},
                process_group=0,  # Ctrl-C is for this process, which then stops the worker
            )
        try:
            ours.settimeout(START_SECONDS)
            channel.receive()
            ours.settimeout(MAX_STALL_SECONDS)
        except (ClosedError, TimeoutError) as error:
            self.stop()
            raise RuntimeError(f"the decoding worker did not start ({error})") from None
        return channel

    def stop(self) -> None:
        """End the worker, if there is one, at once; it writes no files, so that nothing is left half done."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdin is not None
            self._process.stdin.close()
        if self._channel is not None:
            self._channel.close()
        self._process = self._channel = None
        self._served = 0


def _environment() -> dict[str, str]:
    """Makes the worker import what this process would, and keeps NumPy from starting threads."""
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    return {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _cut(answer: dict[str, Any]) -> Cut:
    end = answer["end"]
    turns = tuple(Turn(Fraction(start), Fraction(stop), *words) for start, stop, *words in answer["turns"])
    return Cut(End(Fraction(end["time"]), end["cut"], end["partial"], end["note"]), turns, answer["problem"])
