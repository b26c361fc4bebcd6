"""A segment comes in, its memory is written and stored; nobody is told of it before that is durable."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from taskmem.agent.clips import ClipMaker, Made, RefusedClipError
from taskmem.agent.remembered import ConflictError, MovedError, New, Stream, append, kept_memory, stream_of, window_of
from taskmem.agent.storage import Storage
from taskmem.config import VideoLimits, VideoSettings
from taskmem.endpoint.keys import ApiKey
from taskmem.endpoint.media import Clips
from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.policy.protocols import Policy
from taskmem.policy.stream import Window, write_memories
from taskmem.records import Memory, Segment
from taskmem.video.frames import Frames, frames_in
from taskmem.video.probe import RefusedError
from taskmem.video.sample import exact

TRIES = 20
APART = 1e-6  # seconds by which a segment may begin before the end of the last


class PolicyDownError(Exception):
    """No memory could be written; the segment can be sent again."""


class PolicyFor(Protocol):
    """How an environment's memories are written."""

    def __call__(self, environment: str, key: ApiKey, clips: Clips) -> Policy:
        """The policy of an environment, asked with its own key; `clips` has those of the window."""
        ...


@dataclass(frozen=True)
class Given:
    """A segment as it was sent. `sampled`: its clip is as the policy sees it; else it is a video, still to be sampled.

    Without `start_s` it begins where a stream of whole segments would; without `end_s` it is as long as its clip.
    """

    environment: str
    stream: str
    index: int
    data: bytes
    sampled: bool = False
    start_s: float | None = None
    end_s: float | None = None
    key: ApiKey = field(default_factory=lambda: ApiKey(""))

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of what was sent."""
        return sha256_bytes(self.data)


@dataclass(frozen=True)
class Written:
    """A stored memory; `new` is false where the same segment had been sent before. `seconds`: how long the policy took."""

    memory: Memory
    new: bool
    policy_seconds: float = 0.0


class Writer:
    """Writes memories for any number of threads: streams side by side, each one's segments in order.

    Between looking at a stream and storing its next memory nothing is locked; whoever finds that another was quicker looks again.
    """

    def __init__(
        self, storage: Storage, clips: ClipMaker, policy_for: PolicyFor, video: VideoSettings, window: int, seed: int
    ) -> None:
        self._storage, self._clips, self._policy_for = storage, clips, policy_for
        self._video, self._window, self._seed = video, window, seed

    def write(self, given: Given) -> Written:
        """The memory of a segment. The same bytes under the same index again give what is stored.

        ConflictError for other bytes, or a segment that is not later than the stream's last; ErasedStreamError; RefusedClipError,
        LateClipError; PolicyDownError; StorageDownError.
        """
        made: Made | None = None
        for _ in range(TRIES):
            seen = self._look(given)
            if isinstance(seen, Written):
                return seen
            made = made or (self._clips.taken(given.data) if given.sampled else self._clips.cut(given.data))
            segment = self._segment(given, made, seen.stream.end_s if seen.stream else 0.0)
            clips = held_clips({**seen.clips, segment.sha256: made.data}, self._video.limits)
            policy = self._policy_for(given.environment, given.key, clips)
            start = time.monotonic()
            try:
                (memory,) = write_memories(policy, [seen.window.context(segment, self._window)], self._seed)
            except UserError as error:
                raise PolicyDownError(str(error)) from None
            seconds = time.monotonic() - start
            new = New(given.environment, segment, made.data, memory, given.digest)
            try:
                with self._storage.writing(given.environment, given.stream) as connection:
                    append(connection, seen.stream, new, self._window)
            except MovedError:
                continue
            return Written(memory, True, seconds)
        raise PolicyDownError("others kept writing to the stream")

    def _look(self, given: Given) -> "_Seen | Written":
        """What there is of the stream, or the memory that was asked for."""
        with self._storage.reading() as connection:
            stream = stream_of(connection, given.environment, given.stream)
            if stream is None:
                return _Seen(None, Window(), {})
            known = kept_memory(connection, stream, given.index)
            if known is not None and known.given == given.digest:
                return Written(known.memory, False)
            what = f"segment {given.index} of stream {given.stream}"
            if known is not None:
                raise ConflictError(f"{what}: was sent before with other bytes; a memory is not written twice")
            if given.index <= stream.last:
                raise ConflictError(f"{what}: segment {stream.last} was remembered before; give a stream's in order")
            return _Seen(stream, *window_of(connection, stream, self._window))

    def _segment(self, given: Given, made: Made, after: float) -> Segment:
        """The record of a segment that begins at `after` seconds or later; ConflictError, RefusedClipError."""
        longest = self._video.segment_seconds
        start = given.index * longest if given.start_s is None else given.start_s
        end = start + made.seconds if given.end_s is None else given.end_s
        what = f"segment {given.index} of stream {given.stream}"
        if start < after - APART:
            raise ConflictError(f"{what}: begins at {start:g} s, before the last ends at {after:g} s; give its start_s")
        if not 0 < end - start <= longest + APART:
            raise RefusedClipError(f"{what}: lasts {end - start:g} s, and not up to {longest:g} s; give its end_s")
        return Segment(
            stream=given.stream,
            index=given.index,
            start_s=round(start, 6),
            end_s=round(end, 6),
            source=given.stream,
            clip=f"clips/{given.stream}/{given.index:06d}.mp4",
            fps=float(exact(self._video.fps)),
            width=made.width,
            height=made.height,
            sha256=sha256_bytes(made.data),
        )


@dataclass(frozen=True)
class _Seen:
    """A stream when it was looked at, its window, and the clips of that by their SHA-256."""

    stream: Stream | None
    window: Window
    clips: Mapping[str, bytes]


def held_clips(clips: Mapping[str, bytes], limits: VideoLimits) -> Clips:
    """Clips in memory, by their SHA-256."""

    def frames_of(segment: Segment) -> Frames:
        try:
            return frames_in(clips[segment.sha256], limits)
        except RefusedError as refused:
            raise UserError(f"{segment.clip}: {refused}; send the segment again") from None

    return Clips(lambda segment: clips[segment.sha256], frames_of)
