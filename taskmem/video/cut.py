"""One open video to clips: decode, sample, encode. All of FFmpeg that meets a foreign file runs below this module."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import av

from taskmem.config import VideoSettings
from taskmem.video.clip import ClipWriter
from taskmem.video.decode import Decoder, End
from taskmem.video.probe import NotYetError, Opened, RefusedError, fingerprint, opened, reason
from taskmem.video.sample import Grid, samples
from taskmem.video.subtitles import Turn


@dataclass(frozen=True)
class Clip:
    """The encoded clip of segment `index`; it ends at `end` seconds, and the stream at `total` if its header tells."""

    index: int
    data: bytes
    width: int
    height: int
    end: Fraction
    total: float | None


@dataclass(frozen=True)
class Cut:
    """How a video ended, the turns of its own text track (stream time), and what was wrong with that track, or None."""

    end: End
    turns: tuple[Turn, ...]
    problem: str | None


def cut_video(
    descriptor: int, settings: VideoSettings, deliver: Callable[[Clip], None], alive: Callable[[], None]
) -> Cut:
    """Decode the file behind `descriptor` once and `deliver` the clip of each segment in turn, from index 0.

    `alive` is called whenever a packet gives a frame. Raises RefusedError if the file cannot be used, NotYetError if
    somebody writes to it meanwhile, MemoryError where FFmpeg gets no memory. Source: METHOD section 1.
    """
    before = fingerprint(descriptor)
    grid = Grid.of(settings)

    def hand_over(writer: ClipWriter, end: Fraction) -> None:
        data = writer.finish()
        deliver(Clip(writer.index, data, writer.width, writer.height, end, source.seconds))

    def check_unchanged() -> None:
        if fingerprint(descriptor) != before:
            raise NotYetError("changed while it was read; segment it when it is complete")

    with opened(descriptor, settings.limits) as source:
        decoder = Decoder(source, settings.limits, grid.segment, alive)
        try:
            end = _write_clips(source, decoder, settings, hand_over, check_unchanged)
        except MemoryError:
            raise
        except (av.FFmpegError, ValueError) as error:
            raise RefusedError(f"its frames cannot be converted ({reason(error)})") from None
        turns, problem = decoder.turns.finished(decoder.origin)
    return Cut(end, turns, problem)


def _write_clips(
    source: Opened,
    decoder: Decoder,
    settings: VideoSettings,
    hand_over: Callable[[ClipWriter, Fraction], None],
    check_unchanged: Callable[[], None],
) -> End:
    """Hand over segment by segment and return the stream's end; a segment that may not stay is left out."""
    grid = Grid.of(settings)
    writer: ClipWriter | None = None
    frames = samples(decoder.frames(), grid)
    while True:
        try:
            sample = next(frames)
        except StopIteration as stop:
            end: End = stop.value
            break
        if writer is not None and writer.index != sample.segment:
            hand_over(writer, (writer.index + 1) * grid.segment)
            writer = None
            check_unchanged()
        if writer is None:
            writer = ClipWriter(sample.segment, settings, source.aspect)
        writer.add(sample.frame)
    check_unchanged()
    if writer is not None:
        whole = (writer.index + 1) * grid.segment
        if whole <= end.time or end.partial:
            hand_over(writer, min(whole, end.time))
    return end
