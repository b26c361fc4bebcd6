"""One attempt: its log, its progress, its environment, and its death."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.local.attempt import Ended, Transcript, stage_environment
from pipelines.local.process import Processes, with_this_interpreter
from taskmem.progress import silent


def attempt(script: str, log: Path, number: int = 1) -> tuple[Ended, list[tuple[int, int]]]:
    seen: list[tuple[int, int]] = []
    transcript = Transcript(log, number, lambda *at: seen.append(at))
    ended = Processes().run(["sh", "-c", script], dict(os.environ), transcript)
    return ended, seen


def gone(process: int) -> bool:
    """Whether the process has ended; a zombie, which waits for its parent to notice, has."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition: Callable[[], object], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_what_it_says_on_either_channel_is_in_the_log_and_progress_is_not(tmp_path: Path) -> None:
    log = tmp_path / "stage.log"
    ended, seen = attempt("echo one; echo two >&2; echo ::progress 3/7; echo ' ::progress 1/2'; printf three", log)
    assert log.read_text() == "one\ntwo\n ::progress 1/2\nthree"
    assert seen == [(3, 7)]
    assert ended == Ended(0, ("one", "two", " ::progress 1/2", "three"))


def test_the_log_can_be_followed_while_it_runs(tmp_path: Path) -> None:
    log, go = tmp_path / "stage.log", tmp_path / "go"
    script = f"echo one; while [ ! -e {go} ]; do sleep 0.01; done"
    thread = threading.Thread(target=attempt, args=(script, log))
    thread.start()
    wait_until(lambda: log.exists() and log.read_text() == "one\n")
    go.touch()
    thread.join()


def test_a_further_attempt_goes_on_in_the_same_log(tmp_path: Path) -> None:
    log = tmp_path / "stage.log"
    attempt("echo old", log)
    attempt("echo one", log)
    attempt("echo two", log, 2)
    assert log.read_text() == "one\n--- attempt 2 ---\ntwo\n"


def test_the_last_20_lines_are_kept_without_what_kfp_says_before_the_stage(tmp_path: Path) -> None:
    script = """
        echo '[KFP Executor 2026-01-01 INFO]: Looking for component'
        echo '[KFP Executor 2026-01-01 INFO]: Got executor_input:'
        printf '{\\n  "inputs": {\\n  }\\n}\\n'
        seq 1 25
    """
    ended, _ = attempt(script, tmp_path / "stage.log")
    assert ended.lines == tuple(str(n) for n in range(6, 26))
    assert "inputs" not in attempt(script.replace("1 25", "1 3"), tmp_path / "stage.log")[0].lines


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 3", "exit status 3"),
        ("kill -9 $$", "killed by SIGKILL"),
        ("sh -c 'kill -11 $$'; exit $?", "killed by SIGSEGV"),
        ("echo taskmem: a.jsonl:3: no field x; exit 2", "a.jsonl:3: no field x"),
        ("echo taskmem: a.jsonl:3: no field x; exit 3", "exit status 3"),
        ("exit 2", "exit status 2"),
        ("exit 255", "exit status 255"),
    ],
)
def test_the_reason_of_a_failure_is_told_in_a_few_words(tmp_path: Path, script: str, reason: str) -> None:
    assert attempt(script, tmp_path / "stage.log")[0].reason == reason


def test_bytes_that_are_no_text_do_not_stop_it(tmp_path: Path) -> None:
    ended, _ = attempt(r"printf '\377\376\n'; echo after", tmp_path / "stage.log")
    assert ended.lines[1] == "after"


def test_what_it_left_running_dies_with_it(tmp_path: Path) -> None:
    start = time.monotonic()
    ended, _ = attempt(f"sleep 60 & echo $! > {tmp_path / 'pid'}", tmp_path / "stage.log")
    assert ended.code == 0
    assert time.monotonic() - start < 30
    wait_until(lambda: gone(int((tmp_path / "pid").read_text())))


def test_stop_kills_what_runs_and_lets_nothing_begin(tmp_path: Path) -> None:
    processes, ended = Processes(), []

    def run(script: str) -> None:
        transcript = Transcript(tmp_path / "stage.log", 1, silent)
        ended.append(processes.run(["sh", "-c", script], dict(os.environ), transcript))

    thread = threading.Thread(target=run, args=(f"echo $$ > {tmp_path / 'pid'}; sleep 60; true",))
    thread.start()
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    processes.stop()
    thread.join(20)
    run(f"touch {tmp_path / 'later'}")
    assert [one.reason for one in ended] == ["killed by SIGKILL", "killed by SIGKILL"]
    assert not (tmp_path / "later").exists()


def test_kill_9_of_the_runner_leaves_no_process_of_the_stage(tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from pipelines.local.attempt import Transcript
from pipelines.local.process import Processes
script = f'sh -c "echo \\\\$\\\\$ > {sys.argv[1]}/inner; sleep 60; true"; true'
Processes().run(["sh", "-c", script], dict(os.environ), Transcript(Path(sys.argv[1], "log"), 1, print))
"""
    inner = tmp_path / "inner"
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) as runner:
        wait_until(lambda: inner.exists() and inner.read_text())
        assert not gone(int(inner.read_text()))
        runner.kill()
    wait_until(lambda: gone(int(inner.read_text())))


def test_an_attempt_whose_log_cannot_be_written_is_killed(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(FileNotFoundError):
        attempt("sleep 60", tmp_path / "missing" / "stage.log")
    assert time.monotonic() - start < 30


def test_it_has_one_thread_unless_the_user_or_the_component_says_otherwise(tmp_path: Path) -> None:
    environment = stage_environment({}, {"A": "1"}, tmp_path)
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "TMPDIR", "A")
    assert [environment[name] for name in names] == ["1", "PASSIVE", str(tmp_path), "1"]
    user = {"OMP_NUM_THREADS": "4"}
    assert stage_environment(user, {}, tmp_path)["OMP_NUM_THREADS"] == "4"
    assert stage_environment(user, {"OMP_NUM_THREADS": "2"}, tmp_path)["OMP_NUM_THREADS"] == "2"


def test_only_the_script_of_a_component_gets_this_interpreter() -> None:
    script = 'python3 -m kfp "$program_path/ephemeral_component.py" "$@"'
    command = with_this_interpreter(["sh", "-ec", script, "print('python3')", "--input", "/opt/python3/data"])
    assert command[2].startswith(f"{sys.executable} -m kfp")
    assert command[3:] == ["print('python3')", "--input", "/opt/python3/data"]
