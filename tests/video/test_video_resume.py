"""A run that was killed goes on where it stood, and ends with the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from video_files import refusals, segment_videos, segments, settings, tree, write_video

RUN = """
import sys, time
from pathlib import Path
from video_files import settings
from taskmem.video.segment import segment_videos

def stall(stream, done, total):
    if stream == "c" and done >= 20:
        Path(sys.argv[2], "stalled").touch()
        time.sleep(60)

segment_videos(Path(sys.argv[1]), Path(sys.argv[2]), settings(), stall)
"""


def videos(folder: Path) -> Path:
    folder.mkdir()
    for name in ("a", "b", "c", "d"):
        write_video(folder / f"{name}.mp4", seconds=30)
    (folder / "broken.mp4").write_text("no video")
    (folder / "b.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n")
    return folder


def run_and_kill(source: Path, out: Path) -> None:
    """Start a run in a process of its own and kill it in the middle of stream c."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen([sys.executable, "-c", RUN, str(source), str(out)], env=environment)
    try:
        deadline = time.monotonic() + 30
        while not (out / "stalled").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (out / "stalled").unlink()


def test_a_killed_run_resumes_with_the_same_bytes_and_does_not_redo_finished_streams(tmp_path: Path):
    source, out = videos(tmp_path / "in"), tmp_path / "out"
    segment_videos(source, tmp_path / "clean", settings())
    run_and_kill(source, out)
    assert not (out / "segments.jsonl").exists()
    assert len(list((out / "clips" / "c").iterdir())) == 2
    finished = {p: p.stat().st_mtime_ns for p in (out / "clips").glob("[ab]/*")}
    assert len(finished) == 6
    done: list[str] = []
    summary = segment_videos(source, out, settings(), lambda stream, *_: done.append(stream))
    assert summary.reused == 3  # a, b and the broken one
    assert set(done) == {"c", "d"}
    assert {p: p.stat().st_mtime_ns for p in finished} == finished
    assert tree(out) == tree(tmp_path / "clean")


def test_a_stream_is_redone_when_anything_that_determines_it_changes(tmp_path: Path):
    source, out = videos(tmp_path / "in"), tmp_path / "out"
    segment_videos(source, out, settings())

    def redone() -> set[str]:
        done: set[str] = set()
        segment_videos(source, out, settings(), lambda stream, *_: done.add(stream))
        return done

    assert redone() == set()
    write_video(source / "a.mp4", seconds=10)
    (source / "b.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhi\n")
    (out / "clips" / "c" / "000001.mp4").write_bytes(b"bit rot")
    (out / ".done" / "d.json").write_text('{"key": "torn')
    assert redone() == {"a", "b", "c", "d"}
    assert sorted(p.name for p in (out / "clips" / "a").iterdir()) == ["000000.mp4"]
    assert redone() == set()
    again = segment_videos(source, out, settings(fps=0.5))
    assert again.reused == 0


def test_what_is_no_longer_there_leaves_nothing_behind(tmp_path: Path):
    source, out = videos(tmp_path / "in"), tmp_path / "out"
    segment_videos(source, out, settings())
    (source / "a.mp4").unlink()
    (source / "broken.mp4").unlink()
    (out / ".segments.jsonl.0.tmp").write_text("left by a kill")
    segment_videos(source, out, settings())
    segment_videos(source, tmp_path / "clean", settings())
    assert tree(out) == tree(tmp_path / "clean")
    assert {s.stream for s in segments(out)} == {"b", "c", "d"}
    assert refusals(out) == {}


MEMORY = """
import resource, sys
from pathlib import Path
from video_files import settings
from taskmem.video.segment import segment_videos

segment_videos(Path(sys.argv[1]), Path(sys.argv[2]), settings(fps=2, longest_side=640))
print(max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
"""


def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path: Path):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (360, 640, 3), np.uint8) for _ in range(4)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    peaks = []
    for seconds in (11, 41):
        frames = (noise[i % 4] for i in range(seconds * 10))
        options = {"preset": "ultrafast", "crf": "40"}
        video = write_video(tmp_path / f"{seconds}.mp4", frames, rate=10, options=options)
        command = [sys.executable, "-c", MEMORY, str(video), str(tmp_path / "out")]
        peaks.append(int(subprocess.run(command, env=environment, capture_output=True, check=True).stdout))
    assert len(segments(tmp_path / "out")) == 5
    assert peaks[1] - peaks[0] < 16 * 1024  # kilobytes; the 410 frames are 142 MB, the 82 samples 28 MB
