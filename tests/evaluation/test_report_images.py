"""Frames as data URIs: exact when small, small when large."""

import base64
import io

import av
import numpy as np
import pytest

from taskmem.evaluation.report.images import LONGEST_SIDE, data_uri, pick_frames


def decoded(uri: str) -> np.ndarray:
    data = base64.b64decode(uri.partition(",")[2])
    with av.open(io.BytesIO(data)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (1, 7), (128, 33)])
def test_a_small_frame_is_kept_exactly(height: int, width: int) -> None:
    uri = data_uri(noise(height, width))
    assert uri.startswith("data:image/png;base64,")
    assert np.array_equal(decoded(uri), noise(height, width))


def test_a_large_frame_is_made_smaller_and_looks_the_same() -> None:
    frame = np.full((360, 640, 3), (200, 40, 90), np.uint8)
    uri = data_uri(frame)
    assert uri.startswith("data:image/jpeg;base64,")
    assert decoded(uri).shape == (180, LONGEST_SIDE, 3)
    assert np.abs(decoded(uri).astype(int) - (200, 40, 90)).max() < 12
    assert len(data_uri(noise(720, 1280))) < 80_000


def test_the_same_frame_gives_the_same_bytes() -> None:
    for size in ((64, 64), (360, 640)):
        assert data_uri(noise(*size)) == data_uri(noise(*size))


@pytest.mark.parametrize(("count", "chosen"), [(1, [0]), (2, [0, 1]), (3, [0, 2]), (20, [5, 15])])
def test_frames_are_spread_over_the_clip(count: int, chosen: list[int]) -> None:
    frames = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    numbers, shown = pick_frames(frames)
    assert numbers == chosen
    assert [int(frame[0, 0, 0]) for frame in shown] == chosen
