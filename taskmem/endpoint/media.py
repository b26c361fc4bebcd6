"""Video as message parts: an mp4, lossless frames, or single images."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Self

import av
import numpy as np

from taskmem.config import VideoLimits
from taskmem.errors import UserError
from taskmem.files import canonical_json, sha256_bytes
from taskmem.records import Segment
from taskmem.video.frames import Frames, FramesOf, read_clip

Part = dict[str, Any]


@dataclass(frozen=True)
class Clips:
    """Where the clips of segments lie: their bytes as they are, and their frames."""

    bytes_of: Callable[[Segment], bytes]
    frames_of: FramesOf

    @classmethod
    def below(cls, folder: Path, limits: VideoLimits) -> Self:
        """The clips of a segmentation's output folder."""

        def whole(segment: Segment) -> bytes:
            path = folder / segment.clip
            try:
                data = path.read_bytes()
            except OSError as error:
                raise UserError(f"{path}: cannot be read ({error.strerror}); segment its video again") from None
            if sha256_bytes(data) != segment.sha256:
                raise UserError(f"{path}: not the clip that segments.jsonl names; segment its video again")
            return data

        return cls(whole, lambda segment: read_clip(folder / segment.clip, limits))


def video_parts(segment: Segment, media: Literal["mp4", "frames", "images"], clips: Clips) -> list[Part]:
    """A segment's clip, whose frames are those the policy sees, as message parts.

    "frames" is vLLM's sequence of images as one video; the server is told its frame rate when it starts (`server_flags`).
    """
    if media == "mp4":
        return [_part("video_url", f"data:video/mp4;base64,{base64.b64encode(clips.bytes_of(segment)).decode()}")]
    pictures = [base64.b64encode(png(frame)).decode() for frame in clips.frames_of(segment)]
    if media == "frames":
        return [_part("video_url", f"data:video/jpeg;base64,{','.join(pictures)}")]
    return [_part("image_url", f"data:image/png;base64,{picture}") for picture in pictures]


def frame_count(segment: Segment, clips: Clips) -> int:
    """How many frames a segment's clip holds, by its header."""
    with av.open(io.BytesIO(clips.bytes_of(segment))) as container:
        return int(container.streams.video[0].frames)


def server_flags(media: Literal["mp4", "frames"], fps: float) -> list[str]:
    """What `vllm serve` must be started with so that it takes clips of `fps` as they are.

    Otherwise it samples twice: when it reads the video (2 frames a second, or 32), and again in the processor, because a video
    that was read whole is marked as not yet sampled. Requests may not ask for it: the server refuses.
    """
    # "opencv" is the loader that samples evenly, and with -1 not at all; "qwen3_vl" always samples
    video = {"num_frames": -1, "fps": fps} if media == "frames" else {"num_frames": -1, "video_backend": "opencv"}
    values = {"--media-io-kwargs": {"video": video}, "--mm-processor-kwargs": {"do_sample_frames": False}}
    return [word for flag, value in values.items() for word in (flag, canonical_json(value))]


def _part(kind: str, url: str) -> Part:
    return {"type": kind, kind: {"url": url}}


def png(frame: Frames) -> bytes:
    """One frame, uint8 RGB [H, W, 3], as a PNG: the same frame gives the same bytes."""
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = picture.width, picture.height, "rgb24"
    encoder.time_base = Fraction(1)
    encoder.thread_count = 1
    return b"".join(bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode(None)])
