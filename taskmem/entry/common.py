"""What every entry does: mistakes become one line, paths and JSON what a stage takes, and numbers come back."""

# ruff: noqa: PLC0415 - an entry imports its stage when it runs, so that an image needs only its own extra

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from taskmem.cluster import IMAGE
from taskmem.config import Profile
from taskmem.errors import UserError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from taskmem.backends import Backends
    from taskmem.lineage.outcome import Outcome

P = ParamSpec("P")
R = TypeVar("R")
Numbers = dict[str, float]


def entry(function: Callable[P, R]) -> Callable[P, R]:
    """Turns a user's mistake into one line and exit code 2."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            print(f"taskmem: {error}", flush=True)
            sys.exit(2)

    return guarded


def opened(profile: Profile, world: str | None, segments: str, out: str) -> "AbstractContextManager[Backends]":
    """The back ends for the length of a stage that writes to `out`; see `taskmem.backends.opened_backends`."""
    from taskmem.backends import opened_backends

    return opened_backends(profile, Path(world) if world else None, Path(segments), Path(out))


def questions_of(split: str) -> Path:
    """The questions of a rendered split."""
    from taskmem.stages.common import QUESTIONS

    return Path(split) / QUESTIONS


def image() -> str:
    """The image that this task runs in, "unknown" outside of one."""
    return os.environ.get(IMAGE, "unknown")


def numbers(values: Mapping[str, Any]) -> Numbers:
    """Those of the values that are numbers."""
    return {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}


def counts(outcomes: "Sequence[Outcome]", stage: str | None = None) -> Numbers:
    """How many environments ended in each status, in `stage` if one is given: what failed before is not its failure."""
    from taskmem.lineage.outcome import counts

    return numbers(counts([o for o in outcomes if stage in (None, o.stage)]))
