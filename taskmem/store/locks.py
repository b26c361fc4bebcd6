"""Advisory file locks (flock): they hold across processes and threads of one machine and die with their holder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def acquire(path: Path, *, shared: bool = False, wait: bool = True) -> int:
    """Lock the file `path`, created if needed, and return the descriptor that holds the lock.

    Exclusive unless `shared`. Raises BlockingIOError if the lock is taken and `wait` is false.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def release(descriptor: int) -> None:
    """Give back what `acquire` returned."""
    # Closing alone would keep the lock for as long as a forked child holds a copy of the descriptor.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of `path` for the length of a block, waiting for it."""
    descriptor = acquire(path, shared=shared)
    try:
        yield
    finally:
        release(descriptor)
