"""Opens a file nobody trusts: regular files, known containers, the header checked before a frame is decoded."""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.stream import Disposition
from av.subtitles.stream import SubtitleStream
from av.video.stream import VideoStream

from taskmem.config import VideoLimits

CONTAINERS = ("mov", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "ogg", "asf", "mxf", "nut", "ivf")
"""The demuxers that may run. None opens a second file: playlists, concat lists and image patterns are left out."""

TEXT_CODECS = ("subrip", "srt", "text", "webvtt", "mov_text", "ass", "ssa")
DECLARES_DURATION = ("mov", "matroska", "avi", "flv", "asf")  # the others estimate it from the bytes that are there
HEADER_ONLY = {"codec_whitelist": "none", "analyzeduration": "1"}  # opening decodes a frame where no decoder is barred
AV_TIME = 1_000_000


class RefusedError(Exception):
    """A file that is not used; the message is the reason, one line without the file's name."""

    lasting = True  # the same bytes give the same result next time


class NotYetError(RefusedError):
    """Refused for a reason outside the file, or one that time decides: the next run tries it again."""

    lasting = False


@dataclass(frozen=True)
class Opened:
    """An open container and what its header says; times in seconds of the container's own clock."""

    container: InputContainer
    video: VideoStream
    subtitles: SubtitleStream | None
    frame_seconds: Fraction  # nominal, used where the file gives no time
    declared_end: Fraction | None  # where the header says that the last packet ends
    aspect: Fraction  # width of a pixel over its height

    @property
    def seconds(self) -> float | None:
        """The declared length of the stream, if any."""
        duration = self.container.duration
        return duration / AV_TIME if duration and duration > 0 else None


@contextmanager
def regular_file(path: Path, max_bytes: int, limit: str = "limits.max_bytes") -> Iterator[int]:
    """A descriptor of the regular, non-empty file at `path` of at most `max_bytes`; RefusedError otherwise.

    A last path component that is a link is not followed, and a FIFO does not block.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise RefusedError(f"cannot be opened ({error.strerror})") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RefusedError("not a regular file")
        if not status.st_size:
            raise RefusedError("empty: zero bytes")
        if status.st_size > max_bytes:
            raise RefusedError(f"{status.st_size} bytes, more than {limit} = {max_bytes}")
        yield descriptor
    finally:
        os.close(descriptor)


def fingerprint(descriptor: int) -> tuple[int, int]:
    """Size and modification time: they change if somebody still writes to the file."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def digest(descriptor: int) -> str:
    """Hex SHA-256 of an open file, read in pieces; RefusedError if it cannot be read."""
    try:
        with os.fdopen(os.dup(descriptor), "rb") as handle:
            handle.seek(0)
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise RefusedError(f"cannot be read ({error.strerror})") from None


@contextmanager
def opened(descriptor: int, limits: VideoLimits) -> Iterator[Opened]:
    """The container behind `descriptor`, its best video stream ready to decode; RefusedError if there is none."""
    with _open(descriptor, HEADER_ONLY) as container:
        for stream in container.streams.video:
            if stream.codec_context is not None:
                check_size(stream.codec_context.width, stream.codec_context.height, limits)
    with _open(descriptor, {"max_pixels": str(limits.max_pixels)}) as container:
        yield _described(container, limits)


def _open(descriptor: int, options: dict[str, str]) -> InputContainer:
    os.lseek(descriptor, 0, os.SEEK_SET)
    # FFmpeg gets a descriptor and may use no other protocol: no name and no content can make it open anything else.
    safe = {"fd": str(descriptor), "protocol_whitelist": "fd", "format_whitelist": ",".join(CONTAINERS)}
    try:
        container: InputContainer = av.open("fd:", options={**safe, **options}, metadata_errors="replace")
    except MemoryError:
        raise
    except (av.FFmpegError, ValueError) as error:
        raise RefusedError(f"not a video in a container this stage reads ({reason(error)})") from None
    return container


def reason(error: Exception) -> str:
    """FFmpeg's own words for an error, without the name of the file."""
    return str(getattr(error, "strerror", None) or error)


def _described(container: InputContainer, limits: VideoLimits) -> Opened:
    video = _video_stream(container)
    video.codec_context.options = {"max_pixels": str(limits.max_pixels)}
    video.codec_context.thread_count = 1  # more threads hold more frames, and damage then shows in another order
    rate = video.average_rate or video.guessed_rate
    if container.format.name.startswith("mov") and video.frames and not len(video.index_entries):
        raise RefusedError(
            f"its index of {video.frames} frames cannot be built"
        )  # no memory, mostly; FFmpeg goes on without
    slowest, fastest = Fraction(1), 1 / Fraction(limits.max_fps)
    frame_seconds = min(max(1 / Fraction(rate), fastest), slowest) if rate and rate > 0 else Fraction(1, 25)
    return Opened(
        container,
        video,
        _subtitle_stream(container),
        frame_seconds,
        _declared_end(container, video, frame_seconds),
        _aspect(video),
    )


def check_size(width: int, height: int, limits: VideoLimits) -> None:
    """RefusedError if a frame of `width` x `height` pixels would exceed the limit."""
    if width * height > limits.max_pixels:
        raise RefusedError(f"frames of {width} x {height} pixels, more than limits.max_pixels = {limits.max_pixels}")


def _video_stream(container: InputContainer) -> VideoStream:
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    streams = [s for s in container.streams.video if not s.disposition & pictures]
    if not streams:
        raise RefusedError("no video stream")
    usable = [s for s in streams if s.codec_context is not None]
    if not usable:
        raise RefusedError("no decoder for its video stream")
    return min(usable, key=lambda s: (not s.disposition & Disposition.default, s.index))


def _subtitle_stream(container: InputContainer) -> SubtitleStream | None:
    text = [
        s for s in container.streams.subtitles if s.codec_context is not None and s.codec_context.name in TEXT_CODECS
    ]
    unwanted = Disposition.forced
    order = [(bool(s.disposition & unwanted), not s.disposition & Disposition.default, s.index) for s in text]
    return text[order.index(min(order))] if text else None


def _declared_end(container: InputContainer, video: VideoStream, frame_seconds: Fraction) -> Fraction | None:
    name = container.format.name.split(",")[0]
    if name not in DECLARES_DURATION or not container.duration or container.duration <= 0:
        return None
    end = Fraction((container.start_time or 0) + container.duration, AV_TIME)
    if name == "avi":  # FFmpeg lowers an AVI's duration to what the index holds; the header's frame count stays
        end = max(end, video.frames * frame_seconds)
    return end


def _aspect(video: VideoStream) -> Fraction:
    ratio = video.codec_context.sample_aspect_ratio
    if ratio is None or not Fraction(1, 8) <= ratio <= 8:
        return Fraction(1)
    return Fraction(ratio)
