"""Where the preceding memories of a training context come from."""

import json
from collections import Counter

import pytest
from phase_one_parts import stream, strong

from taskmem.config import HistorySettings
from taskmem.errors import UserError
from taskmem.phase_one.history import History
from taskmem.policy.stream import by_stream
from taskmem.records import Context

LONG = [*stream("north", 40), *stream("south", 40)]
N_MIN, N_MAX = 3, 6


def history(
    seed: int = 0, slots: int = 4, off: int = 0, probability: float = 0.5, window: int = 3, segments: list = LONG
) -> History:
    settings = HistorySettings(n_min=N_MIN, n_max=N_MAX, extend_probability=probability)
    return History(by_stream(segments), strong, settings, window, slots, off, seed)


def on_policy(walk: History, steps: int, first: int = 0, say: str = "memory of step") -> list[list[Context]]:
    """The contexts of `steps` steps; after each, every slot has the one valid memory "<say> <step>"."""
    seen = []
    for step in range(first, first + steps):
        seen.append(walk.contexts(step))
        walk.advance(step, [[f"{say} {step}"] for _ in walk.slots])
    return seen


def place(context: Context) -> tuple[str, int]:
    return context.current.stream, context.current.index


def decisions(walk: History, steps: int) -> list[tuple[int, bool]]:
    """(c, extended) of every slot at every step; what a stream's end decided is left out."""
    found = []
    for step in range(steps):
        walk.contexts(step)
        before = [(slot, slot.consumed, slot.position) for slot in walk.slots]
        walk.advance(step, [["memory"] for _ in walk.slots])
        for (slot, consumed, position), after in zip(before, walk.slots, strict=True):
            if position + 1 < 40:
                found.append((consumed, after is slot and after.position == position + 1))
    return found


def test_off_policy_contexts_hold_the_strong_models_memories_of_every_earlier_segment_and_no_others() -> None:
    contexts = [c for step in range(50) for c in history(off=50).contexts(step)]
    for context in contexts:
        earlier = [(s.stream, s.index) for s in context.segments[:-1]]
        assert [(m.index, m.text) for m in context.memories] == [
            (index, strong(name, index)) for name, index in earlier
        ]
        last = context.current.index
        assert [s.index for s in context.segments] == list(range(max(0, last - 2), last + 1))
    assert {len(c.segments) for c in contexts} == {1, 2, 3}
    assert {c.current.stream for c in contexts} == {"north", "south"}


def test_off_policy_steps_leave_no_slots_behind() -> None:
    walk = history(off=2)
    for step in range(2):
        assert len(walk.contexts(step)) == 4
        walk.advance(step, [["memory"]] * 4)
    assert walk.slots == []


def test_the_first_on_policy_contexts_hold_one_segment_and_no_memory() -> None:
    walk = history(off=2)
    contexts = walk.contexts(2)
    assert [len(c.segments) for c in contexts] == [1] * 4
    assert all(c.memories == () for c in contexts)
    assert [slot.consumed for slot in walk.slots] == [1] * 4
    assert len({place(c) for c in contexts}) > 1


def test_extend_moves_one_segment_on_and_appends_a_valid_memory() -> None:
    walk = history(slots=1, probability=1.0)
    walk.restore([{"stream": "north", "start": 10, "position": 10, "memories": {}}])
    walk.advance(0, [["first", "second"]])
    (context,) = walk.contexts(1)
    assert place(context) == ("north", 11)
    assert [s.index for s in context.segments] == [10, 11]
    assert [m.index for m in context.memories] == [10]
    assert context.memories[0].text in ("first", "second")
    assert walk.slots[0].consumed == 2


def test_the_memory_that_enters_is_drawn_from_all_valid_ones() -> None:
    walk = history(slots=60, probability=1.0)
    walk.restore([{"stream": "north", "start": 10, "position": 10, "memories": {}}] * 60)
    walk.advance(0, [["first", "second", "third"]] * 60)
    assert {slot.memories[10] for slot in walk.slots} == {"first", "second", "third"}


def test_a_slot_without_a_valid_memory_moves_on_and_leaves_a_gap() -> None:
    walk = history(slots=1, probability=1.0)
    walk.restore([{"stream": "north", "start": 10, "position": 11, "memories": {"10": "kept"}}])
    walk.advance(0, [[]])
    (context,) = walk.contexts(1)
    assert [s.index for s in context.segments] == [10, 11, 12]
    assert [(m.index, m.text) for m in context.memories] == [(10, "kept")]


def test_windows_keep_the_last_k_segments_and_the_memories_of_the_policys_own_history() -> None:
    walk = history(slots=1, probability=1.0)
    walk.restore([{"stream": "north", "start": 10, "position": 10, "memories": {}}])
    for context, step in zip((c for (c,) in on_policy(walk, 5)), range(5), strict=True):
        last = 10 + step
        indices = list(range(max(10, last - 2), last + 1))
        assert [s.index for s in context.segments] == indices
        assert [(m.index, m.text) for m in context.memories] == [(i, f"memory of step {i - 10}") for i in indices[:-1]]


def test_a_window_never_reaches_back_before_the_slots_start() -> None:
    walk = history(slots=8, window=5)
    for step in range(60):
        for context, slot in zip(walk.contexts(step), walk.slots, strict=True):
            assert len(context.segments) == min(5, slot.consumed)
        walk.advance(step, [["memory"]] * 8)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_below_n_min_always_extends_and_above_n_max_never(probability: float) -> None:
    found = decisions(history(slots=20, probability=probability), 120)
    below, above = [e for c, e in found if c < N_MIN], [e for c, e in found if c > N_MAX]
    assert below and all(below)
    assert not any(above)
    assert bool(above) == (probability > 0)
    assert max(c for c, _ in found) == (N_MAX + 1 if probability > 0 else N_MIN)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_in_between_a_probability_of_0_or_1_decides_alone(probability: float) -> None:
    between = [e for c, e in decisions(history(slots=20, probability=probability), 60) if N_MIN <= c <= N_MAX]
    assert len(between) > 100
    assert set(between) == {probability == 1.0}


def test_in_between_extends_with_the_set_probability_whatever_c_is() -> None:
    between = [(c, e) for c, e in decisions(history(slots=60, probability=0.7), 300) if N_MIN <= c <= N_MAX]
    for consumed in range(N_MIN, N_MAX + 1):
        extended = [e for c, e in between if c == consumed]
        assert len(extended) > 500
        # five standard deviations of a share of n draws
        assert abs(sum(extended) / len(extended) - 0.7) < 5 * (0.7 * 0.3 / len(extended)) ** 0.5


def test_a_streams_end_resamples_even_below_n_min() -> None:
    walk = history(slots=30, probability=1.0)
    walk.restore([{"stream": "north", "start": 39, "position": 39, "memories": {}}] * 30)
    walk.advance(0, [["memory"]] * 30)
    assert all(slot.consumed == 1 and slot.memories == {} for slot in walk.slots)
    assert len({(slot.stream, slot.start) for slot in walk.slots}) > 10


def test_a_resampled_slot_starts_anywhere_with_room_for_n_min_clips_in_any_stream() -> None:
    walk = history(slots=2000)
    walk.contexts(0)
    starts = Counter((slot.stream, slot.start) for slot in walk.slots)
    assert set(starts) == {(name, start) for name in ("north", "south") for start in range(40 - N_MIN + 1)}


def test_a_resampled_slot_forgets_its_memories() -> None:
    walk = history(slots=1, probability=0.0)
    walk.restore([{"stream": "north", "start": 10, "position": 12, "memories": {"10": "a", "11": "b"}}])
    walk.advance(0, [["c"]])
    assert walk.slots[0].memories == {}
    assert walk.slots[0].consumed == 1


def test_the_same_seed_gives_the_same_contexts_and_another_seed_others() -> None:
    def all_contexts(seed: int) -> list[list[Context]]:
        walk = history(seed, off=10)
        return [*(walk.contexts(step) for step in range(10)), *on_policy(walk, 20, first=10)]

    assert all_contexts(1) == all_contexts(1)
    ours, others = all_contexts(1), all_contexts(2)
    assert all(a != b for a, b in zip(ours, others, strict=True))


def test_the_order_in_which_segments_are_given_does_not_matter() -> None:
    assert on_policy(history(), 10) == on_policy(history(segments=LONG[::-1]), 10)


def test_asking_twice_for_a_steps_contexts_changes_nothing() -> None:
    walk = history(off=1)
    assert walk.contexts(0) == walk.contexts(0)
    assert walk.contexts(1) == walk.contexts(1)


def test_a_state_restored_from_json_has_the_same_future() -> None:
    walk, restored = history(), history()
    on_policy(walk, 5)
    restored.restore(json.loads(json.dumps(walk.state())))
    assert restored.slots == walk.slots
    assert on_policy(restored, 15, first=5) == on_policy(walk, 15, first=5)


def test_a_state_of_the_off_policy_steps_restores_to_the_same_first_slots() -> None:
    walk, restored = history(off=3), history(off=3)
    walk.contexts(2)
    restored.restore(json.loads(json.dumps(walk.state())))
    assert restored.contexts(3) == walk.contexts(3)


def test_segments_are_needed() -> None:
    with pytest.raises(UserError, match="no segments to learn from"):
        history(segments=[])
