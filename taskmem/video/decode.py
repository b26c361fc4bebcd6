"""Frames with their times: one pass over the packets, with every limit that only decoding can see."""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
from av.packet import Packet
from av.video.frame import VideoFrame

from taskmem.config import VideoLimits
from taskmem.video.probe import AV_TIME, Opened, RefusedError, check_size, reason
from taskmem.video.subtitles import EmbeddedTurns

JUMP_BACK = Fraction(1)  # seconds; a larger step back restarts the clock, a smaller one is jitter
MISSING = Fraction(1)  # seconds; a file that ends this much before its declared end is truncated
IDLE_PACKETS = 4096  # packets in a row without a frame; no decoder delays this long
DELAY = 32  # frames; no decoder holds more back
BURST_SLACK = 0.95  # time bases of a millisecond round a steady rate up to this much


@dataclass(frozen=True)
class Timed:
    """A decoded frame and the second of the stream at which it appears; the first one appears at 0."""

    time: Fraction
    frame: VideoFrame


@dataclass(frozen=True)
class End:
    """Where and why a stream ends. `cut` is None at its own end; `partial` says that an unfinished segment may stay."""

    time: Fraction
    cut: str | None = None
    partial: bool = True
    note: str | None = None


class _BreakError(Exception):
    """Nothing beyond this point can be used; the message says why."""


class Clock:
    """Turns presentation times into stream time: zero at the first frame, never decreasing."""

    def __init__(self, frame_seconds: Fraction):
        self.frame_seconds = frame_seconds
        self.origin: Fraction | None = None
        self._offset = Fraction(0)
        self._last = Fraction(0)

    def read(self, presented: Fraction | None) -> Fraction:
        """The stream time in seconds of the next frame, presented at `presented` or at no known time."""
        if self.origin is None:
            self.origin = self._offset = presented or Fraction(0)
            return self._last
        following = self._last + self.frame_seconds
        time = following if presented is None else presented - self._offset
        if presented is not None and time < self._last - JUMP_BACK:
            self._offset, time = presented - following, following
        self._last = max(self._last, time)
        return self._last


class Burst:
    """Notices more frames than `max_fps` allows within a second of stream time."""

    def __init__(self, max_fps: float):
        self._window = max(1.0, 1 / max_fps)
        self._times: deque[float] = deque(maxlen=math.ceil(max_fps * self._window) + 1)

    def exceeded(self, time: float) -> bool:
        """True if the frame at `time` is one too many."""
        self._times.append(time)
        full = len(self._times) == self._times.maxlen
        return full and time - self._times[0] < self._window * BURST_SLACK


class Decoder:
    """Decodes one video once. Damage shorter than `bridge` seconds is stepped over and noted; longer damage ends it.

    After a damaged packet nothing is taken until the next key frame, so that no broken picture becomes a memory.
    `alive` is called whenever a packet gives a frame, good or not.
    """

    def __init__(self, source: Opened, limits: VideoLimits, bridge: Fraction, alive: Callable[[], None]):
        self._source = source
        self._limits = limits
        self._bridge = bridge
        self._alive = alive
        self._base = source.video.time_base or Fraction(1, AV_TIME)  # frames out of a flush carry none of their own
        self._clock = Clock(source.frame_seconds)
        self._burst = Burst(limits.max_fps)
        self._damaged = 0
        self._lost = False
        self._watch = 0  # frames to come among which the one after the damage is
        self._reached = Fraction(0)  # the end of the furthest packet, container time
        self._end = Fraction(0)  # the end of the last frame, stream time
        self.turns = EmbeddedTurns(source.subtitles, limits.max_subtitle_bytes)

    @property
    def origin(self) -> Fraction:
        """The container time of the first frame, which is second 0 of the stream."""
        return self._clock.origin or Fraction(0)

    def frames(self) -> Generator[Timed, None, End]:
        """Yields frames in order of time and returns where and why the stream ends."""
        longest = Fraction(self._limits.max_seconds)
        too_long = f"longer than limits.max_seconds = {self._limits.max_seconds:g}"
        last = Fraction(0)
        try:
            for frame in self._good_frames():
                check_size(frame.width, frame.height, self._limits)
                time = self._clock.read(None if frame.pts is None else frame.pts * self._base)
                if time >= longest:
                    return End(longest, too_long, note=self._note())
                if self._watch and time - last > self._bridge:
                    raise _BreakError(f"damaged for {float(time - last):.1f} s")
                self._watch = max(self._watch - 1, 0)
                if self._burst.exceeded(float(time)):
                    raise _BreakError(
                        f"more frames in a second of the stream than limits.max_fps = {self._limits.max_fps:g}"
                    )
                last = time
                self._end = time + self._duration(frame)
                yield Timed(time, frame)
        except (_BreakError, RefusedError) as broken:
            return End(self._end, str(broken), partial=False, note=self._note())
        if self._end > longest:
            return End(longest, too_long, note=self._note())
        return End(self._end, note=self._note())

    def _duration(self, frame: VideoFrame) -> Fraction:
        if frame.duration and frame.duration > 0:
            return frame.duration * self._base
        return self._source.frame_seconds

    def _note(self) -> str | None:
        return (
            f"damaged: packets left out, up to the next key frame each time: {self._damaged}" if self._damaged else None
        )

    def _good_frames(self) -> Iterator[VideoFrame]:
        seen = False
        for frame in self._decoded():
            if frame.is_corrupt:
                self._damage()
                continue
            seen = True
            yield frame
        if self._lost and seen:
            raise _BreakError("damaged from here on")
        self._check_complete()

    def _decoded(self) -> Iterator[VideoFrame]:
        idle = 0
        for packet in self._packets():
            frames = self._decode(packet)
            idle = 0 if frames else idle + 1
            if idle > IDLE_PACKETS:
                raise _BreakError(f"{IDLE_PACKETS} packets in a row hold no frame")
            if frames:
                self._alive()
            yield from frames
        yield from self._decode(None)

    def _decode(self, packet: Packet | None) -> list[VideoFrame]:
        if packet is not None:
            if packet.size == 0:  # a repeated frame of an AVI; a decoder would take it for the end
                return []
            if packet.is_corrupt or (self._lost and not packet.is_keyframe):
                self._damage()
                return []
        try:
            frames = self._source.video.codec_context.decode(packet)
        except MemoryError:
            raise
        except av.FFmpegError:
            if packet is not None and packet.is_keyframe:
                self._check_declared_size(packet)
            self._damage()
            return []
        if packet is not None:
            self._lost = False
        return frames

    def _check_declared_size(self, packet: Packet) -> None:
        """RefusedError if the size is why the packet was not decoded: FFmpeg keeps the limit but does not say so."""
        parser = av.CodecContext.create(self._source.video.codec_context.name, "r")
        try:
            parser.parse(bytes(packet))
            parser.parse(None)
        except MemoryError:
            raise
        except av.FFmpegError:
            return
        check_size(parser.width, parser.height, self._limits)

    def _damage(self) -> None:
        self._damaged += 1
        self._lost = True
        self._watch = DELAY

    def _packets(self) -> Iterator[Packet]:
        """The video packets; text packets are collected on the way, all others only tell how far the file reaches."""
        packets = self._source.container.demux()
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except MemoryError:
                raise
            except av.FFmpegError as error:
                raise _BreakError(f"cannot be read from here on ({reason(error)})") from None
            if packet.size:
                self._note_end(packet)
            if packet.stream_index == self._source.video.index and (packet.size or packet.dts is not None):
                yield packet
            elif packet.size:
                self.turns.add(packet)

    def _note_end(self, packet: Packet) -> None:
        start = packet.dts if packet.pts is None else packet.pts
        if start is not None and packet.time_base:
            self._reached = max(self._reached, (start + (packet.duration or 0)) * packet.time_base)

    def _check_complete(self) -> None:
        declared = self._source.declared_end
        if declared is not None and self._reached + MISSING < declared:
            raise _BreakError(f"truncated: the header declares {float(declared):.1f} s")
