"""`taskmem serve policy` around vLLM: how it is started, and a process that is watched, told to stop, and never left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskmem.config import Profile, load_profile
from taskmem.errors import UserError
from taskmem.vllm_plugin.check import serving_python
from taskmem.vllm_plugin.server import Serving, check_serving, run_server, vllm_environment, vllm_words

# a server that is up after a while, has a child of its own, and ends as it is told
SERVER = """
import http.server, json, os, signal, subprocess, sys, threading, time
print("starting on http://127.0.0.1", flush=True)
port, how, note = int(sys.argv[1]), sys.argv[2], sys.argv[3]
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
told = []
def stop(number, _):
    told.append(number)
    open(note, "w").write(json.dumps({"told": told, "pids": [os.getpid(), child.pid]}))
    if how == "obedient":
        os._exit(0)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, stop)
open(note, "w").write(json.dumps({"told": told, "pids": [os.getpid(), child.pid]}))
if how.startswith("exit"):
    os._exit(int(how[4:]))
time.sleep(0.7)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", port), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
if how.startswith("later"):
    time.sleep(1.5)
    os._exit(int(how[5:]))
while True:
    time.sleep(60)
"""
# the watcher as a process of its own, which a test can kill
WATCHER = """
import os, sys
from taskmem.vllm_plugin.server import run_server
url, *words = sys.argv[1:]
sys.exit(run_server(words, os.environ, url, lambda: print("ready", flush=True)))
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def words(port: int, tmp_path: Path) -> Callable[[str], list[str]]:
    return lambda how: [sys.executable, "-c", SERVER, str(port), how, str(tmp_path / "note")]


@pytest.fixture
def watcher(words: Any, port: int) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []

    def start(how: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WATCHER, f"http://127.0.0.1:{port}", *words(how)]
        path = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        running.append(subprocess.Popen(command, env=path, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def noted(tmp_path: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = json.loads((tmp_path / "note").read_text())
    return found


def gone(pids: list[int], seconds: float = 10.0) -> bool:
    """Whether none of the processes lives any more, a dead one that nobody waited for aside."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        states = [stat.read_text().rpartition(")")[2].split()[0] for stat in stats(pids)]
        if not set(states) - {"Z"}:
            return True
        time.sleep(0.05)
    return False


def stats(pids: list[int]) -> list[Path]:
    return [path for pid in pids if (path := Path(f"/proc/{pid}/stat")).exists()]


@pytest.mark.parametrize(("how", "code"), [("exit3", 3), ("exit0", 1), ("later4", 4), ("later0", 1)])
def test_an_end_that_nobody_asked_for_is_told_by_its_code(
    how: str, code: int, words: Any, port: int, tmp_path: Path
) -> None:
    ready: list[bool] = []
    assert run_server(words(how), os.environ, f"http://127.0.0.1:{port}", lambda: ready.append(True)) == code
    assert ready == [True] * how.startswith("later")
    assert gone(noted(tmp_path)["pids"])


@pytest.mark.parametrize(
    ("how", "number", "code"),
    [
        ("obedient", signal.SIGTERM, 0),
        ("obedient", signal.SIGINT, 0),
        ("by signal", signal.SIGTERM, 143),
        ("by signal", signal.SIGHUP, 129),
    ],
)
def test_a_signal_is_passed_on_once_it_is_ready(
    how: str, number: int, code: int, watcher: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = watcher(how)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(10) == code
    found = noted(tmp_path)
    assert found["told"] == [number]
    assert gone(found["pids"])


def test_a_signal_before_it_is_ready_ends_it_as_well(watcher: Any, tmp_path: Path) -> None:
    process = watcher("by signal")
    while not (tmp_path / "note").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=10)[0] == ""
    assert process.returncode == 143
    assert gone(noted(tmp_path)["pids"])


def test_a_server_that_was_killed_leaves_nothing_behind(watcher: Any, tmp_path: Path) -> None:
    process = watcher("obedient")
    assert process.stdout.readline() == "ready\n"
    pids = noted(tmp_path)["pids"]
    os.kill(pids[0], signal.SIGKILL)
    assert process.wait(10) == 137
    assert gone(pids)


def test_a_watcher_that_was_killed_takes_its_server_along(watcher: Any, tmp_path: Path) -> None:
    process = watcher("obedient")
    assert process.stdout.readline() == "ready\n"
    process.kill()
    assert gone(noted(tmp_path)["pids"][:1])
    assert noted(tmp_path)["told"] == [signal.SIGTERM]
    os.kill(noted(tmp_path)["pids"][1], signal.SIGKILL)


def value_after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def serving(policy: Path, **changes: Any) -> Serving:
    given = {"host": "127.0.0.1", "port": 8000, "layer": 1, "max_norm": 3.0, "slots": 64, "kept": 1024, **changes}
    return Serving(policy=policy, **given)


def test_vllm_is_started_for_adapters_the_shared_draw_and_the_clips_as_they_are(profile: Profile) -> None:
    words = vllm_words(serving(Path("p"), layer=2, more=("--dtype", "bfloat16")), profile, "f" * 64)
    assert words[0] == "p" and words[-2:] == ["--dtype", "bfloat16"]
    assert "--enable-lora" in words
    named = words.index("--served-model-name")
    assert words[named + 1 : named + 3] == ["policy", f"sha256:{'f' * 64}"]
    assert (value_after(words, "--max-loras"), value_after(words, "--max-cpu-loras")) == ("64", "1024")
    assert (value_after(words, "--lora-target-modules"), value_after(words, "--max-lora-rank")) == ("steer", "1")
    assert value_after(words, "--logits-processors") == "taskmem.vllm_plugin.draw:SharedDraw"
    settings = json.loads(value_after(words, "--additional-config"))
    assert settings == {"steer_layer": 2, "steer_max_norm": 3.0}
    assert json.loads(value_after(words, "--limit-mm-per-prompt")) == {"image": 0, "video": 3}
    assert json.loads(value_after(words, "--mm-processor-kwargs")) == {"do_sample_frames": False}
    assert "--max-model-len" not in words


def test_a_profile_that_bounds_its_clips_bounds_the_context() -> None:
    words = vllm_words(serving(Path("p")), load_profile("qwen3-vl-30b"), "f" * 64)
    assert value_after(words, "--max-model-len") == str(5 * 4096 + 4096 + 6700)
    assert json.loads(value_after(words, "--media-io-kwargs"))["video"] == {
        "num_frames": -1,
        "video_backend": "opencv",
    }


def test_nothing_in_the_environment_takes_the_plug_in_away() -> None:
    given = {"VLLM_USE_V2_MODEL_RUNNER": "1", "VLLM_PLUGINS": "other", "VLLM_CPU_KVCACHE_SPACE": "8", "MINE": "1"}
    made = vllm_environment(given)
    assert (made["VLLM_USE_V2_MODEL_RUNNER"], made["VLLM_ALLOW_RUNTIME_LORA_UPDATING"]) == ("0", "1")
    assert (made["VLLM_PLUGINS"], made["VLLM_CPU_KVCACHE_SPACE"], made["MINE"]) == ("other,taskmem", "8", "1")
    assert "VLLM_PLUGINS" not in vllm_environment({})


def test_a_client_here_finds_what_is_served_everywhere() -> None:
    assert serving(Path("p"), host="0.0.0.0").url == "http://127.0.0.1:8000"
    assert serving(Path("p"), host="::1").url == "http://[::1]:8000"


def test_a_folder_that_was_not_exported_is_refused(base: Path, port: int) -> None:
    with pytest.raises(UserError, match=r"export\.json: no such file; write the folder with `taskmem export`"):
        check_serving(serving(base, port=port))


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_the_policy_has_not_is_refused(layer: int, exported: Path, port: int) -> None:
    with pytest.raises(UserError, match=f"--layer {layer}: .* has decoder layers 0 to 3"):
        check_serving(serving(exported, layer=layer, port=port))


def test_an_address_that_is_taken_is_refused(exported: Path, port: int) -> None:
    assert check_serving(serving(exported, port=port)).layers == 4
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port}: cannot be served on"):
            check_serving(serving(exported, port=port))
    with pytest.raises(UserError, match="cannot be served on"):
        check_serving(serving(exported, host="no such host", port=port))


def test_an_environment_or_its_interpreter_may_be_named(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.touch()
    assert serving_python(tmp_path) == serving_python(python) == python


def test_the_command_says_in_one_line_what_is_wrong(base: Path, exported: Path, tmp_path: Path, port: int) -> None:
    def run(*more: object) -> tuple[int, str]:
        command = [sys.executable, "-m", "pipelines.cli", "serve", "policy", *map(str, more), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
        return done.returncode, done.stderr

    for words, said in (((base,), "no such file; write the folder"), ((exported, "--layer", 9), "--layer 9")):
        code, told = run(*words)
        assert (code, said in told, told.count("\n")) == (2, True, 1)
    code, told = run(exported, "--python", tmp_path)
    assert (code, "make serving-setup" in told) == (2, True)
