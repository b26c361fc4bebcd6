"""`taskmem serve policy` on real vLLM: it says when it is ready, and however it ends, it ends whole."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from plugin_parts import BOUND, LAYER
from service_parts import free_port
from test_server_process import gone

pytestmark = [pytest.mark.serving, pytest.mark.slow]


def below(pid: int) -> dict[int, str]:
    """The processes that `pid` started and their children's, by id, with what they were started with."""
    found: dict[int, str] = {}
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            words = Path(f"/proc/{child}/cmdline").read_text(errors="replace").replace("\0", " ")
            found |= {child: words, **below(child)}
    return found


@pytest.mark.parametrize(
    ("victim", "number", "code"),
    [
        ("command", signal.SIGTERM, (0,)),
        ("command", signal.SIGINT, (0, 130)),
        ("command", signal.SIGKILL, (-signal.SIGKILL,)),
        ("server", signal.SIGKILL, (137,)),
        ("engine", signal.SIGKILL, (1, 137, 143)),
    ],
)
def test_it_ends_whole_whoever_is_told_or_killed(
    victim: str, number: int, code: tuple[int, ...], exported: Path, tmp_path: Path
) -> None:
    from serving_parts import QUIET  # noqa: PLC0415 - only where vLLM is

    port = free_port()
    ours = ["--port", str(port), "--layer", str(LAYER), "--max-norm", str(BOUND), "--slots", "2"]
    words = [*ours, "--", "--enforce-eager"]
    command = [sys.executable, "-m", "pipelines.cli", "serve", "policy", str(exported), *words]
    log = tmp_path / "log"
    environment = {**os.environ, **QUIET, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("w") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    said = next((line for line in lines if "http://" in line), "")
    assert f"http://127.0.0.1:{port}/v1: policy" in said, log.read_text()[-3000:]
    running = below(process.pid)
    (server,) = [pid for pid, started in running.items() if "vllm.entrypoints.cli.main" in started]
    engines = [pid for pid in below(server) if "EngineCore" in name_of(pid)]
    assert len(engines) == 1
    os.kill({"command": process.pid, "server": server, "engine": engines[0]}[victim], number)
    process.stdout.read()
    assert process.wait(120) in code, log.read_text()[-3000:]
    assert gone(list(running), 60)


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text(errors="replace") + Path(f"/proc/{pid}/comm").read_text()


def test_it_says_why_vllm_did_not_start(exported: Path, tmp_path: Path) -> None:
    words = ["serve", "policy", str(exported), "--port", str(free_port()), "--", "--max-model-len", "-5"]
    command = [sys.executable, "-m", "pipelines.cli", *words]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode not in (0, 130)
    assert "max_model_len" in done.stderr + done.stdout or "max-model-len" in done.stderr + done.stdout
    assert "ready" not in done.stdout and time.monotonic() - start < 300
