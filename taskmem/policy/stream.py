"""A policy watching streams: windows, contexts, and one memory per segment (METHOD section 1)."""

from collections.abc import Mapping, Sequence

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
    kept: dict[str, dict[int, str]] = {name: {} for name in streams}
    written: dict[tuple[str, int], tuple[Memory, Context]] = {}
    longest = max((len(segments) for segments in streams.values()), default=0)
    for position in range(longest):
        names = [name for name in sorted(streams) if position < len(streams[name])]
        contexts = [window_context(streams[name], kept[name], position, window, task) for name in names]
        for name, context, (completion,) in zip(names, contexts, policy.write(contexts, 1, seed), strict=True):
            written[name, position] = (_memory(context.current, completion, policy), context)
            if completion.memory is not None:
                kept[name][context.current.index] = completion.memory
        progress(position + 1, longest)
    ordered = [written[key] for key in sorted(written)]
    return [memory for memory, _ in ordered], [context for _, context in ordered]
