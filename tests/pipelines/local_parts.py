"""Small pipelines of real components, and runs of them."""

# ruff: noqa: PLC0415 - a component's body imports what it needs, for only the body is run

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Output
from kfp.dsl.graph_component import GraphComponent
from rich.console import Console

from pipelines.local import Finished, run_pipeline
from taskmem.errors import UserError
from taskmem.loop.display import StageDisplay

IMAGE = "python:3.11"


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def double(source: Input[Dataset], factor: int, made: Output[Dataset], measured: Output[Metrics]):
    """Writes the folder `made`, and nothing where its metrics would lie."""
    from pathlib import Path

    Path(made.path).mkdir()
    text = Path(source.path).read_text() * factor
    (Path(made.path) / "text.txt").write_text(text)
    measured.log_metric("characters", len(text))


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def count(source: Input[Dataset], times: int) -> int:
    from pathlib import Path

    for done in range(times):
        print(f"::progress {done + 1}/{times}", flush=True)
        print(f"counted {done + 1}", flush=True)
    return len((Path(source.path) / "text.txt").read_text())


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def shell(script: str, made: Output[Dataset]):
    """Runs a script that knows the output's path as $made."""
    import os
    import subprocess

    code = subprocess.run(["sh", "-ec", script], env={**os.environ, "made": made.path}, check=False).returncode
    made.metadata["failed"] = 3 if os.path.exists(f"{made.path}.failed") else 0  # noqa: PTH110
    if code:
        raise SystemExit(code)


@dsl.pipeline(name="two-stages")
def two_stages(text: str, factor: int = 2, times: int = 3) -> int:
    source = dsl.importer(artifact_uri=text, artifact_class=Dataset)
    doubled = double(source=source.output, factor=factor)
    counted = count(source=doubled.outputs["made"], times=times).set_display_name("Count")
    counted.set_retry(1, "60s").set_memory_limit("1G")
    return counted.output


@dsl.pipeline(name="one-script")
def one_script(script: str) -> Dataset:
    return shell(script=script).set_display_name("Script").output


@dsl.pipeline(name="retried-script")
def retried_script(script: str) -> Dataset:
    return shell(script=script).set_display_name("Script").set_retry(1, "1s").output


@dsl.pipeline(name="slowly-retried")
def slowly_retried(script: str) -> Dataset:
    return shell(script=script).set_display_name("Script").set_retry(1, "600s").output


@dsl.pipeline
def in_a_loop(scripts: list):
    with dsl.ParallelFor(scripts) as script:
        shell(script=script).set_display_name("Script")


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def named(item: dict) -> str:
    import time

    time.sleep(0.5)
    return item["name"]


@dsl.pipeline
def of_items(items: list):
    with dsl.ParallelFor(items) as item:
        named(item=item).set_display_name("Named")


@dsl.pipeline
def of_one_item(item: dict):
    named(item=item).set_display_name("Deep")


@dsl.pipeline(name="loop-of-pipelines")
def loop_of_pipelines(items: list, prefixes: list):
    with dsl.ParallelFor(items) as item:
        of_one_item(item=item)
        with dsl.ParallelFor(prefixes) as prefix:
            shell(script=prefix).set_display_name("Script")


@dsl.pipeline(name="nested")
def nested(items: list, scripts: list):
    of_items(items=items)
    in_a_loop(scripts=scripts)


@dsl.pipeline(name="ordered")
def ordered(first: str, second: str):
    before = shell(script=first).set_display_name("First")
    shell(script=second).set_display_name("Second").set_caching_options(False).after(before)


@dataclass
class Run:
    """A run in this process: what it returned or raised, and what it showed."""

    finished: Finished | None
    error: UserError | None
    shown: str

    @property
    def said(self) -> dict[str, str]:
        """What was said of each stage, in the order of the lines."""
        return dict(re.findall(r"^  (\S.*?) +(done|unchanged|failed)\b", self.shown, re.MULTILINE))


def run(pipeline: GraphComponent, out: Path, **arguments: Any) -> Run:
    """Run a pipeline to its end, good or bad, on a console that is no terminal."""
    shown = io.StringIO()
    display = StageDisplay(Console(file=shown, width=80))
    finished, error = None, None
    try:
        finished = run_pipeline(pipeline, arguments, out, display)
    except UserError as raised:
        error = raised
    return Run(finished, error, shown.getvalue())


PROGRAM = """
import json, sys
from pathlib import Path
from rich.console import Console
import local_parts
from pipelines.local import run_pipeline
from taskmem.loop.display import StageDisplay

name, out, arguments = sys.argv[1:]
run_pipeline(getattr(local_parts, name), json.loads(arguments), Path(out), StageDisplay(Console(width=80)))
"""


@contextmanager
def started(
    name: str, out: Path, arguments: Mapping[str, Any], *libraries: Path, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """The same in a process of its own, killed after the block if it still runs; `libraries` go before what is installed."""
    paths = ":".join(str(path) for path in (*libraries, Path(__file__).parent))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, name, str(out), json.dumps(arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes, **options) as process:
        try:
            yield process
        finally:
            process.kill()
