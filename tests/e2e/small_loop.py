"""A loop of a few seconds, run as a person runs it: the installed command in a process of its own."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROFILE = """
name: small
extends: miniature
deviations:
  - reason: "A few streams of a few segments, so that a test takes seconds."
    settings:
      world: {stream_segments: 6, phase_one: 4, deployment: 4, development: 3, held_out: 3}
  - reason: "A few steps of Phase One, enough for two checkpoints."
    settings:
      phase_one: {off_policy_steps: 2, on_policy_steps: 2, validate_every: 2}
  - reason: "A few contexts to mine and a few steps of Phase Two."
    settings:
      mining: {contexts: 16}
      phase_two: {steps: 2}
"""
COMMAND = Path(sys.executable).with_name("taskmem")
SPLITS = ("phase_one", "deployment", "development", "held_out")
ADAPTERS = ("phase_two", "phase_two_other_task", "phase_two_random_pairs")
ARMS = ("base", "task_prompt", "phase_one", *ADAPTERS)
STAGES = (
    *(f"world/{split}" for split in SPLITS),
    *(f"segments/{split}" for split in SPLITS),
    *("phase_one", "development", "deployment", "feedback", "rollouts", "judgements"),
    *(f"preferences/{arm}" for arm in ADAPTERS),
    *(f"adapters/{arm}" for arm in ADAPTERS),
    *(f"arms/{arm}" for arm in ARMS),
)


@dataclass(frozen=True)
class Run:
    """A finished loop: its folder, what it printed, and the command that made it."""

    out: Path
    output: str
    options: tuple[str, ...]


def environment() -> dict[str, str]:
    """One thread: that is deterministic, and leaves the machine to others."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "120"}


def taskmem(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command, with whatever exit code it ends."""
    command = [COMMAND, *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=300)


def loop(out: Path, options: Sequence[str]) -> Run:
    """Run the loop to its end."""
    done = taskmem("loop", *options, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return Run(out, done.stdout, tuple(options))


def loop_killed(out: Path, options: Sequence[str], *when: Path) -> str:
    """Run the loop until one of the files `when` is there, then `kill -9` it; returns what it had printed."""
    with (out.parent / f"{out.name}.log").open("w+") as log:
        process = subprocess.Popen([COMMAND, "loop", *options, "--out", out], env=environment(), stdout=log, stderr=log)
        while not any(path.exists() for path in when):
            assert process.poll() is None, f"the loop ended before there was one of {when}"
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        log.seek(0)
        return log.read()


def begun(out: Path, stage: str) -> Path:
    """What the runner writes when it begins a stage, and removes when it has finished it."""
    return out / ".stages" / f"{stage.replace('/', '.')}.begun"


def marker(out: Path, stage: str) -> Path:
    """What the runner writes when it has finished a stage."""
    return begun(out, stage).with_suffix(".json")


def said(output: str) -> dict[str, str]:
    """What was said of each stage, `done` or `unchanged`, in the order of the lines."""
    return dict(re.findall(r"^ +(\S+) +(done|unchanged)\b", output, re.MULTILINE))


def digests(out: Path, *without: str) -> dict[str, str]:
    """The SHA-256 of every file a run wrote, but those below `without`, the runner's notes and results.json."""
    left_out = (".stages/", "results.json", *without)
    files = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if path.is_file()}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
        if not name.startswith(left_out)
    }


def measured(out: Path) -> dict[str, Any]:
    """results.json without the seconds, and without the commit, which changes when somebody works on this checkout."""
    content: dict[str, Any] = json.loads((out / "results.json").read_text())
    return {name: value for name, value in content.items() if name not in ("seconds", "commit")}
