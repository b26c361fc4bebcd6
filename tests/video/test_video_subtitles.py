"""What is said in a segment comes from the file beside the video, else from its own text track."""

import struct
import time
from fractions import Fraction
from pathlib import Path

import pytest
from video_files import refusals, segment_videos, segments, settings, write_video

from taskmem.video.subtitles import parse

SRT = """\ufeff1\r
00:00:01,000 --> 00:00:03,500\r
<i>Hello</i>\r
{\\an8}there\r
\r
2\r
00:00:09,000 --> 00:00:12,000\r
across the border\r
"""

VTT = """WEBVTT - a title
X-TIMESTAMP-MAP=LOCAL:00:00:00.000

STYLE
::cue { color: red }

NOTE a remark
over two lines

REGION
id:fred

intro
00:01.000 --> 00:03.500 align:start position:10%
<v.loud Ann Lee>Fish &amp; <b>chips</b></v> <v Bob>No</v>

00:00:09.000 --> 00:00:12.000
across the border
"""


def spoken(out: Path) -> list[list[tuple[float, float, str, str]]]:
    return [[(t.start_s, t.end_s, t.text, t.speaker) for t in s.subtitles] for s in segments(out)]


def test_srt_beside_the_video_is_spread_over_the_segments_it_overlaps(tmp_path: Path):
    (tmp_path / "a.srt").write_bytes(SRT.encode())
    segment_videos(write_video(tmp_path / "a.mp4", seconds=20), tmp_path / "out", settings())
    across = (9.0, 12.0, "across the border", "unknown")
    assert spoken(tmp_path / "out") == [[(1.0, 3.5, "Hello there", "unknown"), across], [across]]
    assert refusals(tmp_path / "out") == {}


def test_webvtt_gives_speakers_from_voice_tags(tmp_path: Path):
    (tmp_path / "a.vtt").write_text(VTT)
    segment_videos(write_video(tmp_path / "a.mp4", seconds=20), tmp_path / "out", settings())
    first = [
        (1.0, 3.5, "Fish & chips", "Ann Lee"),
        (1.0, 3.5, "No", "Bob"),
        (9.0, 12.0, "across the border", "unknown"),
    ]
    assert spoken(tmp_path / "out")[0] == first
    assert refusals(tmp_path / "out") == {}


def test_a_language_may_stand_before_the_suffix_and_the_plain_name_comes_first(tmp_path: Path):
    video = write_video(tmp_path / "a.mp4", seconds=5)
    line = "1\n00:00:01,000 --> 00:00:02,000\n{}\n"
    (tmp_path / "a.part2.srt").write_text(line.format("another video's"))
    (tmp_path / "a.en.srt").write_text(line.format("English"))
    segment_videos(video, tmp_path / "one", settings())
    (tmp_path / "a.vtt").write_text(VTT)
    (tmp_path / "a.srt").write_text(line.format("plain"))
    segment_videos(video, tmp_path / "two", settings())
    assert [turn[2] for turn in spoken(tmp_path / "one")[0]] == ["English"]
    assert [turn[2] for turn in spoken(tmp_path / "two")[0]] == ["plain"]


@pytest.mark.parametrize(
    ("name", "codec", "cue_codec", "text", "expected"),
    [
        ("a.mkv", "libx264", "subrip", b"<i>hi</i> you", ("hi you", "unknown")),
        ("a.webm", "libvpx", "webvtt", b"<v Ann>hi &amp; you", ("hi & you", "Ann")),
        ("a.mkv", "libx264", "ass", b"0,0,Default,Ann,0,0,0,,hi\\N{\\i1}you", ("hi you", "Ann")),
        ("a.mp4", "libx264", "mov_text", struct.pack(">H", 6) + b"hi you", ("hi you", "unknown")),
    ],
)
def test_an_embedded_text_track_is_read_in_stream_time(tmp_path: Path, name, codec, cue_codec, text, expected):
    offset = 0 if name.endswith("mp4") else 7000
    times = [offset + 200 * i for i in range(100)]
    cues = [(offset + 2000, 1500, text), (offset + 9000, 2000, text)]
    video = write_video(tmp_path / name, seconds=20, codec=codec, times_ms=times, cues=cues, cue_codec=cue_codec)
    segment_videos(video, tmp_path / "out", settings())
    late = (9.0, 11.0, *expected)
    assert spoken(tmp_path / "out") == [[(2.0, 3.5, *expected), late], [late]]


def test_a_file_beside_the_video_is_preferred_to_its_own_track(tmp_path: Path):
    video = write_video(tmp_path / "a.mkv", seconds=5, cues=[(1000, 500, b"inside")])
    (tmp_path / "a.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nbeside\n")
    segment_videos(video, tmp_path / "out", settings())
    assert [turn[2] for turn in spoken(tmp_path / "out")[0]] == ["beside"]


BAD = "1\n00:00:01,000 -> 00:00:02,000\nno arrow\n\n2\n00:00:05,000 --> 00:00:04,000\nbackwards\n\n3\n"
GOOD = "00:00:06,000 --> 00:00:07,000\nfine\n"


def test_malformed_cues_are_left_out_and_listed_and_the_video_goes_on(tmp_path: Path):
    (tmp_path / "a.srt").write_text(BAD + GOOD)
    segment_videos(write_video(tmp_path / "a.mp4", seconds=10), tmp_path / "out", settings())
    assert [turn[2] for turn in spoken(tmp_path / "out")[0]] == ["fine"]
    assert refusals(tmp_path / "out") == {"a.srt": "2 malformed cues left out, 1 turns kept"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"1\n00:00:01,000 --> 00:00:02,000\ncaf\xe9\n", "neither UTF-8 nor UTF-16"),
        (b"x" * 5000, "5000 bytes, more than limits.max_subtitle_bytes = 4000"),
        (b"", "empty"),
        (b"1\n00:00:00,000 --> 23:00:00,000\n" + b"word " * 700, "overlap too many segments"),
    ],
)
def test_a_subtitle_file_that_cannot_be_used_is_listed_and_the_video_goes_on(tmp_path: Path, content, reason):
    (tmp_path / "a.srt").write_bytes(content)
    video = write_video(tmp_path / "a.mp4", seconds=60)
    segment_videos(video, tmp_path / "out", settings(max_subtitle_bytes=4000))
    (listed,) = refusals(tmp_path / "out").values()
    assert reason in listed
    assert spoken(tmp_path / "out") == [[]] * 6


def test_an_embedded_track_that_is_too_large_is_left_out_and_listed(tmp_path: Path):
    video = write_video(tmp_path / "a.mkv", seconds=5, cues=[(100 * i, 90, b"word " * 50) for i in range(40)])
    segment_videos(video, tmp_path / "out", settings(max_subtitle_bytes=4000))
    assert "embedded subtitles left out" in refusals(tmp_path / "out")["a.mkv"]
    assert spoken(tmp_path / "out") == [[]]


def test_utf16_and_missing_blank_lines_and_missing_hours_are_understood(tmp_path: Path):
    text = "1\n00:01,5 --> 00:02.25\nöne\n2\n0:0:3,000 --> 0:0:4,000 X1:10\ntwo\n42\n"
    (tmp_path / "a.srt").write_bytes(text.encode("utf-16"))
    segment_videos(write_video(tmp_path / "a.mp4", seconds=5), tmp_path / "out", settings())
    assert spoken(tmp_path / "out") == [[(1.5, 2.25, "öne", "unknown"), (3.0, 4.0, "two 42", "unknown")]]


def test_control_characters_and_cues_of_tags_alone_vanish():
    turns, malformed = parse("00:01.000 --> 00:02.000\n<b></b>\n\n00:03.000 --> 00:04.000\na\x00\x1bb\n", webvtt=True)
    assert [(t.start, t.text) for t in turns] == [(Fraction(3), "a b")]
    assert malformed == 0


@pytest.mark.parametrize("line", ["<" * 400_000, "<v" * 200_000, "<v" + ".a" * 200_000, "{\\" * 200_000, " " * 400_000])
def test_a_hostile_cue_costs_linear_time(line):
    started = time.perf_counter()
    parse(f"00:01.000 --> 00:02.000\n{line}\n\n{line}-->\n", webvtt=True)
    assert time.perf_counter() - started < 2
