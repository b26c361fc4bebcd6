"""A policy watching streams, segment by segment."""

import random

import pytest
from policy_parts import Films, Scribe

from taskmem.errors import UserError
from taskmem.policy.stream import Watcher, by_stream, positions, watch, window_context
from taskmem.policy.transformers_policy import TransformersPolicy
from taskmem.records import Context


def told(context: Context) -> str:
    return f"{context.current.stream} {context.current.index}"


def indices(context: Context) -> list[int]:
    return [segment.index for segment in context.segments]


def test_segments_are_grouped_by_stream_and_put_in_order(films: Films) -> None:
    segments = [*films.stream("b", 3), *films.stream("a", 2)]
    random.Random(1).shuffle(segments)
    assert by_stream(segments) == {"a": films.stream("a", 2), "b": films.stream("b", 3)}
    assert list(by_stream(segments)) == ["a", "b"]


@pytest.mark.parametrize(
    ("position", "window", "shown"),
    [(0, 3, [0]), (1, 3, [0, 1]), (2, 3, [0, 1, 2]), (5, 3, [3, 4, 5]), (5, 1, [5]), (5, 9, [0, 1, 2, 3, 4, 5])],
)
def test_a_window_is_the_last_k_segments(films: Films, position: int, window: int, shown: list[int]) -> None:
    memories = {index: f"memory {index}" for index in range(6)}
    context = window_context(films.stream("s", 6), memories, position, window, task="why?")
    assert indices(context) == shown
    assert {m.index: m.text for m in context.memories} == {i: f"memory {i}" for i in shown[:-1]}
    assert context.task == "why?"


def test_every_segment_gets_one_memory_in_the_order_of_streams_and_time(films: Films) -> None:
    streams = {"b": films.stream("b", 2), "a": films.stream("a", 4), "c": films.stream("c", 1)}
    memories, contexts = watch(Scribe(told), streams, window=3, seed=0)
    expected = [("a", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 0), ("b", 1), ("c", 0)]
    assert [(m.stream, m.index) for m in memories] == expected
    assert [(c.current.stream, c.current.index) for c in contexts] == expected
    assert [m.text for m in memories] == [f"{stream} {index}" for stream, index in expected]
    assert [(m.start_s, m.end_s) for m in memories] == [(i * 10.0, i * 10.0 + 10) for _, i in expected]


def test_a_context_holds_the_memories_of_its_own_stream_that_were_written_before(films: Films) -> None:
    streams = {name: films.stream(name, 6) for name in ("a", "b")}
    _, contexts = watch(Scribe(told), streams, window=3, seed=0)
    for context in contexts:
        *earlier, current = indices(context)
        assert len(context.segments) == min(3, current + 1)
        assert [(m.index, m.text) for m in context.memories] == [(i, f"{context.current.stream} {i}") for i in earlier]


def test_a_broken_output_is_recorded_but_not_remembered(films: Films) -> None:
    broken = Scribe(lambda context: None if context.current.index % 2 else told(context))
    memories, contexts = watch(broken, {"a": films.stream("a", 5)}, window=3, seed=0)
    assert [m.text for m in memories] == ["a 0", None, "a 2", None, "a 4"]
    assert [[m.index for m in c.memories] for c in contexts] == [[], [0], [0], [2], [2]]


def test_memories_carry_who_wrote_them_and_how_long_they_are(films: Films) -> None:
    memories, _ = watch(Scribe(told, adapter="door@3"), {"a": films.stream("a", 2)}, window=3, seed=0)
    assert {(m.policy, m.adapter, m.think_tokens, m.memory_tokens) for m in memories} == {("0" * 64, "door@3", 2, 2)}


def test_the_same_position_of_all_streams_is_written_in_one_batch(films: Films) -> None:
    scribe = Scribe(told)
    watch(scribe, {"b": films.stream("b", 1), "a": films.stream("a", 3)}, window=2, seed=0)
    assert [[told(c) for c in batch] for batch in scribe.shown] == [["a 0", "b 0"], ["a 1"], ["a 2"]]


def test_the_task_stands_in_every_context(films: Films) -> None:
    _, contexts = watch(Scribe(told), {"a": films.stream("a", 3)}, window=2, seed=0, task="what was carried?")
    assert {c.task for c in contexts} == {"what was carried?"}


def test_a_stream_that_begins_later_is_watched_from_its_first_segment(films: Films) -> None:
    memories, contexts = watch(Scribe(told), {"a": films.stream("a", 7)[4:]}, window=2, seed=0)
    assert [m.index for m in memories] == [4, 5, 6]
    assert [indices(c) for c in contexts] == [[4], [4, 5], [5, 6]]


def test_progress_counts_positions_of_the_longest_stream(films: Films) -> None:
    seen: list[tuple[int, int]] = []
    streams = {"a": films.stream("a", 3), "b": films.stream("b", 2)}
    watch(Scribe(told), streams, window=2, seed=0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_positions_go_through_all_streams_side_by_side(films: Films) -> None:
    a, b = films.stream("a", 3), films.stream("b", 1)
    assert positions({"b": b, "a": a}) == [[a[0], b[0]], [a[1]], [a[2]]]
    assert positions({}) == []


def test_a_watcher_gives_memories_in_the_order_asked_and_writes_them_sorted_by_stream(films: Films) -> None:
    scribe = Scribe(told)
    watcher = Watcher(scribe, window=2, seed=0)
    written = watcher.write([films.segment(0, name) for name in ("c", "a", "b")])
    assert [memory.text for memory, _ in written] == ["c 0", "a 0", "b 0"]
    assert [told(context) for _, context in written] == ["c 0", "a 0", "b 0"]
    assert [[told(c) for c in batch] for batch in scribe.shown] == [["a 0", "b 0", "c 0"]]


def test_however_the_streams_are_interleaved_the_contexts_are_the_same(films: Films) -> None:
    streams = {name: films.stream(name, 6) for name in ("a", "b", "c")}
    _, expected = watch(Scribe(told), streams, window=3, seed=0)
    rng, left = random.Random(4), {name: list(segments) for name, segments in streams.items()}
    watcher, contexts = Watcher(Scribe(told), window=3, seed=0), []
    while left := {name: segments for name, segments in left.items() if segments}:
        chosen = rng.sample(sorted(left), rng.randint(1, len(left)))
        contexts += [context for _, context in watcher.write([left[name].pop(0) for name in chosen])]
    assert sorted(contexts, key=lambda c: (c.current.stream, c.current.index)) == expected


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([("a", 1)], "segment 1 of stream a: segment 1 was remembered before"),
        ([("b", 0), ("a", 0)], "segment 0 of stream a: segment 1 was remembered before"),
        ([("a", 2), ("a", 3)], "segment 3 of stream a: the stream comes twice in one call"),
    ],
)
def test_a_watcher_that_refuses_writes_nothing(films: Films, given: list[tuple[str, int]], reason: str) -> None:
    scribe = Scribe(told)
    watcher = Watcher(scribe, window=3, seed=0)
    watcher.write([films.segment(1, "a")])
    with pytest.raises(UserError, match=f"^{reason}; give "):
        watcher.write([films.segment(index, stream) for stream, index in given])
    assert len(scribe.shown) == 1
    ((_, context),) = watcher.write([films.segment(2, "a")])
    assert indices(context) == [1, 2]


def test_what_is_written_of_a_stream_does_not_depend_on_the_other_streams(
    policy: TransformersPolicy, films: Films
) -> None:
    a, b = films.stream("a", 3), films.stream("b", 2)
    alone, _ = watch(policy, {"a": a}, window=2, seed=3)
    together, _ = watch(policy, {"b": b, "a": a}, window=2, seed=3)
    assert together[:3] == alone


def test_no_streams_give_no_memories() -> None:
    assert watch(Scribe(told), {}, window=2, seed=0) == ([], [])
