"""Facts to pixels, pixels to mp4."""

import random
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
import pytest

from taskmem.world.facts import TYPES, VALUES
from taskmem.world.pretrain import SEEN
from taskmem.world.render import FPS, FRAMES, SIDE, Frames, render_segment, write_mp4, write_stream


def film(facts: Mapping[str, str], seed: int = 0) -> Frames:
    return render_segment(facts, random.Random(seed))


def decoded(path: Path) -> Frames:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_segment_is_ten_small_frames(facts: Mapping[str, str]) -> None:
    frames = film(facts)
    assert frames.shape == (FRAMES, SIDE, SIDE, 3)
    assert frames.dtype == np.uint8
    assert FRAMES / FPS == 10


def test_the_same_generator_gives_the_same_pixels_and_another_others(facts: Mapping[str, str]) -> None:
    assert np.array_equal(film(facts), film(facts))
    assert len({film(facts, seed).tobytes() for seed in range(5)}) == 5


@pytest.mark.parametrize("kind", TYPES)
def test_every_value_of_every_type_looks_different_in_the_frames_that_are_seen(
    kind: str, facts: Mapping[str, str]
) -> None:
    seen = {film({**facts, kind: value})[list(SEEN)].tobytes() for value in VALUES[kind]}
    assert len(seen) == len(VALUES[kind])


@pytest.mark.parametrize("value", VALUES["door"])
def test_only_a_moving_door_changes_within_a_segment_and_at_half_time(value: str, facts: Mapping[str, str]) -> None:
    frames = film({**facts, "door": value})
    changes = [i for i in range(1, FRAMES) if not np.array_equal(frames[i], frames[i - 1])]
    assert changes == ([5] if value in ("opens", "closes") else [])
    ajar, shut = film({**facts, "door": "ajar"})[0], film({**facts, "door": "shut"})[0]
    first, last = {"opens": (shut, ajar), "closes": (ajar, shut), "ajar": (ajar, ajar), "shut": (shut, shut)}[value]
    assert np.array_equal(frames[0], first)
    assert np.array_equal(frames[-1], last)


@pytest.mark.parametrize(("value", "number"), [(value, i + 1) for i, value in enumerate(VALUES["lamps"])])
def test_as_many_lamps_shine_as_are_told(value: str, number: int, facts: Mapping[str, str]) -> None:
    for seed in range(10):
        ceiling = film({**facts, "lamps": value}, seed)[0, :9]
        assert (ceiling == (255, 240, 120)).all(-1).sum() == number * 49


def test_a_written_film_is_read_back_nearly_the_same(facts: Mapping[str, str], tmp_path: Path) -> None:
    frames = film(facts)
    write_mp4(tmp_path / "clips" / "a.mp4", frames)
    read = decoded(tmp_path / "clips" / "a.mp4")
    assert read.shape == frames.shape
    assert np.abs(read.astype(int) - frames.astype(int)).mean() < 12


def test_the_same_frames_give_the_same_bytes(facts: Mapping[str, str], tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_mp4(tmp_path / name, film(facts))
    write_mp4(tmp_path / "c.mp4", film(facts, seed=1))
    a, b, c = ((tmp_path / name).read_bytes() for name in ("a.mp4", "b.mp4", "c.mp4"))
    assert a == b != c
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "c.mp4"]


def test_a_stream_is_its_segments_one_after_another(facts: Mapping[str, str], tmp_path: Path) -> None:
    other = {**facts, "room": "street"}
    write_stream(tmp_path / "s.mp4", [facts, other], random.Random(3))
    rng = random.Random(3)
    expected = np.concatenate([render_segment(facts, rng), render_segment(other, rng)])
    read = decoded(tmp_path / "s.mp4")
    assert read.shape == expected.shape
    assert np.abs(read.astype(int) - expected.astype(int)).mean() < 12
