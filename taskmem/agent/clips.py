"""What a client sends becomes a segment's clip. Hostile files meet FFmpeg in processes of their own."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, TypeVar

from taskmem.config import VideoSettings
from taskmem.errors import UserError
from taskmem.video.cut import Clip
from taskmem.video.frames import in_memory
from taskmem.video.isolation import DecodingWorker
from taskmem.video.probe import NotYetError, RefusedError
from taskmem.video.sample import Grid, exact

T = TypeVar("T")
LONGER = 2.0  # segments; what goes on beyond is not decoded


class RefusedClipError(UserError):
    """The bytes are no video of one segment."""


class LateClipError(Exception):
    """Nothing can be said of the bytes: they took too long, or the decoder was ended from outside."""


@dataclass(frozen=True)
class Made:
    """A clip as the policy sees it; `seconds` long."""

    data: bytes
    width: int
    height: int
    seconds: float


class ClipMaker:
    """Cuts and checks what is sent, in `decoders` processes; thread-safe, a context manager."""

    def __init__(self, settings: VideoSettings, decoders: int, seconds: float) -> None:
        """A file is looked at for at most so many seconds."""
        longest = min(settings.limits.max_seconds, LONGER * settings.segment_seconds)
        limits = settings.limits.model_copy(update={"max_seconds": longest})
        self._settings = settings.model_copy(update={"limits": limits})
        self._seconds = seconds
        self._workers = [DecodingWorker() for _ in range(decoders)]
        self._free: queue.SimpleQueue[DecodingWorker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)

    def cut(self, data: bytes) -> Made:
        """The one clip of a video of at most one segment, sampled as the profile says; RefusedClipError, LateClipError."""
        clips: list[Clip] = []

        def take(clip: Clip) -> None:
            if clip.index == 0:  # again from the start, where a decoder crashed
                clips.clear()
            clips.append(clip)

        with in_memory(data) as descriptor:
            cut = self._decoded(lambda worker: worker.cut(descriptor, self._settings, take))
        if cut.end.cut is not None or len(clips) > 1:
            longest = self._settings.segment_seconds
            raise RefusedClipError(f"video: {cut.end.cut or f'longer than a segment of {longest:g} s'}; cut it again")
        if not clips:
            raise RefusedClipError("video: no frame could be decoded; send another")
        (clip,) = clips
        return Made(clip.data, clip.width, clip.height, round(float(clip.end), 6))

    def taken(self, data: bytes) -> Made:
        """A clip that is cut and sampled already, as it is, once it was decoded to its end; errors as `cut`."""
        settings, grid = self._settings, Grid.of(self._settings)
        with in_memory(data) as descriptor:
            whole = self._decoded(lambda worker: worker.whole(descriptor, settings))
        if whole.frames > grid.per_segment or max(whole.width, whole.height) > settings.longest_side:
            raise RefusedClipError(
                f"clip: {whole.frames} frames of {whole.width} x {whole.height} pixels, more than {grid.per_segment} of "
                f"{settings.longest_side}; sample it again, or send it as a video"
            )
        seconds = min(whole.frames / exact(settings.fps), grid.segment)
        return Made(data, whole.width, whole.height, round(float(seconds), 6))

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decoded(self, work: Callable[[DecodingWorker], T]) -> T:
        with self._worker() as worker:
            try:
                return work(worker)
            except NotYetError as error:
                late = str(error)
            except RefusedError as error:
                raise RefusedClipError(f"video: {error}; send another") from None
            except RuntimeError as error:  # a decoder that was needed anew did not start
                late = str(error)
        raise LateClipError(late)

    @contextmanager
    def _worker(self) -> Iterator[DecodingWorker]:
        worker = self._free.get()
        try:
            try:
                # its start is not the file's fault
                worker.begin()
            except RuntimeError as error:
                raise LateClipError(str(error)) from None
            alarm = threading.Timer(self._seconds, worker.interrupt)
            alarm.daemon = True
            alarm.start()
            try:
                yield worker
            finally:
                alarm.cancel()
        finally:
            self._free.put(worker)
