"""A clip is read back whole, or not at all."""

from pathlib import Path

import numpy as np
import pytest
from video_files import LIMITS, grey, shade, write_video

from taskmem.errors import UserError
from taskmem.video import frames as frames_module
from taskmem.video.frames import read_clip


def test_a_clip_is_an_array_of_rgb_frames_in_order(tmp_path: Path):
    clip = read_clip(write_video(tmp_path / "a.mp4", seconds=2), LIMITS)
    assert clip.shape == (10, 48, 64, 3)
    assert clip.dtype == np.uint8
    assert [round(float(f.mean())) for f in clip] == pytest.approx([shade(i) for i in range(10)], abs=2)


def test_red_is_the_first_channel(tmp_path: Path):
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 255
    (frame,) = read_clip(write_video(tmp_path / "a.mp4", [red]), LIMITS)
    assert frame[24, 32, 0] > 240 and frame[24, 32, 1:].max() < 15


def missing(path: Path) -> None:
    assert not path.exists()


def empty(path: Path) -> None:
    path.touch()


def noise(path: Path) -> None:
    path.write_bytes(b"no video" * 100)


def link(path: Path) -> None:
    path.symlink_to(write_video(path.with_name("other.mp4"), seconds=1))


def truncated(path: Path) -> None:
    data = write_video(path, seconds=4, muxer={"movflags": "+faststart"}).read_bytes()
    path.write_bytes(data[: len(data) - 400])


def large(path: Path) -> None:
    write_video(path, [grey(90, 640, 480)])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (missing, "cannot be opened"),
        (empty, "empty"),
        (noise, "not a video in a container"),
        (link, "cannot be opened"),
        (truncated, "damaged clip"),
        (large, "more than limits.max_pixels"),
    ],
)
def test_a_clip_that_cannot_be_trusted_is_a_mistake_with_its_path(tmp_path: Path, make, reason):
    path = tmp_path / "clip.mp4"
    make(path)
    limits = LIMITS.model_copy(update={"max_pixels": 64 * 48})
    with pytest.raises(UserError, match=f"clip.mp4: .*{reason}") as raised:
        read_clip(path, limits)
    assert "\n" not in str(raised.value)


def test_a_clip_with_too_many_frames_is_refused_before_they_fill_the_memory(tmp_path: Path, monkeypatch):
    video = write_video(tmp_path / "clip.mp4", seconds=4)
    monkeypatch.setattr(frames_module, "MAX_CLIP_BYTES", 10 * 64 * 48 * 3)
    with pytest.raises(UserError, match="too much for one clip"):
        read_clip(video, LIMITS)
