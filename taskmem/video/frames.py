"""Reads a clip back as the array of frames the policy sees."""

from collections.abc import Callable
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
