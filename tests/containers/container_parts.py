"""Small pipelines whose tasks run in an image, and how to ask the engine."""

import io
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kfp import dsl
from kfp.dsl import Dataset, Output
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


@dsl.component(base_image="unplaced.invalid/none", install_kfp_package=False)
def script(text: str, made: Output[Dataset]):
    """Runs Python in the image; it knows the output's path as `made`."""
    exec(text, {"made": made.path})


@dsl.pipeline(name="in-a-container")
def one_task(text: str) -> Dataset:
    return script(text=text).set_display_name("Script").output


@dsl.pipeline(name="in-a-container")
def retried_task(text: str) -> Dataset:
    return script(text=text).set_display_name("Script").set_retry(1, "1s").output


def placed(pipeline: Any, image: str) -> Any:
    """`pipeline` with all its tasks in `image`."""
    for executor in pipeline.pipeline_spec.deployment_spec["executors"].values():
        executor["container"]["image"] = image
    return pipeline


def run(image: str, text: str, out: Path, pipeline: Any = one_task) -> Finished:
    display = StageDisplay(Console(file=io.StringIO(), width=80))
    return run_pipeline(placed(pipeline, image), {"text": text}, out, display, attempts=Containers())
