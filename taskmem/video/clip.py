"""One segment's clip: frames turned upright, made smaller and encoded so that the same frames give the same bytes."""

import io
import struct
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.buffer import Buffer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from taskmem.config import VideoSettings
from taskmem.video.sample import exact

BT601 = 6  # AVCOL_SPC_SMPTE170M: every clip has this matrix and limited range, whatever the source had
LIMITED = 1
SCALING = Interpolation.AREA | Interpolation.ACCURATE_RND | Interpolation.BITEXACT


def output_size(width: int, height: int, aspect: Fraction, longest_side: int) -> tuple[int, int]:
    """Width and height in pixels after scaling: aspect kept, square pixels, never enlarged, sides even (2 or more)."""
    shown_width = width * min(aspect, Fraction(1))
    shown_height = height / max(aspect, Fraction(1))
    scale = min(Fraction(1), Fraction(longest_side) / max(shown_width, shown_height))
    return _even(shown_width * scale, width), _even(shown_height * scale, height)


def _even(side: Fraction, original: int) -> int:
    return max(2, min(2 * round(side / 2), original // 2 * 2))


def _orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """Whether to transpose, then mirror left-right, then top-bottom: the display matrix to the nearest quarter."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    a, b, _, c, d = struct.unpack_from("<5i", memoryview(cast(Buffer, data)))
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


class ClipWriter:
    """Encodes one segment. The first frame sets the size; a stream that changes size later is scaled to it.

    The clip is mp4, H.264 (crf 18), yuv420p, one frame per sampling interval, first frame at 0.
    """

    def __init__(self, index: int, settings: VideoSettings, aspect: Fraction):
        self.index = index
        self._longest_side = settings.longest_side
        self._aspect = aspect
        self._tick = 1 / exact(settings.fps)
        self._buffer = io.BytesIO()
        self._container = av.open(self._buffer, "w", format="mp4", container_options={"fflags": "+bitexact"})
        self._stream: av.VideoStream | None = None
        self._reformatter = VideoReformatter()
        self._frames = 0
        self.width = self.height = 0

    def add(self, frame: VideoFrame) -> None:
        """Append a decoded frame of any size and pixel format."""
        transpose, mirror, flip = _orientation(frame)
        if self._stream is None:
            sides = output_size(frame.width, frame.height, self._aspect, self._longest_side)
            self.width, self.height = sides[::-1] if transpose else sides
            self._stream = self._open()
        width, height = (self.height, self.width) if transpose else (self.width, self.height)
        turned = transpose or mirror or flip
        small = self._reformat(frame, width, height, "rgb24" if turned else "yuv420p")
        if turned:
            pixels = small.to_ndarray().astype(np.uint8, copy=False)
            pixels = pixels.transpose(1, 0, 2) if transpose else pixels
            pixels = pixels[:: -1 if flip else 1, :: -1 if mirror else 1]
            upright = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            small = self._reformat(upright, self.width, self.height, "yuv420p")
        small.pict_type = 0  # the source's frame types must not steer the encoder
        small.pts, small.time_base = self._frames, self._tick
        self._container.mux(self._stream.encode(small))
        self._frames += 1

    def finish(self) -> bytes:
        """The clip's bytes; nothing can be added afterwards."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()
        return self._buffer.getvalue()

    def _open(self) -> av.VideoStream:
        stream = self._container.add_stream(
            "libx264",
            rate=1 / self._tick,
            options={"crf": "18", "preset": "ultrafast"},
            width=self.width,
            height=self.height,
            time_base=self._tick,
        )
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.colorspace = BT601
        stream.codec_context.color_range = LIMITED
        return stream

    def _reformat(self, frame: VideoFrame, width: int, height: int, pixels: str) -> VideoFrame:
        video = pixels == "yuv420p"
        return self._reformatter.reformat(
            frame,
            width,
            height,
            pixels,
            dst_colorspace=Colorspace.ITU601 if video else None,
            dst_color_range=ColorRange.MPEG if video else None,
            interpolation=SCALING,
            threads=1,
        )
