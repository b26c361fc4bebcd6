"""The decoding worker, `python -m taskmem.video.worker SOCKET MAX_MEMORY_BYTES`: cuts the videos it is handed.

It is started by `taskmem.video.isolation` and dies with it. What a hostile file can do to FFmpeg, it does here: under
limits on memory, without core dumps, and without leave to write any file.
"""

import fcntl
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from taskmem.config import VideoSettings
from taskmem.records import one_line
from taskmem.video.cut import Clip, Cut, cut_video
from taskmem.video.frames import whole_clip
from taskmem.video.probe import RefusedError
from taskmem.video.wire import Channel, ClosedError

ALIVE_SECONDS = 0.25  # at most one sign of life in this time


def main() -> None:
    """Serve until the other side closes."""
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    die_with_parent()
    restrict(int(sys.argv[2]))
    channel.send({"kind": "ready"})
    silence()
    while True:
        try:
            message, descriptor = channel.receive_descriptor()
            settings = VideoSettings.model_validate_json(message["settings"])
            work = _whole if message["kind"] == "whole" else _cut
            answer = _answer(partial(work, channel, descriptor, settings))
            os.close(descriptor)
            channel.send(answer)
        except ClosedError:
            return


def die_with_parent() -> None:
    """Let the kernel end this process when the parent's end of standard input closes, whatever code runs here then."""
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGIO})
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)


def restrict(max_memory_bytes: int) -> None:
    """Bound the address space; forbid core dumps and writing to files. A lower limit that is already set stays."""
    wanted = {
        resource.RLIMIT_AS: max_memory_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
    }
    for kind, value in wanted.items():
        present = resource.getrlimit(kind)
        lower = min([value, *(limit for limit in present if limit != resource.RLIM_INFINITY)])
        resource.setrlimit(kind, (lower, lower))


def silence() -> None:
    """Close the terminal to what FFmpeg and the C library print about a file."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.close(sink)


def _whole(channel: Channel, descriptor: int, settings: VideoSettings) -> dict[str, Any]:
    """Decode one clip and say what it holds."""
    return {"kind": "whole", **asdict(whole_clip(descriptor, settings.limits))}


def _cut(channel: Channel, descriptor: int, settings: VideoSettings) -> dict[str, Any]:
    """Cut one video, its clips sent on the way, and say how it ended."""
    last = time.monotonic()

    def alive() -> None:
        nonlocal last
        if time.monotonic() - last >= ALIVE_SECONDS:
            channel.send({"kind": "alive"})
            last = time.monotonic()

    def deliver(clip: Clip) -> None:
        fields = {"index": clip.index, "width": clip.width, "height": clip.height}
        channel.send({"kind": "clip", **fields, "end": str(clip.end), "total": clip.total}, clip.data)
        channel.receive()  # the next segment is not begun before this one is on disk

    return _ended(cut_video(descriptor, settings, deliver, alive))


def _answer(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the work gives, or why there is nothing."""
    try:
        return work()
    except ClosedError:
        raise
    except RefusedError as refused:
        return {"kind": "refused", "reason": str(refused), "lasting": refused.lasting}
    except MemoryError:
        return {"kind": "no memory"}
    except Exception as error:  # a mistake of ours that one file brings out must not cost the others
        return {"kind": "failed", "reason": one_line(f"{type(error).__name__}: {error}")}


def _ended(cut: Cut) -> dict[str, Any]:
    turns = [[str(t.start), str(t.end), t.text, t.speaker] for t in cut.turns]
    end = {**asdict(cut.end), "time": str(cut.end.time)}
    return {"kind": "end", "end": end, "turns": turns, "problem": cut.problem}


if __name__ == "__main__":
    main()
