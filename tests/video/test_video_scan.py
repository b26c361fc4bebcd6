"""Which files are videos, and what their streams are called."""

import re
from pathlib import Path

from video_files import segment_videos, segments, settings, write_video

from taskmem.files import sha256_bytes
from taskmem.video.scan import find_videos, stream_names


def test_stems_become_names_that_are_safe_everywhere():
    names = stream_names(["My film (1).mp4", "sub/.._x.mkv", "視頻.mp4", "a" * 300 + ".avi"])
    assert list(names.values()) == ["My_film_1_", "x", "video", "a" * 96]


def test_stems_that_collide_get_names_that_depend_only_on_their_own_path():
    names = stream_names(["A.mp4", "b/a.mkv", "c.mp4"])
    assert names == {
        "A.mp4": f"A-{sha256_bytes('A.mp4')[:12]}",
        "b/a.mkv": f"a-{sha256_bytes('b/a.mkv')[:12]}",
        "c.mp4": "c",
    }


def test_a_file_named_after_the_suffix_of_another_does_not_take_its_place():
    hostile = f"a-{sha256_bytes('a.mp4')[:12]}.mp4"
    names = stream_names(["a.mp4", "a.mkv", hostile])
    assert len({name.lower() for name in names.values()}) == 3
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name) for name in names.values())


def test_colliding_videos_are_both_cut(tmp_path: Path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    write_video(tmp_path / "in" / "a.mp4", seconds=10)
    write_video(tmp_path / "in" / "sub" / "a.mkv", seconds=5)
    segment_videos(tmp_path / "in", tmp_path / "out", settings())
    found = {s.source: s for s in segments(tmp_path / "out")}
    assert {name: s.end_s for name, s in found.items()} == {"a.mp4": 10.0, "sub/a.mkv": 5.0}
    assert len({s.stream for s in found.values()}) == 2
    assert all((tmp_path / "out" / s.clip).is_file() for s in found.values())


def test_names_of_any_bytes_are_listed_as_text(tmp_path: Path):
    (tmp_path / "in").mkdir()
    odd = Path(str(tmp_path / "in") + "/caf\udce9.mp4")
    write_video(tmp_path / "plain.mp4", seconds=5).rename(odd)
    segment_videos(tmp_path / "in", tmp_path / "out", settings())
    (segment,) = segments(tmp_path / "out")
    assert (segment.source, segment.stream) == ("caf\\xe9.mp4", "caf_xe9")


def test_subfolders_are_searched_in_order_of_relative_name(tmp_path: Path):
    for name in ("b.mp4", "a/z.mp4", "a.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    found, refused = find_videos(tmp_path)
    assert [f.name for f in found] == ["a.mp4", "a/z.mp4", "b.mp4"]
    assert refused == []
