"""A policy watching streams: windows, contexts, and one memory per segment (METHOD section 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from taskmem.errors import UserError
from taskmem.policy.protocols import Completion, Policy
from taskmem.progress import Progress, silent
from taskmem.records import Context, ContextMemory, Memory, Segment

Streams = Mapping[str, Sequence[Segment]]


def by_stream(segments: Sequence[Segment]) -> dict[str, list[Segment]]:
    """Segments grouped by stream, each stream in order."""
    streams: dict[str, list[Segment]] = {}
    for segment in sorted(segments, key=lambda s: (s.stream, s.index)):
        streams.setdefault(segment.stream, []).append(segment)
    return streams


def window_context(
    segments: Sequence[Segment], memories: Mapping[int, str], position: int, window: int, task: str | None = None
) -> Context:
    """q_t at `position` of a stream: the last `window` segments and the memories kept of the earlier ones."""
    shown = segments[max(0, position - window + 1) : position + 1]
    kept = tuple(ContextMemory(index=s.index, text=memories[s.index]) for s in shown[:-1] if s.index in memories)
    return Context(segments=tuple(shown), memories=kept, task=task)


@dataclass(frozen=True)
class Window:
    """What has to be kept of a stream to write its next memory: its last segments, and the memories that are left of them.

    Plain values: a service stores them and goes on after a restart as if it had never stopped.
    """

    segments: tuple[Segment, ...] = ()
    memories: tuple[ContextMemory, ...] = ()

    def context(self, newest: Segment, window: int, task: str | None = None) -> Context:
        """q_t of the newest segment; UserError if it is not later than the last."""
        if self.segments and newest.index <= self.segments[-1].index:
            raise UserError(
                f"segment {newest.index} of stream {newest.stream}: segment {self.segments[-1].index} was remembered "
                "before; give a stream's in order"
            )
        shown = [*self.segments, newest][-window:]
        return window_context(shown, {m.index: m.text for m in self.memories}, len(shown) - 1, window, task)

    @classmethod
    def after(cls, context: Context, memory: Memory) -> Self:
        """The window once the memory of a context is written; one that broke the grammar is not kept."""
        if memory.text is None:
            return cls(context.segments, context.memories)
        return cls(context.segments, (*context.memories, ContextMemory(index=memory.index, text=memory.text)))


def write_memories(policy: Policy, contexts: Sequence[Context], seed: int) -> list[Memory]:
    """One memory for each context, in one batch."""
    completions = policy.write(contexts, 1, seed) if contexts else []
    return [_memory(c.current, written, policy) for c, (written,) in zip(contexts, completions, strict=True)]


def _memory(segment: Segment, completion: Completion, policy: Policy) -> Memory:
    return Memory(
        stream=segment.stream,
        index=segment.index,
        start_s=segment.start_s,
        end_s=segment.end_s,
        text=completion.memory,
        think_tokens=completion.think_tokens,
        memory_tokens=completion.memory_tokens,
        policy=policy.digest,
        adapter=completion.adapter or policy.adapter,
    )


class Watcher:
    """A policy watching several streams: what it has to keep of each to write the next memory.

    Streams are independent; of each only the window and its memories are held, however long it runs.
    """

    def __init__(self, policy: Policy, window: int, seed: int, task: str | None = None) -> None:
        self._policy = policy
        self._window = window
        self._seed = seed
        self._task = task
        self._windows: dict[str, Window] = {}

    def write(self, newest: Sequence[Segment]) -> list[tuple[Memory, Context]]:
        """The memory of the newest segment of each of several streams, with the context it was written from.

        All are written in one batch, sorted by stream, and returned in the order of `newest`. A memory that broke the grammar
        is returned, but no later context holds it. UserError, and nothing changes, if a stream comes twice or a segment is not
        later than the last of its stream.
        """
        refuse_repeated(newest)
        contexts = [
            self._windows.get(s.stream, Window()).context(s, self._window, self._task)
            for s in sorted(newest, key=lambda s: s.stream)
        ]
        memories = write_memories(self._policy, contexts, self._seed)
        written = {memory.stream: (memory, context) for memory, context in zip(memories, contexts, strict=True)}
        self._windows |= {stream: Window.after(context, memory) for stream, (memory, context) in written.items()}
        return [written[segment.stream] for segment in newest]


def refuse_repeated(newest: Sequence[Segment]) -> None:
    """UserError if a stream comes twice among the newest segments of several."""
    seen: set[str] = set()
    for segment in newest:
        if segment.stream in seen:
            raise UserError(
                f"segment {segment.index} of stream {segment.stream}: the stream comes twice in one call; give one "
                "segment of each stream"
            )
        seen.add(segment.stream)


def positions(streams: Streams) -> list[list[Segment]]:
    """The first segments of all streams, then the second ones, and so on; each sorted by stream."""
    longest = max((len(segments) for segments in streams.values()), default=0)
    names = sorted(streams)
    return [[streams[n][i] for n in names if i < len(streams[n])] for i in range(longest)]


def watch(
    policy: Policy,
    streams: Streams,
    window: int,
    seed: int,
    task: str | None = None,
    progress: Progress = silent,
) -> tuple[list[Memory], list[Context]]:
    """Write one memory per segment of every stream, each from the memories the policy itself wrote before.

    Streams are independent, so the same position of all of them is written in one batch. Returns memories and the contexts
    they were written from, ordered by stream and index.
    """
    watcher = Watcher(policy, window, seed, task)
    steps = positions(streams)
    written: list[tuple[Memory, Context]] = []
    for number, newest in enumerate(steps):
        written += watcher.write(newest)
        progress(number + 1, len(steps))
    written.sort(key=lambda pair: (pair[0].stream, pair[0].index))
    return [memory for memory, _ in written], [context for _, context in written]
