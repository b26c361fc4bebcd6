"""Kubeflow's local runner without its noise."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from kfp.local import logging_utils

COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@contextmanager
def replaced(target: Any, **values: Any) -> Iterator[None]:
    """Give attributes of `target` other values for the length of a block."""
    before = {name: getattr(target, name) for name in values}
    try:
        for name, value in values.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send what kfp logs and warns of, in whatever thread, to the file `log` instead of the terminal.

    kfp swaps the root logger's handlers and the built-in `print` around every task, without a lock: two loop iterations at
    once can leave either swapped for good. So its three helpers do nothing here, and the root logger has one handler, ours.
    """
    handler = logging.FileHandler(log, mode="w", encoding="utf-8")
    handler.setFormatter(_Plain("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def to_log(message: Warning | str, category: type[Warning], *_place: Any, **_more: Any) -> None:
        root.warning("%s: %s", category.__name__, message)

    helpers = {
        "local_logger_context": nullcontext,
        "indented_print": nullcontext,
        "print_horizontal_line": lambda: None,
    }
    try:
        root.handlers[:] = [handler]
        root.setLevel(logging.INFO)
        with replaced(logging_utils, **helpers), replaced(logging, raiseExceptions=False), warnings.catch_warnings():
            warnings.showwarning = to_log
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        handler.close()


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return COLOURS.sub("", super().format(record))
