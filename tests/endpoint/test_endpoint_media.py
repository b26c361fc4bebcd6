"""Video as message parts: the same pixels, and nothing that lets a server sample again."""

import base64
import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from taskmem.config import load_profile
from taskmem.endpoint.media import Clips, frame_count, png, server_flags, video_parts
from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.records import Segment
from taskmem.world.render import write_mp4

LIMITS = load_profile("miniature").video.limits
FRAMES = np.random.default_rng(0).integers(0, 255, (3, 8, 10, 3)).astype(np.uint8)


def segment(data: bytes) -> Segment:
    return Segment(
        stream="s",
        index=0,
        start_s=0.0,
        end_s=10.0,
        source="s.mp4",
        clip="clips/s/0.mp4",
        fps=0.2,
        width=10,
        height=8,
        sha256=sha256_bytes(data),
    )


def decoded(data: bytes) -> NDArray[np.uint8]:
    with av.open(io.BytesIO(data)) as container:
        (frame,) = container.decode(video=0)
        return frame.to_ndarray(format="rgb24")


@pytest.fixture
def clips(tmp_path: Path) -> Clips:
    (tmp_path / "clips/s").mkdir(parents=True)
    (tmp_path / "clips/s/0.mp4").write_bytes(b"a clip")
    below = Clips.below(tmp_path, LIMITS)
    return Clips(below.bytes_of, lambda _: FRAMES)


def test_a_png_holds_the_frame_and_is_always_the_same() -> None:
    assert (decoded(png(FRAMES[0])) == FRAMES[0]).all()
    assert png(FRAMES[0]) == png(FRAMES[0].copy())


def test_an_mp4_is_the_clip_itself(clips: Clips) -> None:
    (part,) = video_parts(segment(b"a clip"), "mp4", clips)
    assert part == {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,YSBjbGlw"}}


def test_frames_are_one_video_of_lossless_pictures(clips: Clips) -> None:
    (part,) = video_parts(segment(b"a clip"), "frames", clips)
    head, pictures = part["video_url"]["url"].split(";base64,")
    assert head == "data:video/jpeg"
    sent = [decoded(base64.b64decode(picture)) for picture in pictures.split(",")]
    assert (np.stack(sent) == FRAMES).all()


def test_images_are_one_part_each(clips: Clips) -> None:
    parts = video_parts(segment(b"a clip"), "images", clips)
    assert [part["type"] for part in parts] == ["image_url"] * 3


def test_a_clip_that_is_another_is_refused(clips: Clips) -> None:
    with pytest.raises(UserError, match=r"not the clip that segments\.jsonl names"):
        video_parts(segment(b"another"), "mp4", clips)


def test_a_missing_clip_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"0\.mp4: cannot be read"):
        video_parts(segment(b"a clip"), "mp4", Clips.below(tmp_path, LIMITS))


def test_a_server_is_told_twice_not_to_sample() -> None:
    mp4, frames = server_flags("mp4", 0.2), server_flags("frames", 0.2)
    assert mp4[0::2] == frames[0::2] == ["--media-io-kwargs", "--mm-processor-kwargs"]
    assert json.loads(mp4[1]) == {"video": {"num_frames": -1, "video_backend": "opencv"}}
    assert json.loads(frames[1]) == {"video": {"num_frames": -1, "fps": 0.2}}
    assert json.loads(mp4[3]) == json.loads(frames[3]) == {"do_sample_frames": False}


def test_frames_are_counted_by_the_header(tmp_path: Path) -> None:
    write_mp4(tmp_path / "clip.mp4", np.zeros((7, 64, 64, 3), np.uint8))
    data = (tmp_path / "clip.mp4").read_bytes()
    assert frame_count(segment(data), Clips(lambda _: data, lambda _: FRAMES)) == 7
