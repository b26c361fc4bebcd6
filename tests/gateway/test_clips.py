"""Clips that would eat the memory of the policy's server, or crash its decoder, do not reach it."""

import asyncio
import base64
import os
import signal
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from gateway_parts import Site, text, written_by
from video_files import grey, settings, write_video

from taskmem.gateway.clips import Clips
from taskmem.service import Refused

LONGEST = 64


def mp4(path: Path, frames: Iterable[np.ndarray], codec: str = "libx264") -> bytes:
    return write_video(path / "clip.mp4", frames, rate=1, codec=codec).read_bytes()


def url(data: bytes) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(data).decode()}"


def png(width: int, height: int) -> bytes:
    """The head of a PNG of that size, and nothing much behind it."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + b"x" * 20


def frames_url(*pictures: bytes) -> str:
    return f"data:video/jpeg;base64,{','.join(base64.b64encode(picture).decode() for picture in pictures)}"


class Checked:
    """Clips of two frames of 64 pixels, five of them a request, looked at in one event loop."""

    def __init__(self, seconds: float = 20.0) -> None:
        self.loop = asyncio.new_event_loop()
        self.clips = Clips(settings(fps=0.2, longest_side=LONGEST), 5, 1, seconds)

    def __call__(self, *urls: str) -> str:
        """Why they are refused, "" if they are not."""
        try:
            self.loop.run_until_complete(self.clips.check(urls))
        except Refused as refused:
            return f"{refused.status_code} {refused.message}"
        return ""


@pytest.fixture(scope="module")
def check() -> Iterator[Checked]:
    checked = Checked()
    yield checked
    checked.loop.run_until_complete(checked.clips.stop())
    checked.loop.close()


def test_a_clip_as_the_profile_samples_it_is_passed_on(check: Checked, tmp_path: Path) -> None:
    assert check(*[url(mp4(tmp_path, [grey(50), grey(100)]))] * 5) == ""
    assert check(frames_url(png(64, 48), png(64, 48))) == ""


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([grey(50)] * 3, "400 messages: clip 0: 3 frames, a segment has 2"),
        ([grey(50)] * 3000, "400 messages: clip 0: 3000 frames, a segment has 2"),
        ([grey(50, 66, 48)], "400 messages: clip 0: frames of 66 x 48 pixels, 64 at most are seen"),
        ([grey(50, 4096, 4096)], "frames of 4096 x 4096 pixels, more than limits.max_pixels = 16384"),
    ],
)
def test_a_clip_that_holds_more_is_refused(
    frames: list[np.ndarray], reason: str, check: Checked, tmp_path: Path
) -> None:
    assert reason in check(url(mp4(tmp_path, frames)))


def test_what_is_no_clip_is_refused(check: Checked, tmp_path: Path) -> None:
    good = mp4(tmp_path, [grey(50), grey(100)])
    assert check(url(b"not a video")).startswith("400 messages: clip 0: not a video")
    assert check(url(good[: len(good) // 2])).startswith("400 messages: clip 0: ")
    assert check(url(good), url(b"")).startswith("400 messages: clip 1: ")
    assert check("data:video/mp4;base64,A") == "400 messages: clip 0: not base64"
    assert check("data:video/webm;base64,AAAA").startswith("400 messages: clip 0: give it as")
    assert check(*[url(good)] * 6) == "400 messages: 6 clips, a window has 5"


def test_another_codec_than_a_clip_s_is_refused(check: Checked, tmp_path: Path) -> None:
    assert "instead of H.264 in mp4" in check(url(mp4(tmp_path, [grey(50)], "mpeg4")))


@pytest.mark.parametrize(
    ("pictures", "reason"),
    [
        ((png(65, 10),), "frames of 65 x 10 pixels"),
        ((png(100_000, 100_000),), "frames of 100000 x 100000 pixels"),
        ((png(8, 8),) * 3, "3 frames, a segment has 2"),
        ((b"\xff\xd8\xff\xe0 a JPEG, or so it says",), "frames are sent as PNG"),
        ((b"",), "frames are sent as PNG"),
    ],
)
def test_frames_that_become_too_large_are_refused_by_their_head(
    pictures: tuple[bytes, ...], reason: str, check: Checked
) -> None:
    assert reason in check(frames_url(*pictures))


def test_a_clip_that_was_looked_at_is_not_looked_at_again(check: Checked, tmp_path: Path) -> None:
    clip = url(mp4(tmp_path, [grey(77), grey(133)]))
    assert check(clip) == ""
    start = time.monotonic()
    assert [check(clip) for _ in range(200)] == [""] * 200
    assert time.monotonic() - start < 1


def test_a_clip_that_takes_too_long_is_given_up_and_the_next_is_looked_at(tmp_path: Path) -> None:
    slow = Checked()
    assert slow(url(mp4(tmp_path, [grey(50)]))) == ""
    (worker,) = slow.clips._workers
    assert worker._process is not None
    os.kill(worker._process.pid, signal.SIGSTOP)
    slow.clips._seconds = 0.2
    assert slow(url(mp4(tmp_path, [grey(60)]))).startswith("503 clip 0: could not be looked at")
    slow.clips._seconds = 60.0
    assert slow(url(mp4(tmp_path, [grey(60)]))) == ""
    slow.loop.run_until_complete(slow.clips.stop())
    slow.loop.close()


def test_the_gateway_passes_on_good_clips_alone(site: Site, tmp_path: Path) -> None:
    good = url(mp4(tmp_path, [grey(50), grey(100)]))

    def message(*urls: str) -> list[dict[str, object]]:
        parts = [{"type": "video_url", "video_url": {"url": one}} for one in urls]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": "write"}]}]

    reply = site.chat("door", messages=message(good, good))
    assert text(reply) == written_by("door@v2")
    assert site.upstream.asked[-1]["messages"] == message(good, good)
    bomb = url(mp4(tmp_path, [grey(50)] * 100))
    reply = site.chat("door", messages=message(good, bomb))
    assert (reply.status_code, reply.json()["error"]["message"]) == (
        400, "messages: clip 1: 100 frames, a segment has 2",
    )  # fmt: skip
    assert len(site.upstream.asked) == 1 and len(site.responses) == 1
