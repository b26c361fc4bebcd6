"""Which frames a segment shows: one in the middle of each sampling interval. Pure, whatever the frames are."""

import math
from collections.abc import Generator
from dataclasses import dataclass
from fractions import Fraction

from av.video.frame import VideoFrame

from taskmem.config import VideoSettings
from taskmem.video.decode import End, Timed

PRECISION = 1_000_000  # a rate written 0.2 means 1/5, not the nearest binary fraction


def exact(value: float) -> Fraction:
    """The fraction a decimal setting stands for."""
    return Fraction(value).limit_denominator(PRECISION)


@dataclass(frozen=True)
class Grid:
    """The sampling points of a stream; all times in seconds."""

    segment: Fraction
    interval: Fraction
    per_segment: int

    @classmethod
    def of(cls, settings: VideoSettings) -> "Grid":
        """The grid of `settings`; a segment shorter than one interval has one point, in its middle."""
        segment = exact(settings.segment_seconds)
        interval = min(1 / exact(settings.fps), segment)
        return cls(segment, interval, math.ceil(segment / interval - Fraction(1, 2)))

    def point(self, number: int) -> tuple[int, Fraction]:
        """The segment and the stream time of the sampling point `number`, counted from 0."""
        segment, within = divmod(number, self.per_segment)
        return segment, segment * self.segment + (within + Fraction(1, 2)) * self.interval


@dataclass(frozen=True)
class Sample:
    """The frame that a segment shows at its next sampling point."""

    segment: int
    frame: VideoFrame


def samples(frames: Generator[Timed, None, End], grid: Grid) -> Generator[Sample, None, End]:
    """Yields, for each sampling point in turn, the last frame that appears at or before it; returns the stream's end.

    A gap of a variable-frame-rate stream shows the frame before it. Two decoded frames are held at most.
    """
    number = 0
    current: Timed | None = None
    while True:
        try:
            following = next(frames)
        except StopIteration as stop:
            end: End = stop.value
            break
        while current is not None and grid.point(number)[1] < following.time:
            yield Sample(grid.point(number)[0], current.frame)
            number += 1
        current = following
    if current is not None:
        yield from _tail(number, current, end.time, grid)
    return end


def _tail(number: int, current: Timed, end: Fraction, grid: Grid) -> Generator[Sample, None, None]:
    """The points between the last frame and the end; a last segment with a frame of its own shows at least one."""
    last = max(math.ceil(end / grid.segment) - 1, 0)
    start = last * grid.segment
    # A remainder in which no frame appears and that is shorter than one interval would only repeat the frame before it.
    nothing_new = current.time < start and end - start < grid.interval
    while True:
        segment, time = grid.point(number)
        first = number % grid.per_segment == 0
        if segment > last or (segment == last and nothing_new):
            return
        if time >= end and not (segment == last and first):
            return
        yield Sample(segment, current.frame)
        number += 1
