"""Writes the small real videos the tests read, and reads back what was made of them."""

import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from taskmem.config import VideoLimits, VideoSettings
from taskmem.records import Refusal, Segment, read_records
from taskmem.video import segment
from taskmem.video.frames import read_clip
from taskmem.video.isolation import DecodingWorker

LIMITS = VideoLimits(
    max_bytes=1 << 30, max_pixels=8192 * 4320, max_seconds=86400, max_fps=240, max_subtitle_bytes=1 << 20
)


def settings(*, fps: float = 0.2, longest_side: int = 64, **limits: float) -> VideoSettings:
    changed = VideoLimits.model_validate({**LIMITS.model_dump(), **limits})
    return VideoSettings(segment_seconds=10, fps=fps, longest_side=longest_side, limits=changed)


_WORKER = DecodingWorker()


def segment_videos(
    videos: Path, out: Path, chosen: VideoSettings, progress: segment.Progress | None = None
) -> segment.SegmentationSummary:
    """The function under test in a worker that the tests share, which saves each of them the start of its own."""
    return segment.segment_videos(videos, out, chosen, progress, _WORKER)


def grey(level: int, width: int = 64, height: int = 48) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def shade(index: int) -> int:
    """The grey of the frame `index`; 5 apart, so that lossy codecs cannot make one look like another."""
    return 20 + 5 * (index % 44)


def write_video(
    path: Path,
    frames: Iterable[np.ndarray] | None = None,
    *,
    seconds: float = 10,
    rate: int = 5,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    times_ms: Iterable[int] | None = None,
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    cues: Iterable[tuple[int, int, bytes]] = (),
    cue_codec: str = "subrip",
) -> Path:
    """A video of grey frames or of `frames`, at `rate` or `times_ms`, with embedded `cues` (start, duration, text)."""
    pictures = list(frames) if frames is not None else [grey(shade(i)) for i in range(round(seconds * rate))]
    times = list(times_ms) if times_ms is not None else [1000 * i // rate for i in range(len(pictures))]
    with av.open(str(path), "w", options=muxer or {}) as container:
        base = Fraction(1, rate) if times_ms is None else Fraction(1, 1000)
        stream = container.add_stream(codec, rate=rate, options=options or {}, time_base=base)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        track = container.add_mux_stream(cue_codec) if cues else None
        for start, duration, text in cues:
            assert track is not None
            packet = av.Packet(text)
            packet.stream, packet.time_base = track, Fraction(1, 1000)
            packet.pts = packet.dts = start
            packet.duration = duration
            container.mux(packet)
        for picture, time in zip(pictures, times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def patch(path: Path, marker: bytes, offset: int, data: bytes) -> None:
    """Overwrite bytes at `offset` from the first occurrence of `marker`."""
    content = bytearray(path.read_bytes())
    at = content.index(marker) + offset
    content[at : at + len(data)] = data
    path.write_bytes(content)


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Give an mp4 the display matrix ((a, b), (c, d))."""
    a, b, c, d = (value * 65536 for value in matrix)
    patch(path, b"tkhd", 44, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))


def segments(out: Path) -> list[Segment]:
    return read_records(out / "segments.jsonl", Segment)


def refusals(out: Path) -> dict[str, str]:
    return {r.file: r.reason for r in read_records(out / "refused.jsonl", Refusal)}


def pixels(out: Path, segment: Segment) -> np.ndarray:
    return read_clip(out / segment.clip, LIMITS)


def levels(out: Path, segment: Segment) -> list[int]:
    """The mean grey of each frame of a segment's clip."""
    return [round(float(frame.mean())) for frame in pixels(out, segment)]


def close(found: list[int], indices: list[int]) -> bool:
    """Whether the greys are those of the frames `indices`."""
    return len(found) == len(indices) and all(abs(f - shade(i)) <= 2 for f, i in zip(found, indices, strict=True))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with its bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
