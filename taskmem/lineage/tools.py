"""Runs git and dvc: no shell, bounded in time, and a failure in one line that has no credentials in it."""

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from taskmem.errors import UserError
from taskmem.records import one_line

GRACE = 5.0  # seconds between being asked to end and being killed
_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s@]*@")
_TELLING = ("ERROR:", "fatal:", "error:")


@dataclass(frozen=True)
class Said:
    """How a tool ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """Its own words for what went wrong, in one line."""
        lines = [line.strip() for line in [*self.out.splitlines(), *self.err.splitlines()] if line.strip()]
        telling = [line for line in lines if line.startswith(_TELLING)]
        said = (telling or lines[-1:] or [f"exit status {self.code}"])[0]
        for word in _TELLING:
            said = said.removeprefix(word)
        return one_line(without_userinfo(said.strip()).rstrip("."))


def without_userinfo(text: str) -> str:
    """`text` with the user and password of every URL in it removed."""
    return _USERINFO.sub(r"\1", text)


def run_tool(
    command: Sequence[str],
    folder: Path,
    variables: Mapping[str, str],
    seconds: float,
    given: str = "",
    without: Sequence[str] = (),
) -> Said:
    """Run `command` in `folder` to its end with `given` as its input; what it says goes to no log.

    The environment is this process's, with `variables` and without those whose names begin as one of `without`. UserError if
    the tool is not installed or takes longer than `seconds`.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(tuple(without))} | dict(variables)
    # files, not pipes: a helper that a killed tool leaves behind would hold a pipe open
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        told.write(given.encode())
        told.seek(0)
        try:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdin=told, stdout=out, stderr=err)
        except FileNotFoundError:
            raise UserError(f"{command[0]}: not installed, and lineage is recorded with it; install it") from None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise UserError(f"{_named(command)}: not done after {seconds:g} s; try again when it is there") from None
        finally:
            _end(process)
        return Said(code, _text(out), _text(err))


def _named(command: Sequence[str]) -> str:
    """The tool and its verb."""
    words = [Path(word).name for word in command if not word.startswith("-")]
    return one_line(" ".join(words[:2]))


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        # asked first, for git then ends its own helpers
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _text(handle: IO[bytes]) -> str:
    handle.seek(0)
    return handle.read().decode(errors="replace")
