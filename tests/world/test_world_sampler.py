"""The samples that the tiny base policy imitates."""

import random

import numpy as np
import pytest

from taskmem.policy.grammar import parse
from taskmem.world.facts import ROOM, TYPES, VALUES, read_facts, well_formed
from taskmem.world.pretrain import LONGEST_STREAM, Recipe, Sample, Sampler
from taskmem.world.questions import understand
from taskmem.world.render import SIDE, render_segment


def told(sample: Sample) -> dict[str, str]:
    return read_facts(parse(sample.target).memory or "")


def drawn(seed: int, number: int, noisy: bool) -> list[Sample]:
    sampler = Sampler(Recipe(), seed)
    return [sampler.window(noisy) for _ in range(number)]


def test_samples_are_fixed_by_the_seed() -> None:
    one, same, other = (drawn(seed, 20, noisy=True) for seed in (0, 0, 1))
    for a, b in zip(one, same, strict=True):
        assert (a.context, a.facts, a.target) == (b.context, b.facts, b.target)
        assert all(np.array_equal(a.frames[name], b.frames[name]) for name in a.frames)
    assert [a.target for a in one] != [a.target for a in other]


def test_a_single_segment_is_told_completely_and_truly() -> None:
    sampler = Sampler(Recipe(), 0)
    for sample in (sampler.single() for _ in range(50)):
        assert (len(sample.context.segments), sample.context.memories, sample.context.task) == (1, (), None)
        assert told(sample) == sample.facts


def test_a_clean_window_is_told_truly_and_in_good_form() -> None:
    for sample in drawn(0, 100, noisy=False):
        memory = parse(sample.target).memory
        assert memory is not None
        assert well_formed(memory)
        assert told(sample).items() <= sample.facts.items()


def test_without_a_task_a_clean_window_does_not_repeat_the_room() -> None:
    repeated = 0
    for sample in drawn(0, 300, noisy=False):
        rooms = [read_facts(m.text)[ROOM] for m in sample.context.memories if ROOM in read_facts(m.text)]
        if sample.context.task is None and rooms and rooms[-1] == sample.facts[ROOM]:
            repeated += 1
            assert ROOM not in told(sample)
    assert repeated > 20


def test_noise_states_as_many_wrong_facts_as_the_recipe_says() -> None:
    samples = drawn(0, 600, noisy=True)
    stated = [value == sample.facts[kind] for sample in samples for kind, value in told(sample).items()]
    assert 1 - sum(stated) / len(stated) == pytest.approx(Recipe().wrong_fact, abs=0.03)


def test_a_window_is_shorter_than_three_only_at_the_start_of_a_stream() -> None:
    samples = drawn(1, 200, noisy=True)
    assert {len(s.context.segments) for s in samples} == {1, 2, 3}
    for sample in samples:
        indices = [segment.index for segment in sample.context.segments]
        assert indices == list(range(indices[0], indices[0] + len(indices)))
        assert len(indices) == 3 or indices[0] == 0
        assert indices[-1] < LONGEST_STREAM
        assert [m.index for m in sample.context.memories] == indices[:-1]


def test_clean_windows_mostly_obey_their_task_and_are_asked_for_every_type() -> None:
    asked = [(understand(s.context.task), told(s)) for s in drawn(2, 400, noisy=False) if s.context.task]
    assert sum(kind is not None and kind[0] in facts for kind, facts in asked) / len(asked) > 0.9
    assert {kind[0] for kind, _ in asked if kind} == set(TYPES)


def test_the_frames_show_the_facts_with_a_little_noise() -> None:
    sampler = Sampler(Recipe(), 3)
    for sample in (sampler.single() for _ in range(10)):
        (film,) = sample.frames.values()
        assert film.shape == (2, SIDE, SIDE, 3)
        assert film.dtype == np.uint8
        wall = film[0, 12:16, 40:60].astype(int).mean((0, 1))
        clean = {
            room: render_segment({**sample.facts, ROOM: room}, random.Random(0))[0, 12:16, 40:60].mean((0, 1))
            for room in VALUES[ROOM]
        }
        assert min(clean, key=lambda room: float(np.abs(clean[room] - wall).sum())) == sample.facts[ROOM]
