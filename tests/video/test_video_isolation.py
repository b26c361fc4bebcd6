"""A file that crashes, fills or hangs the decoder costs only itself, and no decoder outlives the run."""

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from video_files import grey, patch, refusals, segments, settings, tree, write_video

from taskmem.video import isolation
from taskmem.video.cut import Clip, cut_video
from taskmem.video.segment import Progress, segment_videos
from taskmem.video.wire import MAX_MESSAGE_BYTES, Channel, ClosedError
from taskmem.video.worker import ALIVE_SECONDS

# those that tests of other rooms left in this process
EARLIER: set[int] = set()


def workers(parent: int) -> list[int]:
    """The decoding workers among the children of a process."""
    children = [p for path in Path(f"/proc/{parent}/task").glob("*/children") for p in path.read_text().split()]
    found = [int(p) for p in children if b"taskmem.video.worker" in Path(f"/proc/{p}/cmdline").read_bytes()]
    return [pid for pid in found if pid not in EARLIER]


@pytest.fixture(autouse=True, scope="module")
def earlier() -> None:
    EARLIER.update(workers(os.getpid()))


def gone(pid: int) -> bool:
    """Whether the process ended; one that nobody has waited for yet counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def hit(stream: str, number: int, times: int) -> Progress:
    """Sends the worker a signal after the first segment of `stream`, `times` times."""
    left = [number] * times

    def progress(current: str, done: float, total: float | None) -> None:
        if current == stream and left:
            (worker,) = workers(os.getpid())
            os.kill(worker, left.pop())

    return progress


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in "abc":
        write_video(tmp_path / "in" / f"{name}.mp4", seconds=20)
    return tmp_path / "in"


def streams(out: Path) -> list[str]:
    return sorted({s.stream for s in segments(out)})


def test_a_file_that_crashes_the_decoder_is_refused_for_good_and_the_others_go_on(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    segment_videos(folder, out, settings(), hit("b", signal.SIGSEGV, times=2))
    assert refusals(out) == {"b.mp4": "the decoder crashed (SIGSEGV)"}
    assert streams(out) == ["a", "c"]
    assert not (out / "clips" / "b").exists()
    assert workers(os.getpid()) == []
    before = tree(out)
    monkeypatch.setattr(sys, "executable", "/nonexistent")  # a run with nothing to decode starts no worker
    assert segment_videos(folder, out, settings()).reused == 3
    assert tree(out) == before


def test_a_video_that_dies_of_the_one_before_it_is_tried_again_in_a_fresh_worker(folder, tmp_path):
    segment_videos(folder, tmp_path / "clean", settings())
    segment_videos(folder, tmp_path / "out", settings(), hit("b", signal.SIGABRT, times=1))
    assert tree(tmp_path / "out") == tree(tmp_path / "clean")
    assert streams(tmp_path / "out") == ["a", "b", "c"]


def test_a_video_whose_worker_was_killed_from_outside_is_refused_and_tried_again_by_the_next_run(folder, tmp_path):
    out = tmp_path / "out"
    segment_videos(folder, out, settings(), hit("b", signal.SIGKILL, times=1))
    assert refusals(out) == {"b.mp4": "the decoder was killed from outside (SIGKILL)"}
    assert streams(out) == ["a", "c"]
    assert segment_videos(folder, out, settings()).reused == 2
    segment_videos(folder, tmp_path / "clean", settings())
    assert tree(out) == tree(tmp_path / "clean")


def test_a_decoder_that_makes_no_progress_is_stopped_and_the_next_run_tries_again(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, "MAX_STALL_SECONDS", 1.5)
    out = tmp_path / "out"
    segment_videos(folder, out, settings(), hit("b", signal.SIGSTOP, times=1))
    assert refusals(out) == {"b.mp4": "no frame and no segment for 1.5 s; the decoder was stopped"}
    assert streams(out) == ["a", "c"]
    assert workers(os.getpid()) == []
    assert segment_videos(folder, out, settings()).reused == 2
    assert streams(out) == ["a", "b", "c"]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video whose first segment takes seconds to decode, each frame a small part of one."""
    rng = np.random.default_rng(0)
    noise = (rng.integers(0, 255, (720, 1280, 3), np.uint8) for _ in range(16))
    part = write_video(tmp_path_factory.mktemp("slow") / "part.ts", noise, options={"preset": "ultrafast", "qp": "4"})
    (part.parent / "slow.ts").write_bytes(part.read_bytes() * 6)
    return part.parent / "slow.ts"


def test_a_segment_that_takes_longer_than_the_stall_limit_is_no_stall_while_frames_come(slow, tmp_path, monkeypatch):
    marks = [time.monotonic()]
    done = settings(max_seconds=10)
    segment_videos(slow, tmp_path / "free", done, lambda *_: marks.append(time.monotonic()))
    limit = (marks[1] - marks[0]) * 0.6
    monkeypatch.setattr(isolation, "MAX_STALL_SECONDS", limit)
    segment_videos(slow, tmp_path / "out", done)
    assert limit > 2 * ALIVE_SECONDS
    assert tree(tmp_path / "out") == tree(tmp_path / "free")
    assert streams(tmp_path / "out") == ["slow"]


def test_a_video_that_needs_more_memory_than_the_limit_is_refused(folder, tmp_path, monkeypatch):
    used: list[int] = []

    def look(stream: str, done: float, total: float | None) -> None:
        (worker,) = workers(os.getpid())
        status = Path(f"/proc/{worker}/status").read_text()
        used.append(int(status.split("VmPeak:")[1].split()[0]) * 1024)

    segment_videos(folder, tmp_path / "small", settings(), look)
    limit = max(used) + (16 << 20)
    monkeypatch.setattr(isolation, "MAX_MEMORY_BYTES", limit)
    write_video(folder / "b.mp4", [grey(90, 8192, 4320)], codec="mjpeg", pixels="yuvj420p")  # 53 MB when decoded
    segment_videos(folder, tmp_path / "out", settings())
    assert refusals(tmp_path / "out") == {"b.mp4": f"needs more than {limit} bytes of memory"}
    assert streams(tmp_path / "out") == ["a", "c"]


def test_an_index_that_would_fill_the_memory_is_refused(folder, tmp_path, monkeypatch):
    bomb = write_video(folder / "b.mov", seconds=2, codec="rawvideo", pixels="rgb24")
    for table, offset in ((b"stsz", 12), (b"stts", 12), (b"stsc", 16)):
        patch(bomb, table, offset, struct.pack(">I", 80_000_000))  # 1.9 GB of index for a file of 93 KB
    monkeypatch.setattr(isolation, "MAX_MEMORY_BYTES", 1 << 30)
    segment_videos(folder, tmp_path / "out", settings())
    assert refusals(tmp_path / "out") == {"b.mov": "its index of 80000000 frames cannot be built"}
    assert {s.source for s in segments(tmp_path / "out")} == {"a.mp4", "b.mp4", "c.mp4"}


def test_the_worker_has_bounded_memory_and_may_write_neither_files_nor_core_dumps(folder, tmp_path):
    seen: list[str] = []

    def look(stream: str, done: float, total: float | None) -> None:
        (worker,) = workers(os.getpid())
        seen.extend(Path(f"/proc/{worker}/limits").read_text().splitlines())

    segment_videos(folder / "a.mp4", tmp_path / "out", settings(), look)
    limits = {line[:26].strip(): line[26:].split()[:2] for line in seen}
    assert limits["Max address space"] == ["4294967296", "4294967296"]
    assert limits["Max core file size"] == limits["Max file size"] == ["0", "0"]


def test_the_worker_gives_the_bytes_that_decoding_in_this_process_gives(folder, tmp_path):
    segment_videos(folder / "a.mp4", tmp_path / "out", settings(fps=2))
    clips: list[Clip] = []
    with (folder / "a.mp4").open("rb") as handle:
        cut = cut_video(handle.fileno(), settings(fps=2), clips.append, lambda: None)
    written = segments(tmp_path / "out")
    assert len(written) == 2
    assert [(tmp_path / "out" / s.clip).read_bytes() for s in written] == [c.data for c in clips]
    assert [(s.width, s.height, s.end_s) for s in written] == [(c.width, c.height, float(c.end)) for c in clips]
    assert float(cut.end.time) == written[-1].end_s


RUN = """
import sys, time
from pathlib import Path
from video_files import settings
from taskmem.video.segment import segment_videos

print("started", flush=True)

def seen(stream, done, total):
    Path(sys.argv[2], "seen").touch()
    time.sleep(float(sys.argv[3]))

segment_videos(Path(sys.argv[1]), Path(sys.argv[2]), settings(fps=5), seen)
"""


def start(script: Path, videos: Path, out: Path, pause: float) -> subprocess.Popen[bytes]:
    """Run the unguarded script from a folder whose `av.py` must not be taken for the library."""
    script.write_text(RUN)
    cwd = script.parent / "cwd"
    cwd.mkdir()
    (cwd / "av.py").write_text("raise RuntimeError('imported from the working directory')")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, str(script), str(videos), str(out), str(pause)]
    return subprocess.Popen(command, env=environment, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_script_without_a_main_guard_runs_once(folder, tmp_path):
    run = start(tmp_path / "run.py", folder, tmp_path / "out", 0)
    assert run.communicate(timeout=60) == (b"started\n", b"")
    assert streams(tmp_path / "out") == ["a", "b", "c"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_ends_while_its_worker_waits_leaves_no_worker(folder, tmp_path, number):
    run = start(tmp_path / "run.py", folder, tmp_path / "out", 60)
    with run, ExitStack() as ended:
        ended.callback(run.kill)  # a failure below must not wait for the run
        wait_until((tmp_path / "out" / "seen").exists)
        (worker,) = workers(run.pid)
        run.send_signal(number)
        wait_until(lambda: gone(worker), 10)
        _, errors = run.communicate(timeout=10)
    assert run.returncode == -number
    assert errors.count(b"KeyboardInterrupt") == (number == signal.SIGINT)


def test_a_run_that_is_killed_while_its_worker_decodes_leaves_no_worker(slow, tmp_path):

    def seconds_used(pid: int) -> float:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11]) / os.sysconf("SC_CLK_TCK")

    run = start(tmp_path / "run.py", slow, tmp_path / "out", 60)
    with run, ExitStack() as ended:
        ended.callback(run.kill)  # a failure below must not wait for the run
        wait_until(lambda: workers(run.pid))
        (worker,) = workers(run.pid)
        wait_until(lambda: seconds_used(worker) > 0.6 or gone(worker))
        assert not gone(worker) and not (tmp_path / "out" / "seen").exists()
        run.kill()
        wait_until(lambda: gone(worker), 10)


def test_a_message_that_is_none_ends_the_conversation():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = Channel(ours)
        theirs.sendall(struct.pack(">II", 2, MAX_MESSAGE_BYTES))
        with pytest.raises(ClosedError, match="more than"):
            channel.receive()
        theirs.sendall(struct.pack(">II", 3, 0) + b"{]}")
        with pytest.raises(ClosedError, match="not a message"):
            channel.receive()
        theirs.close()
        with pytest.raises(ClosedError):
            channel.receive()
