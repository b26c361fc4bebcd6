"""A stage in a container: what it may do there, how its end is told, and that nothing of it outlives the run."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from container_parts import ROOT, engine, run, wait_until
from local_parts import retried_script

from components.images import Images
from pipelines.local import StageFailedError
from pipelines.local.containers import Containers, lines
from taskmem.cluster import USER
from taskmem.errors import UserError

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_container_is_left")]

LOOK = """python3 - <<'END'
import json, os, pathlib
def may(path):
    try: pathlib.Path(path).write_text("x")
    except OSError as error: return error.strerror
status = pathlib.Path("/proc/self/status").read_text()
caps = next(line for line in status.splitlines() if line.startswith("CapEff")).split()[1]
seen = {"user": os.getuid(), "capabilities": int(caps, 16), "new privileges": "NoNewPrivs:\\t0" in status,
        "written": {path: may(path) for path in ("/opt/taskmem/x", "/etc/x", "/x", "/tmp/x")},
        "key": os.environ.get("AWS_ACCESS_KEY_ID"), "other": os.environ.get("UNTOLD"), "home": os.environ["HOME"]}
pathlib.Path(os.environ["made"]).write_text(json.dumps(seen))
END
"""


def test_it_runs_as_in_a_cluster(images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "told")
    monkeypatch.setenv("UNTOLD", "secret")
    seen = json.loads(Path(run(images.data, LOOK, tmp_path / "out").outputs["Output"].path).read_text())
    assert seen.pop("written") == {
        "/opt/taskmem/x": "Read-only file system",
        "/etc/x": "Read-only file system",
        "/x": "Read-only file system",
        "/tmp/x": None,
    }
    user = os.getuid() or USER
    assert seen == {
        "user": user,
        "capabilities": 0,
        "new privileges": False,
        "key": "told",
        "other": None,
        "home": "/tmp",
    }


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 3", "exit status 3"),
        ("kill -KILL $PPID", "killed by SIGKILL"),
        ("python3 -c 'raise KeyError(1234)'", "exit status 1"),
    ],
)
def test_one_that_fails_is_a_failure_with_its_log(images: Images, tmp_path: Path, script: str, reason: str) -> None:
    with pytest.raises(StageFailedError, match=f"Script: {reason}") as failed:
        run(images.data, f"echo before it\n{script}", tmp_path / "out")
    said = failed.value.log.read_text()
    assert "before it\n" in said
    assert ("KeyError: 1234" in said) == ("KeyError" in script)


def test_one_that_ends_at_once_is_told_as_it_ended(images: Images, tmp_path: Path) -> None:
    for number in range(5):
        with pytest.raises(StageFailedError, match="exit status 7"):
            run(images.data, "exit 7", tmp_path / str(number))


def test_a_mistake_of_the_users_is_not_tried_again_and_anything_else_is(images: Images, tmp_path: Path) -> None:
    mistake = "echo 'taskmem: clips/3.mp4: no video' >&2; exit 2"
    with pytest.raises(StageFailedError, match=r"Script: clips/3\.mp4: no video"):
        run(images.data, mistake, tmp_path / "mistake", retried_script)
    mark = tmp_path / "again" / "store" / "mark"
    once = f"if [ -e {mark} ]; then touch $made; else touch {mark}; exit 1; fi"
    assert run(images.data, once, tmp_path / "again", retried_script).stages["Script"].unchanged is False
    assert "--- attempt 2 ---" in (tmp_path / "again" / "logs" / "Script.log").read_text()


def test_a_folder_that_stages_cannot_write_to_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder; .*: create it"):
        Containers(writes=[tmp_path / "missing"])
    theirs = tmp_path / "theirs"
    theirs.mkdir(0o755)
    if os.geteuid() == 0:
        with pytest.raises(UserError, match="not writable by the images' user; chown -R 1000:1000 it"):
            Containers(writes=[theirs])
        assert theirs.stat().st_uid == 0


PROGRAM = """
import sys
from pathlib import Path
from container_parts import run
run(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
"""
WAITS = "touch $made.begun; sleep 600"


@pytest.fixture
def runner(images: Images, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run of another process whose stage waits for ever."""
    given = [images.data, WAITS, str(tmp_path / "out")]
    path = os.pathsep.join([str(Path(__file__).parent), str(ROOT / "tests" / "pipelines")])
    with subprocess.Popen([sys.executable, "-c", PROGRAM, *given], env={**os.environ, "PYTHONPATH": path}) as process:
        wait_until(lambda: [*tmp_path.rglob("*.begun")])
        yield process
        process.kill()


def test_interrupted_it_takes_its_container_along(runner: subprocess.Popen[bytes]) -> None:
    assert engine("ps", "--quiet")
    runner.send_signal(signal.SIGINT)
    runner.wait(60)
    assert engine("ps", "--all", "--quiet") == ""


def test_what_a_killed_run_left_is_ended_by_the_next_one(
    runner: subprocess.Popen[bytes], images: Images, tmp_path: Path
) -> None:
    runner.kill()
    runner.wait(60)
    left = engine("ps", "--quiet")
    assert left
    run(images.data, "touch $made", tmp_path / "elsewhere")
    assert engine("ps", "--quiet") == left
    run(images.data, "touch $made", tmp_path / "out")


def test_an_image_that_is_nowhere_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"localhost/nothing:here: not here and not to be pulled .*; make images"):
        run("localhost/nothing:here", "", tmp_path / "out")


def test_an_engine_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(UserError, match=r"no container engine answers at unix://.*none\.sock .*; start docker, or "):
        Containers()


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_lines_are_whole_whatever_pieces_they_come_in(size: int) -> None:
    said = "één\ntwo\r\n::progress 1/2\nlast".encode()
    pieces = (said[at : at + size] for at in range(0, len(said), size))
    assert [*lines(pieces)] == ["één\n", "two\r\n", "::progress 1/2\n", "last\n"]
