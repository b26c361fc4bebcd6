"""What a good video becomes."""

import hashlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_files import (
    close,
    grey,
    levels,
    pixels,
    refusals,
    segment_videos,
    segments,
    settings,
    shade,
    tree,
    turn,
    write_video,
)

from taskmem.errors import UserError


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mov", "mpeg4"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx"),
        ("a.avi", "mpeg4"),
        ("a.ts", "libx264"),
        ("a.flv", "libx264"),
        ("a.wmv", "wmv2"),
    ],
)
def test_every_container_shows_the_frames_in_the_middle_of_the_sampling_intervals(tmp_path: Path, name, codec):
    (tmp_path / "in").mkdir()
    sharp = {"qmin": "1", "qmax": "2"} if codec in ("mpeg4", "wmv2") else {}
    write_video(tmp_path / "in" / name, seconds=24, codec=codec, options=sharp)
    summary = segment_videos(tmp_path / "in", tmp_path / "out", settings())
    assert (summary.streams, summary.segments, summary.refused) == (1, 3, 0)
    first, second, last = segments(tmp_path / "out")
    assert close(levels(tmp_path / "out", first), [12, 37])  # 2.5 s and 7.5 s at 5 frames a second
    assert close(levels(tmp_path / "out", second), [62, 87])
    assert close(levels(tmp_path / "out", last), [112])
    assert (last.start_s, last.end_s) == (20.0, 24.0)
    assert (first.source, first.fps, first.width, first.height) == (name, 0.2, 64, 48)
    for segment in (first, second, last):
        data = (tmp_path / "out" / segment.clip).read_bytes()
        assert hashlib.sha256(data).hexdigest() == segment.sha256
        assert segment.clip == f"clips/a/{segment.index:06d}.mp4"


def test_a_clip_is_written_at_the_sampling_rate_as_h264_without_any_time_of_day(tmp_path: Path):
    video = write_video(tmp_path / "a.mp4", seconds=10)
    segment_videos(video, tmp_path / "out", settings(fps=0.5))
    with av.open(str(tmp_path / "out/clips/a/000000.mp4")) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert [float(f.pts * f.time_base) for f in frames] == [0, 2, 4, 6, 8]
        assert stream.average_rate == Fraction(1, 2)
        assert "creation_time" not in container.metadata


def test_the_frame_types_of_the_source_do_not_steer_the_clip(tmp_path: Path):
    video = write_video(tmp_path / "a.mp4", seconds=10, options={"g": "1"})
    segment_videos(video, tmp_path / "out", settings(fps=1))
    with av.open(str(tmp_path / "out/clips/a/000000.mp4")) as container:
        keys = [p.is_keyframe for p in container.demux(video=0) if p.size]
    assert keys == [True] + [False] * 9


def test_gaps_of_a_variable_frame_rate_show_the_frame_before(tmp_path: Path):
    frames = [grey(shade(i)) for i in range(5)]
    video = write_video(tmp_path / "a.mkv", frames, times_ms=[0, 2500, 2501, 31000, 34000])
    segment_videos(video, tmp_path / "out", settings())
    found = segments(tmp_path / "out")
    assert [s.index for s in found] == [0, 1, 2, 3]
    assert close(levels(tmp_path / "out", found[0]), [1, 2])
    assert close(levels(tmp_path / "out", found[1]), [2, 2])
    assert close(levels(tmp_path / "out", found[2]), [2, 2])
    assert close(levels(tmp_path / "out", found[3]), [3])


def test_times_start_at_the_first_frame(tmp_path: Path):
    frames = [grey(shade(i)) for i in range(50)]
    video = write_video(tmp_path / "a.mkv", frames, times_ms=[100_000 + 200 * i for i in range(50)])
    segment_videos(video, tmp_path / "out", settings())
    (segment,) = segments(tmp_path / "out")
    assert (segment.start_s, segment.end_s) == (0.0, 10.0)
    assert close(levels(tmp_path / "out", segment), [12, 37])


def test_a_recording_whose_clock_restarts_goes_on(tmp_path: Path):
    part = write_video(tmp_path / "part.ts", seconds=10)
    (tmp_path / "a.ts").write_bytes(part.read_bytes() * 2)
    segment_videos(tmp_path / "a.ts", tmp_path / "out", settings())
    first, second = segments(tmp_path / "out")
    assert close(levels(tmp_path / "out", first), [12, 37])
    assert second.end_s == pytest.approx(20, abs=0.3)  # the joint may cost a frame
    assert close(levels(tmp_path / "out", second), [13, 38])
    assert "damaged" in refusals(tmp_path / "out")["a.ts"]


def test_a_stream_without_duration_or_sound_is_cut_like_any_other(tmp_path: Path):
    video = write_video(tmp_path / "a.mkv", seconds=12, muxer={"live": "1"})
    with av.open(str(video)) as container:
        assert container.duration is None
    totals: list[float | None] = []
    segment_videos(video, tmp_path / "out", settings(), lambda stream, done, total: totals.append(total))
    assert [s.end_s for s in segments(tmp_path / "out")] == [10.0, 12.0]
    assert totals == [None, None]


def test_sound_is_passed_over(tmp_path: Path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        video = container.add_stream("libx264", rate=5, width=64, height=48)
        sound = container.add_stream("aac", rate=8000, layout="mono")
        for i in range(50):
            frame = av.VideoFrame.from_ndarray(grey(shade(i)), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 5)
            container.mux(video.encode(frame))
            wave = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.float32), format="fltp", layout="mono")
            wave.sample_rate, wave.pts, wave.time_base = 8000, i * 1600, Fraction(1, 8000)
            container.mux(sound.encode(wave))
        container.mux(video.encode())
        container.mux(sound.encode())
    summary = segment_videos(tmp_path / "a.mp4", tmp_path / "out", settings())
    assert (summary.segments, summary.refused) == (1, 0)


def test_a_tail_shorter_than_half_an_interval_still_shows_its_frame(tmp_path: Path):
    video = write_video(tmp_path / "a.mp4", seconds=10.8)
    segment_videos(video, tmp_path / "out", settings())
    tail = segments(tmp_path / "out")[1]
    assert tail.end_s == pytest.approx(10.8)
    assert close(levels(tmp_path / "out", tail), [53])


def test_a_tail_without_a_frame_of_its_own_makes_no_segment(tmp_path: Path):
    video = write_video(tmp_path / "a.mkv", [grey(50), grey(90)], times_ms=[0, 9900])
    segment_videos(video, tmp_path / "out", settings())
    assert [s.end_s for s in segments(tmp_path / "out")] == [10.0]


def test_one_frame_makes_one_segment(tmp_path: Path):
    video = write_video(tmp_path / "a.mkv", [grey(shade(3))])
    segment_videos(video, tmp_path / "out", settings())
    (segment,) = segments(tmp_path / "out")
    assert close(levels(tmp_path / "out", segment), [3])
    assert 0 < segment.end_s <= 1


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [((65, 33), 64, (64, 32)), ((1366, 768), 640, (640, 360)), ((47, 63), 640, (46, 62)), ((300, 3), 64, (64, 2))],
)
def test_odd_sizes_become_even_and_are_never_enlarged(tmp_path: Path, size, longest, expected):
    frames = [grey(shade(i), *size) for i in range(5)]
    video = write_video(tmp_path / "a.mkv", frames, codec="ffv1", pixels="bgr0")
    segment_videos(video, tmp_path / "out", settings(longest_side=longest))
    (segment,) = segments(tmp_path / "out")
    assert (segment.width, segment.height) == expected
    assert pixels(tmp_path / "out", segment).shape == (1, expected[1], expected[0], 3)


def test_wide_pixels_are_made_square(tmp_path: Path):
    video = write_video(tmp_path / "a.mp4", seconds=2, aspect=Fraction(2))
    segment_videos(video, tmp_path / "out", settings())
    (segment,) = segments(tmp_path / "out")
    assert (segment.width, segment.height) == (64, 24)


CORNERS = {"top left": (0, 0), "top right": (0, -1), "bottom left": (-1, 0), "bottom right": (-1, -1)}


TURNED = [
    ((1, 0, 0, 1), (48, 64), "top left"),
    ((0, 1, -1, 0), (64, 48), "top right"),
    ((-1, 0, 0, -1), (48, 64), "bottom right"),
    ((0, -1, 1, 0), (64, 48), "bottom left"),
    ((-1, 0, 0, 1), (48, 64), "top right"),
    ((0, 1, 1, 0), (64, 48), "top left"),
]


def test_the_display_matrix_turns_the_frames_upright(tmp_path: Path):
    (tmp_path / "in").mkdir()
    picture = grey(20)
    picture[:16, :16] = 230
    for number, (matrix, _, _) in enumerate(TURNED):
        turn(write_video(tmp_path / "in" / f"{number}.mp4", [picture] * 5), matrix)
    segment_videos(tmp_path / "in", tmp_path / "out", settings())
    for segment, (_, shape, corner) in zip(segments(tmp_path / "out"), TURNED, strict=True):
        (frame,) = pixels(tmp_path / "out", segment)
        assert frame.shape[:2] == (segment.height, segment.width) == shape
        bright = {name for name, (y, x) in CORNERS.items() if frame[y, x].mean() > 128}
        assert bright == {corner}


@pytest.mark.parametrize("colorspace", [1, 5])  # BT.709 and BT.601
def test_colours_survive_whatever_matrix_the_source_has(tmp_path: Path, colorspace):
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:] = (200, 40, 60)

    plain = av.VideoFrame.from_ndarray(frame, format="rgb24")
    converted = plain.reformat(format="yuv420p", dst_colorspace=1 if colorspace == 1 else 5, dst_color_range=1)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=5, width=64, height=48)
        stream.codec_context.colorspace = colorspace
        for i in range(10):
            converted.pts, converted.time_base = i, Fraction(1, 5)
            container.mux(stream.encode(converted))
        container.mux(stream.encode())
    segment_videos(tmp_path / "a.mp4", tmp_path / "out", settings())
    (segment,) = segments(tmp_path / "out")
    assert np.abs(pixels(tmp_path / "out", segment).astype(int) - frame).max() <= 6


def test_a_stream_that_changes_size_keeps_one_size_within_a_segment(tmp_path: Path):
    small = write_video(tmp_path / "small.ts", seconds=5)
    large = write_video(tmp_path / "large.ts", [grey(shade(i), 96, 96) for i in range(75)])
    (tmp_path / "a.ts").write_bytes(small.read_bytes() + large.read_bytes())
    segment_videos(tmp_path / "a.ts", tmp_path / "out", settings(longest_side=640))
    found = segments(tmp_path / "out")
    assert [(s.width, s.height) for s in found] == [(64, 48), (96, 96)]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    write_video(tmp_path / "in" / "a.mp4", seconds=14)
    write_video(tmp_path / "in" / "sub" / "b.webm", seconds=3, codec="libvpx")
    for out in ("one", "two"):
        segment_videos(tmp_path / "in", tmp_path / out, settings(fps=2))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert [s.source for s in segments(tmp_path / "one")] == ["a.mp4", "a.mp4", "sub/b.webm"]


def test_progress_tells_stream_and_seconds(tmp_path: Path):
    video = write_video(tmp_path / "a.mp4", seconds=14)
    calls: list[tuple[str, float, float | None]] = []
    segment_videos(video, tmp_path / "out", settings(), lambda *call: calls.append(call))
    assert calls == [("a", 10.0, 14.0), ("a", 14.0, 14.0)]


def test_a_folder_that_is_missing_or_empty_or_holds_its_own_output_is_a_mistake(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("no video")
    with pytest.raises(UserError, match="holds no videos"):
        segment_videos(tmp_path / "in", tmp_path / "out", settings())
    with pytest.raises(UserError, match="no such file or folder"):
        segment_videos(tmp_path / "nowhere", tmp_path / "out", settings())
    with pytest.raises(UserError, match="lies inside the videos"):
        segment_videos(tmp_path / "in", tmp_path / "in" / "out", settings())
