"""What a client sends becomes a clip or is refused, in a process that may crash; nothing waits for ever."""

import io
import sys
from collections.abc import Iterator

import av
import numpy as np
import pytest
from hostile_parts import bombs
from site_parts import clip, video
from standin import PROFILE

from taskmem.agent.clips import ClipMaker, LateClipError, RefusedClipError
from taskmem.video.frames import frames_in


@pytest.fixture(scope="module")
def maker() -> Iterator[ClipMaker]:
    with ClipMaker(PROFILE.video, 1, 30.0) as maker:
        yield maker


def film(frames: int, rate: int, side: int = 64, codec: str = "libx264", container: str = "mp4") -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            out.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.full((side, side, 3), number * 9 % 200, np.uint8), "rgb24"))
            )
        out.mux(stream.encode())
    return buffer.getvalue()


def test_a_video_of_one_segment_is_sampled(maker: ClipMaker) -> None:
    made = maker.cut(video("a", 0))
    assert (made.width, made.height, made.seconds) == (64, 64, 10.0)
    assert len(frames_in(made.data, PROFILE.video.limits)) == 2
    assert maker.cut(video("a", 0)) == made


def test_a_sampled_clip_is_taken_as_it_is(maker: ClipMaker) -> None:
    made = maker.taken(clip("a", 0))
    assert (made.data, made.width, made.height, made.seconds) == (clip("a", 0), 64, 64, 10.0)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (film(3, 1), "3 frames of 64 x 64 pixels, more than 2 of 64; sample it again"),
        (film(1, 1, side=66), "1 frames of 66 x 66 pixels"),
        (film(2, 1, codec="mpeg4"), "mpeg4 in mov.* instead of H.264 in mp4"),
        (film(2, 1, container="matroska"), "h264 in matroska.* instead of H.264 in mp4"),
        (clip("a", 0)[:-100], "."),
        (b"no video at all", "not a video in a container"),
    ],
)
def test_what_is_no_sampled_clip_is_refused(maker: ClipMaker, data: bytes, why: str) -> None:
    with pytest.raises(RefusedClipError, match=why):
        maker.taken(data)


def test_a_video_that_is_longer_than_a_segment_is_refused(maker: ClipMaker) -> None:
    with pytest.raises(RefusedClipError, match="longer than a segment of 10 s"):
        maker.cut(film(16, 1))
    with pytest.raises(RefusedClipError, match=r"longer than limits\.max_seconds = 20"):
        maker.cut(film(40, 1))


def test_bombs_are_refused_and_the_next_is_served(maker: ClipMaker) -> None:
    for data in bombs():
        try:
            maker.cut(data)
        except RefusedClipError as refused:
            assert "\n" not in str(refused)
    assert maker.cut(video("a", 0)).seconds == 10.0


def test_a_decoder_that_does_not_start_is_an_outage_and_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with ClipMaker(PROFILE.video, 1, 30.0) as maker:
        with monkeypatch.context() as broken:
            broken.setattr(sys, "executable", "/bin/false")
            with pytest.raises(LateClipError, match="did not start"):
                maker.cut(video("a", 0))
        assert maker.cut(video("a", 0)).seconds == 10.0


def test_what_takes_too_long_is_ended_and_the_next_is_served() -> None:
    with ClipMaker(PROFILE.video, 1, 30.0) as maker:
        maker.cut(video("a", 0))
        maker._seconds = 0.0
        with pytest.raises(LateClipError, match="killed from outside"):
            maker.cut(film(1000, 100))
        maker._seconds = 30.0
        assert maker.cut(video("a", 0)).seconds == 10.0
