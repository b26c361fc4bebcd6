"""Runs of small pipelines whose tasks run in an image, and how to ask the engine."""

import io
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local_parts import one_script
from rich.console import Console

from pipelines.local import Finished, run_pipeline
from pipelines.local.containers import Containers
from taskmem.loop.display import StageDisplay

ROOT = Path(__file__).parents[2]


def engine(*words: str) -> str:
    """What podman says."""
    return subprocess.run(["podman", *words], capture_output=True, text=True, check=True).stdout.strip()


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def placed(pipeline: Any, image: str) -> Any:
    """`pipeline` with all its tasks in `image`."""
    for executor in pipeline.pipeline_spec.deployment_spec["executors"].values():
        executor["container"]["image"] = image
    return pipeline


def run(image: str, script: str, out: Path, pipeline: Any = one_script) -> Finished:
    """A shell script in an image; it knows its output's path as $made."""
    display = StageDisplay(Console(file=io.StringIO(), width=80))
    return run_pipeline(placed(pipeline, image), {"script": script}, out, display, attempts=Containers())
