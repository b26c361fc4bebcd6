"""Many calls at once, results in order."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def in_order(function: Callable[[A], B], items: Sequence[A], workers: int) -> Iterator[B]:
    """`function` of every item, in order, computed by `workers` threads.

    The first exception ends it: what has not begun is dropped, what is in flight is finished, for it is being paid.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="taskmem-calls")
    try:
        for future in [pool.submit(function, item) for item in items]:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
