"""A policy watching streams: windows, contexts, and one memory per segment (METHOD section 1)."""

from collections.abc import Mapping, Sequence

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
        adapter=policy.adapter,
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
        self._shown: dict[str, list[Segment]] = {}
        self._kept: dict[str, dict[int, str]] = {}

    def write(self, newest: Sequence[Segment]) -> list[tuple[Memory, Context]]:
        """The memory of the newest segment of each of several streams, with the context it was written from.

        All are written in one batch, sorted by stream, and returned in the order of `newest`. A memory that broke the grammar
        is returned, but no later context holds it. UserError, and nothing changes, if a stream comes twice or a segment is not
        later than the last of its stream.
        """
        self._check(newest)
        batch = sorted(newest, key=lambda s: s.stream)
        shown = {s.stream: [*self._shown.get(s.stream, ()), s][-self._window :] for s in batch}
        contexts = [
            window_context(window, self._kept.get(stream, {}), len(window) - 1, self._window, self._task)
            for stream, window in shown.items()
        ]
        written: dict[str, tuple[Memory, Context]] = {}
        completions = self._policy.write(contexts, 1, self._seed) if contexts else []
        for context, (completion,) in zip(contexts, completions, strict=True):
            written[context.current.stream] = (_memory(context.current, completion, self._policy), context)
        for stream, (memory, context) in written.items():
            self._shown[stream] = shown[stream]
            self._kept[stream] = {m.index: m.text for m in context.memories}
            if memory.text is not None:
                self._kept[stream][memory.index] = memory.text
        return [written[segment.stream] for segment in newest]

    def _check(self, newest: Sequence[Segment]) -> None:
        seen: set[str] = set()
        for segment in newest:
            where = f"segment {segment.index} of stream {segment.stream}"
            if segment.stream in seen:
                raise UserError(f"{where}: the stream comes twice in one call; give one segment of each stream")
            seen.add(segment.stream)
            last = self._shown.get(segment.stream)
            if last and segment.index <= last[-1].index:
                raise UserError(f"{where}: segment {last[-1].index} was remembered before; give a stream's in order")


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
