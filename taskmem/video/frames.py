"""Reads a clip back as the array of frames the policy sees."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from taskmem.config import VideoLimits
from taskmem.errors import UserError
from taskmem.records import Segment
from taskmem.video.probe import Opened, RefusedError, check_size, opened, reason, regular_file

Frames = NDArray[np.uint8]  # RGB, [T, H, W, 3]
FramesOf = Callable[[Segment], Frames]
MAX_CLIP_BYTES = 1 << 31  # of decoded RGB; a segment of 20 frames of 640 x 640 needs 25 MB


def read_clip(path: Path, limits: VideoLimits) -> Frames:
    """All frames of the clip at `path` as uint8 RGB, [T, H, W, 3].

    Raises UserError, naming the path, if the clip is missing, damaged, changes its size, holds no frame, breaks
    `limits`, or would take more than 2 GiB.
    """
    try:
        with regular_file(path, limits.max_bytes) as descriptor, opened(descriptor, limits) as source:
            return np.stack(_frames(source, limits))
    except RefusedError as refused:
        raise UserError(f"{path}: {refused}; segment its video again") from None


def frames_in(clip: bytes, limits: VideoLimits) -> Frames:
    """As `read_clip`, of a clip in memory; RefusedError instead."""
    with in_memory(clip) as descriptor, opened(descriptor, limits) as source:
        return np.stack(_frames(source, limits))


@contextmanager
def in_memory(data: bytes) -> Iterator[int]:
    """A descriptor of a file that holds `data` and lies on no disk."""
    descriptor = os.memfd_create("clip")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as handle:
            handle.write(data)
        yield descriptor
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Whole:
    """A clip that was decoded from its first frame to its last: how many there are, and their size in pixels."""

    frames: int
    width: int
    height: int


def whole_clip(descriptor: int, limits: VideoLimits) -> Whole:
    """Decode a clip to its end, as `read_clip` does; RefusedError where that would fail."""
    with opened(descriptor, limits) as source:
        name = source.video.codec_context.name
        if not source.container.format.name.startswith("mov") or name != "h264":
            raise RefusedError(f"no clip: {name} in {source.container.format.name} instead of H.264 in mp4")
        frames = _frames(source, limits)
        height, width = frames[0].shape[:2]
        return Whole(len(frames), width, height)


def _frames(source: Opened, limits: VideoLimits) -> list[Frames]:
    frames: list[Frames] = []
    left = MAX_CLIP_BYTES
    try:
        for frame in source.container.decode(source.video):
            if frame.is_corrupt:
                raise RefusedError(f"frame {len(frames)} is damaged")
            check_size(frame.width, frame.height, limits)
            left -= frame.width * frame.height * 3
            if left < 0:
                raise RefusedError(f"more than {MAX_CLIP_BYTES} bytes of frames, too much for one clip")
            frames.append(frame.to_ndarray(format="rgb24", threads=1).astype(np.uint8, copy=False))
            if frames[-1].shape != frames[0].shape:
                raise RefusedError(f"frame {len(frames) - 1} differs in size from the first")
    except av.FFmpegError as error:
        raise RefusedError(f"damaged clip ({reason(error)})") from None
    if not frames or 0 < source.video.frames != len(frames):
        raise RefusedError(f"damaged clip ({len(frames)} of {source.video.frames} frames)")
    return frames
