"""Placed pipelines from the outside: compiled in other processes, and run without a cluster."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COMPILE = """
import sys
from kfp import compiler
from toy_pipelines import every_stage, nested
from components.images import load_images
from taskmem.config import load_profile
profile, images = load_profile("qwen3-vl-30b"), load_images(None)
for pipeline in (every_stage(profile, images), nested(profile, images)):
    compiler.Compiler().compile(pipeline, f"{sys.argv[1]}/{pipeline.name}.yaml")
"""
RUN = """
import sys
from kfp import dsl, local
from toy_pipelines import every_stage, nested
from components.images import load_images
from taskmem.config import load_profile
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1])
profile, images = load_profile("qwen3-vl-30b"), load_images(None)
every_stage(profile, images)()
nested(profile, images)()
"""


def python(code: str, folder: Path, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    path = os.pathsep.join((str(HERE), str(ROOT)))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": hash_seed, "TMPDIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_compiled_in_another_process_a_pipeline_is_the_same_to_the_byte(tmp_path: Path) -> None:
    folders = [tmp_path / seed for seed in ("1", "2", "3")]
    for folder in folders:
        done = python(COMPILE, folder, hash_seed=folder.name)
        assert done.returncode == 0, done.stderr
    for name in ("every-stage.yaml", "nested.yaml"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1


def test_a_placed_pipeline_runs_without_a_cluster(tmp_path: Path) -> None:
    done = python(RUN, tmp_path / "root")
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = list((tmp_path / "root").rglob("executor_output.json"))
    # eleven stages, then two tasks, one in a loop of two, and two nested in it
    assert len(outputs) == 11 + 2 + 2 + 2 * 2
