"""What would go wrong later ends vLLM at its start, with the reason."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.serving

START = """
import json, sys
from pathlib import Path
from serving_parts import Engine
Engine(Path(sys.argv[1]), **json.loads(sys.argv[2]))
"""


def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    path = {"PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env={**os.environ, **path}
    )


def test_another_version_of_vllm_is_refused() -> None:
    code = "import vllm; vllm.__version__ = '0.33.1'; from taskmem.vllm_plugin import register; register()"
    run = python(code)
    assert run.returncode != 0
    assert "RuntimeError: taskmem's plug-in was written for vLLM 0.32.0, this is 0.33.1" in run.stderr


def test_vllm_s_own_plug_in_loader_lets_the_refusal_through() -> None:
    run = python("import vllm; vllm.__version__ = '0.33.1'; from vllm.plugins import load_general_plugins as l; l()")
    assert run.returncode != 0
    assert "written for vLLM 0.32.0" in run.stderr


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"steer_layer": 9, "steer_max_norm": 3}, "steer_layer 9: this model has decoder layers 0 to 3"),
        ({"steer_layer": 1}, "steer_max_norm is None"),
    ],
)
def test_senseless_settings_end_it(settings: dict[str, float], reason: str, exported: Path) -> None:
    run = python(START, str(exported), json.dumps({"additional_config": settings}))
    assert run.returncode != 0
    assert reason in run.stderr


def test_a_policy_that_changed_after_its_export_ends_it(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "policy")
    with (tmp_path / "policy" / "chat_template.jinja").open("a") as file:
        file.write(" ")
    run = python(START, str(tmp_path / "policy"), "{}")
    assert run.returncode != 0
    assert "chat_template.jinja: differs from what was exported" in run.stderr
