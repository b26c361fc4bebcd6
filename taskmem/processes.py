"""Processes that we start: none outlives us, and whether one that serves is up."""

import ctypes
import signal
import urllib.request

SET_PARENT_DEATH_SIGNAL = 1  # prctl's number for it


def end_with_parent() -> None:
    """For `preexec_fn`: the new process gets SIGTERM when the one that started it ends, however that ends. Linux only."""
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def answers(url: str, seconds: float = 5.0) -> bool:
    """Whether `url`, on this machine, answers with HTTP status 200 within `seconds`."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=seconds) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False
