"""Every file that cannot be used is refused or cut and listed, and the others go on."""

import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_files import close, grey, levels, patch, refusals, segment_videos, segments, settings, shade, write_video

from taskmem.video.decode import Burst, Clock


def cut(folder: Path, out: Path, **limits: float) -> dict[str, str]:
    """Segment `folder`, which gets a good video as well; the good one must come through."""
    write_video(folder / "good.mp4", seconds=10)
    segment_videos(folder, out, settings(**limits))
    assert [s.index for s in segments(out) if s.stream == "good"] == [0]
    return refusals(out)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def test_what_is_no_video_is_refused(folder: Path, tmp_path: Path):
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "text.mp4").write_bytes(b"hello world\n" * 100)
    (folder / "picture.mp4").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    refused = cut(folder, tmp_path / "out")
    assert refused.pop("empty.mp4") == "empty: zero bytes"
    assert sorted(refused) == ["noise.mp4", "picture.mp4", "text.mp4"]
    assert all(reason.startswith("not a video in a container") for reason in refused.values())


@pytest.mark.parametrize(
    ("suffix", "codec", "pixels"), [("y4m", "rawvideo", "yuv420p"), ("h264", "libx264", "yuv420p")]
)
def test_what_ffmpeg_could_read_but_is_no_known_container_is_refused(
    folder: Path, tmp_path: Path, suffix, codec, pixels
):
    write_video(tmp_path / f"a.{suffix}", seconds=10, codec=codec, pixels=pixels).rename(folder / "a.mp4")
    with av.open(str(folder / "a.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 50
    assert "not a video in a container" in cut(folder, tmp_path / "out")["a.mp4"]


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{secret}\n#EXT-X-ENDLIST\n"
PLAYLISTS = {
    "list.m3u8": PLAYLIST,
    "list.mp4": PLAYLIST,
    "concat.mp4": "ffconcat version 1.0\nfile '{secret}'\n",
    "dash.mp4": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><BaseURL>{secret}</BaseURL></MPD>',
}


def test_a_playlist_cannot_open_another_file(folder: Path, tmp_path: Path):
    secret = write_video(tmp_path / "secret.ts", seconds=10)
    for name, content in PLAYLISTS.items():
        (folder / name).write_text(content.format(secret=secret))
    refused = cut(folder, tmp_path / "out")
    assert refused.keys() == PLAYLISTS.keys()
    assert all(reason.startswith("not a video in a container") for reason in refused.values())
    assert {s.source for s in segments(tmp_path / "out")} == {"good.mp4"}


def test_a_name_that_looks_like_a_protocol_is_only_a_name(folder: Path, tmp_path: Path):
    secret = write_video(tmp_path / "secret.ts", seconds=10)
    write_video(folder / "plain.mp4", seconds=5).rename(folder / "http:evil.mp4")
    (folder / "concat:a|b.mp4").write_text(str(secret))
    refused = cut(folder, tmp_path / "out")
    assert list(refused) == ["concat:a|b.mp4"]
    assert {s.stream: s.end_s for s in segments(tmp_path / "out")} == {"good": 10.0, "http_evil": 5.0}


def test_sound_alone_is_refused(folder: Path, tmp_path: Path):
    with av.open(str(folder / "sound.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    assert cut(folder, tmp_path / "out") == {"sound.mp4": "no video stream"}


def test_links_that_leave_the_folder_and_what_is_no_file_are_refused(folder: Path, tmp_path: Path):
    outside = write_video(tmp_path / "outside.mp4", seconds=5)
    (folder / "leak.mp4").symlink_to(outside)
    (folder / "broken.mp4").symlink_to(folder / "nothing.mp4")
    (folder / "within.mp4").symlink_to(folder / "good.mp4")
    (folder / "tree").symlink_to(tmp_path)
    os.mkfifo(folder / "endless.mp4")
    assert cut(folder, tmp_path / "out") == {
        "broken.mp4": "a link that is broken or leads outside the folder",
        "endless.mp4": "not a regular file",
        "leak.mp4": "a link that is broken or leads outside the folder",
        "tree": "a link to a folder",
    }
    assert {s.stream for s in segments(tmp_path / "out")} == {"good", "within"}


def test_a_file_that_grows_while_it_is_read_is_refused(folder: Path, tmp_path: Path):
    growing = write_video(folder / "growing.ts", seconds=30)
    write_video(folder / "late.mp4", seconds=10)

    def grow(stream: str, done: float, total: float | None) -> None:
        if stream == "growing":
            with growing.open("ab") as handle:
                handle.write(growing.read_bytes())

    segment_videos(folder, tmp_path / "out", settings(), grow)
    assert list(refusals(tmp_path / "out")) == ["growing.ts"]
    assert "changed while it was read" in refusals(tmp_path / "out")["growing.ts"]
    assert {s.stream for s in segments(tmp_path / "out")} == {"late"}
    assert not (tmp_path / "out" / "clips" / "growing").exists()


def huge_avi(path: Path) -> None:
    write_video(path, seconds=2, codec="rawvideo")
    patch(path, b"strf", 12, struct.pack("<ii", 100_000, 100_000))


def huge_mov(path: Path) -> None:
    write_video(path, seconds=2, codec="rawvideo", pixels="rgb24")
    patch(path, b"raw ", 28, struct.pack(">HH", 65_535, 65_535))


def huge_mkv(path: Path) -> None:
    write_video(path, [grey(90, 300, 300)] * 5, codec="ffv1", pixels="bgr0")
    patch(path, b"\xb0\x82\x01\x2c", 2, b"\xff\xff")
    patch(path, b"\xba\x82\x01\x2c", 2, b"\xff\xff")


@pytest.mark.parametrize(("name", "write"), [("a.avi", huge_avi), ("a.mov", huge_mov), ("a.mkv", huge_mkv)])
def test_a_header_that_claims_a_huge_frame_is_refused_before_decoding(folder: Path, tmp_path: Path, name, write):
    write(folder / name)
    side = "100000" if name == "a.avi" else "65535"
    reason = cut(folder, tmp_path / "out")[name]
    assert reason == f"frames of {side} x {side} pixels, more than limits.max_pixels = 35389440"


def test_a_packet_that_claims_a_huge_frame_is_not_decoded(folder: Path, tmp_path: Path):
    path = write_video(folder / "a.avi", seconds=2, codec="mjpeg", pixels="yuvj420p")
    header = b"\xff\xc0\x00\x11\x08"
    assert path.read_bytes().count(header) == 10
    path.write_bytes(path.read_bytes().replace(header + struct.pack(">HH", 48, 64), header + b"\xff\xff\xff\xff"))
    assert cut(folder, tmp_path / "out")["a.avi"] == "no frame could be decoded"


def test_a_frame_that_grows_in_the_middle_is_caught(folder: Path, tmp_path: Path):
    small = write_video(tmp_path / "small.ts", seconds=15)
    large = write_video(tmp_path / "large.ts", [grey(shade(i), 640, 480) for i in range(50)])
    (folder / "a.ts").write_bytes(small.read_bytes() + large.read_bytes())
    reason = cut(folder, tmp_path / "out", max_pixels=64 * 48)["a.ts"]
    size = "frames of 640 x 480 pixels, more than limits.max_pixels = 3072"
    assert reason.startswith(f"cut at 14.2 s: {size}; kept the first 10 s, segments: 1")
    assert [s.end_s for s in segments(tmp_path / "out") if s.stream == "a"] == [10.0]


def test_a_file_with_too_many_bytes_is_refused(folder: Path, tmp_path: Path):
    with (folder / "big.mp4").open("wb") as handle:
        handle.truncate(1 << 40)
    assert "1099511627776 bytes, more than limits.max_bytes" in cut(folder, tmp_path / "out")["big.mp4"]


def test_a_long_video_is_cut_and_the_last_segment_ends_at_the_limit(folder: Path, tmp_path: Path):
    write_video(folder / "long.mp4", seconds=40)
    reason = cut(folder, tmp_path / "out", max_seconds=25)["long.mp4"]
    assert reason == "cut at 25 s: longer than limits.max_seconds = 25; kept the first 25 s, segments: 3"
    assert [s.end_s for s in segments(tmp_path / "out") if s.stream == "long"] == [10.0, 20.0, 25.0]


def test_a_far_timestamp_makes_no_more_segments_than_the_limit(folder: Path, tmp_path: Path):
    write_video(folder / "far.mkv", [grey(50), grey(90)], times_ms=[0, 1_000_000_000])
    assert "limits.max_seconds = 60" in cut(folder, tmp_path / "out", max_seconds=60)["far.mkv"]
    assert len([s for s in segments(tmp_path / "out") if s.stream == "far"]) == 6


def test_a_bomb_of_frames_is_cut(folder: Path, tmp_path: Path):
    frames = [grey(shade(i), 16, 16) for i in range(650)]
    times = [200 * i for i in range(60)] + [12_000 + i for i in range(590)]
    write_video(folder / "bomb.mkv", frames, times_ms=times)
    reason = cut(folder, tmp_path / "out")["bomb.mkv"]
    assert reason.startswith("cut at 12.") and "limits.max_fps = 240" in reason
    assert [s.end_s for s in segments(tmp_path / "out") if s.stream == "bomb"] == [10.0]


def test_a_stream_whose_time_never_advances_is_refused(folder: Path, tmp_path: Path):
    path = folder / "still.mp4"
    write_video(path, [grey(90, 16, 16)] * 600, codec="mjpeg", pixels="yuvj420p")
    content = path.read_bytes()
    count, delta = struct.unpack(">II", content[content.index(b"stts") + 12 :][:8])
    assert count == 600 and delta > 1
    patch(path, b"stts", 16, struct.pack(">I", 1))
    assert "limits.max_fps = 240; no whole segment" in cut(folder, tmp_path / "out")["still.mp4"]


@pytest.mark.parametrize(
    ("name", "codec", "muxer"),
    [
        ("a.mp4", "libx264", {"movflags": "+faststart"}),
        ("a.mkv", "libx264", {}),
        ("a.avi", "mpeg4", {}),
        ("a.mov", "libx264", {"movflags": "+frag_keyframe+empty_moov"}),
    ],
)
def test_a_truncated_file_keeps_the_whole_segments_before_the_break(folder: Path, tmp_path: Path, name, codec, muxer):
    path = write_video(folder / name, seconds=40, codec=codec, muxer=muxer, options={"g": "5"})
    data = path.read_bytes()
    middle = len(data) * 5 // 8
    path.write_bytes(data[: data.rindex(b"mdat", 0, middle) + 40 if name == "a.mov" else middle])
    reason = cut(folder, tmp_path / "out")[name]
    kept = [s for s in segments(tmp_path / "out") if s.stream == "a"]
    assert reason.startswith("cut at ")
    assert kept and [s.end_s for s in kept] == [10.0 * (i + 1) for i in range(len(kept))]
    assert len(kept) < 4


def test_a_file_broken_before_its_first_segment_is_refused(folder: Path, tmp_path: Path):
    path = write_video(folder / "a.mp4", seconds=20, muxer={"movflags": "+faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 900])
    assert cut(folder, tmp_path / "out")["a.mp4"].endswith("no whole segment before it")
    assert not (tmp_path / "out" / "clips" / "a").exists()


def test_short_damage_is_stepped_over_up_to_the_next_key_frame_and_listed(folder: Path, tmp_path: Path):
    path = write_video(folder / "a.mp4", seconds=20, options={"g": "5", "bf": "0"})
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    start = packets[37].pos
    data[start : start + packets[37].size] = b"\xff" * packets[37].size
    path.write_bytes(data)
    assert cut(folder, tmp_path / "out")["a.mp4"] == (
        "damaged: packets left out, up to the next key frame each time: 3"
    )
    first, second = (s for s in segments(tmp_path / "out") if s.stream == "a")
    assert close(levels(tmp_path / "out", first), [12, 36])
    assert close(levels(tmp_path / "out", second), [62, 87])


def test_damage_longer_than_a_segment_cuts_the_stream(folder: Path, tmp_path: Path):
    path = write_video(folder / "a.mp4", seconds=60, options={"g": "5", "bf": "0"})
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for packet in packets[120:200]:
        data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)
    assert cut(folder, tmp_path / "out")["a.mp4"].startswith("cut at 24 s: damaged for")
    assert [s.end_s for s in segments(tmp_path / "out") if s.stream == "a"] == [10.0, 20.0]


def test_hidden_files_and_side_files_are_not_videos(folder: Path, tmp_path: Path):
    for name in (".hidden.mp4", "a.json", "b.jsonl", "c.TXT", "d.md", "e.srt", "f.vtt"):
        (folder / name).write_text("x")
    (folder / ".secret").mkdir()
    (folder / ".secret" / "x.mp4").write_text("x")
    (folder / "odd.bin").write_text("x")
    assert list(cut(folder, tmp_path / "out")) == ["odd.bin"]


def test_nothing_is_printed_about_bad_files(folder: Path, tmp_path: Path, capfd):
    huge_avi(folder / "a.avi")
    (folder / "b.mp4").write_bytes(write_video(tmp_path / "b.mp4", seconds=20).read_bytes()[:3000])
    cut(folder, tmp_path / "out")
    assert capfd.readouterr() == ("", "")


def test_the_clock_starts_at_zero_never_runs_back_and_restarts_after_a_jump():
    clock = Clock(Fraction(1, 5))
    seconds = [5, 5.2, 5.2, 5.1, 5.6, None, 1, 1.2]
    read = [clock.read(None if s is None else Fraction(s).limit_denominator(10)) for s in seconds]
    assert [float(t) for t in read] == pytest.approx([0, 0.2, 0.2, 0.2, 0.6, 0.8, 1.0, 1.2])


def test_a_steady_stream_at_the_limit_is_no_bomb_and_one_above_it_is():
    steady, fast = Burst(240), Burst(240)
    assert not any(steady.exceeded(round(i / 240, 3)) for i in range(2000))
    assert any(fast.exceeded(i / 300) for i in range(2000))
