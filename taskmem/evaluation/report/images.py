"""Frames as data URIs, so that the page needs no other file."""

import base64
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
from av.codec.context import Flags
from numpy.typing import NDArray

from taskmem.records import Segment

Frames = NDArray[np.uint8]
FramesOf = Callable[[Segment], Frames]
"""A segment's frames, uint8 RGB, [T, H, W, 3]."""

LOSSLESS_SIDE = 128  # pixels; larger frames are scaled down and become JPEG, or the page would be megabytes
LONGEST_SIDE = 320
QUANTISER = 5  # JPEG: 2 is the finest, 31 the coarsest
SHOWN = 2


def pick_frames(frames: Frames, shown: int = SHOWN) -> tuple[list[int], list[Frames]]:
    """Numbers and pixels of `shown` frames spread evenly over a clip; all of them if there are not more."""
    count = min(shown, len(frames))
    chosen = [int((i + 0.5) * len(frames) / count) for i in range(count)]
    return chosen, [frames[i] for i in chosen]


def data_uri(frame: Frames) -> str:
    """One frame, uint8 RGB [H, W, 3], as a data URI: PNG up to LOSSLESS_SIDE, else JPEG of at most LONGEST_SIDE."""
    height, width, _ = frame.shape
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    if max(height, width) <= LOSSLESS_SIDE:
        return _uri("png", picture, "rgb24")
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    sides = max(1, round(width * scale)), max(1, round(height * scale))
    return _uri("mjpeg", picture.reformat(*sides, "yuvj420p"), "yuvj420p")


def _uri(codec: str, picture: av.VideoFrame, pixels: str) -> str:
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, pixels
    encoder.time_base = Fraction(1)
    encoder.thread_count = 1
    encoder.flags |= Flags.bitexact
    if codec == "mjpeg":
        encoder.qmin = encoder.qmax = QUANTISER
    data = b"".join(bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode(None)])
    kind = "png" if codec == "png" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
