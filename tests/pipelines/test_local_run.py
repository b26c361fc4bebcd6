"""Whole pipelines: what is shown, what a failure says, and what an interruption or a kill costs."""

import builtins
import logging
import re
import signal
import subprocess
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
from kfp.local import config, logging_utils, subprocess_task_handler
from kfp.local.orchestrator import task_executor
from local_parts import in_a_loop, loop_of_pipelines, nested, ordered, retried_script, run, started, two_stages

from pipelines.local import StageFailedError
from taskmem.errors import UserError

MAKE = 'touch "$made"'


def wait_for(*paths: Path, process: subprocess.Popen[str] | None = None) -> None:
    until = time.monotonic() + 30
    while not all(path.exists() for path in paths):
        assert time.monotonic() < until
        assert process is None or process.poll() is None
        time.sleep(0.01)


def running(mark: Path) -> bool:
    """Whether any process has `mark` in its command line."""
    for commands in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(mark).encode() in commands.read_bytes():
                return True
    return False


def test_a_finished_run_has_outputs_seconds_artifacts_and_one_line_a_stage(text: Path, out: Path) -> None:
    result = run(two_stages, out, text=str(text), times=2)
    assert result.finished is not None
    assert result.finished.outputs == {"Output": 10}
    assert list(result.finished.seconds) == ["double", "Count"]
    assert all(0 < seconds < 60 for seconds in result.finished.seconds.values())
    doubled = result.finished.stages["double"].outputs["made"]
    assert (Path(doubled.path) / "text.txt").read_text() == "hellohello"
    assert re.fullmatch(rf"  logs: {out}/logs\n  double +done +\d\.\d s\n  Count +done +\d\.\d s\n", result.shown)


def test_a_stage_s_log_has_what_it_printed_and_not_its_progress(text: Path, out: Path) -> None:
    run(two_stages, out, text=str(text), times=2)
    log = (out / "logs" / "Count.log").read_text()
    assert "counted 1\ncounted 2\n" in log
    assert "::progress" not in log


def test_nothing_of_kfp_reaches_the_terminal_and_its_log_is_in_a_file(text: Path, out: Path) -> None:
    with started("two_stages", out, {"text": str(text)}) as process:
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")
    assert [line.split()[0] for line in stdout.splitlines()] == ["logs:", "double", "Count"]
    log = (out / "logs" / "kubeflow.log").read_text()
    assert "Running pipeline: 'two-stages'" in log
    assert "UserWarning: Task 'count': settings" in log
    assert "\x1b" not in log


def test_after_a_run_kfp_the_loggers_and_print_are_as_before(out: Path) -> None:
    def state() -> list[object]:
        helpers = (logging_utils.local_logger_context, logging_utils.indented_print, builtins.print)
        seams = (task_executor.execute_single_task, subprocess_task_handler.SubprocessTaskHandler)
        root = logging.getLogger()
        return [
            *helpers,
            *seams,
            config.LocalExecutionConfig.instance,
            root.handlers[:],
            root.level,
            warnings.showwarning,
        ]

    before = state()
    assert run(in_a_loop, out, scripts=[MAKE, "exit 3"]).finished is None
    assert state() == before


def test_a_run_leaves_nothing_but_artifacts_cache_and_logs(text: Path, out: Path) -> None:
    run(two_stages, out, text=str(text))
    assert sorted(path.name for path in out.iterdir()) == [".lock", ".pipeline-runs", "cache", "logs", "runs", "store"]
    run(two_stages, out, text=str(text))
    assert {path.name for path in (out / "runs").rglob("*") if path.is_file()} == {"text.txt"}


def test_the_iterations_of_a_loop_run_at_the_same_time_under_their_items_names(tmp_path: Path, out: Path) -> None:
    # each waits for the other
    scripts = [
        f'touch "$made" {tmp_path}/{mine}; while [ ! -e {tmp_path}/{other} ]; do sleep 0.01; done'
        for mine, other in (("a", "b"), ("b", "a"))
    ]
    result = run(nested, out, items=[{"name": "env7"}, {"name": "env8"}], scripts=scripts)
    assert result.error is None, result.shown
    assert set(result.said.items()) == {(name, "done") for name in ("Named/env7", "Named/env8", "Script/1", "Script/2")}
    assert run(nested, out, items=[{"name": "env8"}], scripts=[]).said == {"Named/env8": "unchanged"}


def test_a_pipeline_or_a_loop_within_a_loop_is_named_after_all_items(out: Path) -> None:
    result = run(loop_of_pipelines, out, items=[{"name": "a"}, {"name": "b"}], prefixes=[MAKE, ": 2; " + MAKE])
    assert result.finished is not None, result.shown
    scripts = {f"Script/{item}/{script}" for item in "ab" for script in (MAKE, ": 2; " + MAKE)}
    assert set(result.finished.seconds) == {"Deep/a", "Deep/b", *scripts}


def test_a_failure_names_the_stage_its_reason_its_last_lines_and_its_log(out: Path) -> None:
    result = run(ordered, out, first="echo what went wrong >&2; exit 3", second=MAKE)
    log = out / "logs" / "First.log"
    assert isinstance(result.error, StageFailedError)
    assert (result.error.stage, result.error.log) == ("First", log)
    assert str(result.error) == f"First: exit status 3; its log is {log}"
    assert result.said == {"First": "failed"}
    assert "\n    what went wrong\n" in result.shown
    assert result.shown.endswith(f"\n    log: {log}\n")
    assert "what went wrong" in log.read_text()


def test_at_most_15_lines_of_a_failed_stage_are_shown(out: Path) -> None:
    shown = run(ordered, out, first="seq 101 130; exit 3", second=MAKE).shown
    assert [int(line) for line in re.findall(r"^    (1\d\d)$", shown, re.MULTILINE)] == list(range(116, 131))


def test_other_iterations_go_on_when_one_fails(out: Path) -> None:
    result = run(in_a_loop, out, scripts=["exit 3", MAKE, f"sleep 0.3; sleep 0.1; {MAKE}"])
    assert result.said == {"Script/exit 3": "failed", "Script/3": "done", 'Script/touch "$made"': "done"}
    assert isinstance(result.error, StageFailedError)
    assert result.error.stage == "Script/exit 3"


def test_a_failed_stage_is_tried_again_from_nothing_and_both_attempts_are_told(tmp_path: Path, out: Path) -> None:
    once = tmp_path / "once"
    script = f'[ ! -e "$made" ]; {MAKE}; echo tried; [ -e {once} ] || {{ touch {once}; exit 3; }}'
    result = run(retried_script, out, script=script)
    assert result.finished is not None, result.shown
    assert re.search(r"Script +failed +\d\.\d s\n    exit status 3, again in 1 s\n", result.shown)
    assert re.search(r"Script +done +\d\.\d s  attempt 2\n", result.shown)
    assert (out / "logs" / "Script.log").read_text().count("\ntried\n") == 2


def test_the_last_attempt_says_that_there_were_others(out: Path) -> None:
    error = run(retried_script, out, script="kill -9 $PPID; sleep 5").error
    assert isinstance(error, StageFailedError)
    assert error.reason == "killed by SIGKILL, attempt 2 of 2"


def test_a_user_s_mistake_is_told_in_the_stage_s_words_and_not_tried_again(tmp_path: Path, out: Path) -> None:
    script = f"echo x >> {tmp_path}/tries; echo 'taskmem: a.jsonl:3: no field x; write it again'; exit 2"
    result = run(retried_script, out, script=script)
    assert str(result.error).startswith("Script: a.jsonl:3: no field x; write it again;")
    assert (tmp_path / "tries").read_text() == "x\n"
    assert "again in" not in result.shown
    assert "Traceback" not in result.shown


def test_a_missing_file_to_import_is_the_importer_s_failure(text: Path, out: Path) -> None:
    result = run(two_stages, out, text=str(text.with_name("missing.txt")))
    assert isinstance(result.error, StageFailedError)
    assert result.error.stage == "importer"
    assert "missing.txt is not there to be imported" in str(result.error)


def test_killed_with_9_it_leaves_no_process_and_goes_on_with_what_is_missing(tmp_path: Path, out: Path) -> None:
    begun, go = tmp_path / "begun", tmp_path / "go"
    second = f"{MAKE}; touch {begun}; while [ ! -e {go} ]; do sleep 0.05; done"
    arguments = {"first": MAKE, "second": second}
    with started("ordered", out, arguments) as process:
        wait_for(begun, process=process)
        assert running(begun)
        process.send_signal(signal.SIGKILL)
        process.wait()
    until = time.monotonic() + 20
    while running(begun):
        assert time.monotonic() < until
        time.sleep(0.05)
    go.touch()
    result = run(ordered, out, **arguments)
    assert result.said == {"First": "unchanged", "Second": "done"}
    assert len(list((out / "runs").iterdir())) == 2


def loop_and_retry(tmp_path: Path) -> list[tuple[str, dict[str, object], list[Path]]]:
    """A loop of which two iterations run and one waits, and a failed stage that waits to be tried again."""
    begun = [tmp_path / "begun-a", tmp_path / "begun-b"]
    scripts = [f"touch {path}; sleep 60" for path in begun] + [f"touch {tmp_path}/begun-c"]
    retried = {"script": f"touch {begun[0]}; exit 3"}
    return [("in_a_loop", {"scripts": scripts}, begun), ("slowly_retried", retried, begun[:1])]


@pytest.mark.parametrize("case", [0, 1], ids=["in a loop", "before another attempt"])
def test_ctrl_c_ends_it_at_once_with_all_its_processes(tmp_path: Path, out: Path, case: int) -> None:
    name, arguments, begun = loop_and_retry(tmp_path)[case]
    with started(name, out, arguments) as process:
        wait_for(*begun, process=process)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=20)
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    assert not running(tmp_path / "begun")
    assert not (tmp_path / "begun-c").exists()
    assert "killed" not in stdout
    assert not (out / "work").exists()


def test_only_one_run_at_a_time_writes_to_a_folder(tmp_path: Path, out: Path) -> None:
    begun, go = tmp_path / "begun", tmp_path / "go"
    script = f"{MAKE}; touch {begun}; while [ ! -e {go} ]; do sleep 0.05; done"
    thread = threading.Thread(target=run, args=(retried_script, out), kwargs={"script": script})
    thread.start()
    wait_for(begun)
    error = run(retried_script, out, script=script).error
    assert str(error) == f"{out}: another run is writing there; wait for it or give another --out"
    go.touch()
    thread.join()
    assert run(retried_script, out, script=script).said == {"Script": "unchanged"}


def test_a_folder_of_somebody_else_s_is_refused_and_left_alone(out: Path) -> None:
    (out / "runs" / "mine").mkdir(parents=True)
    error = run(retried_script, out, script=MAKE).error
    assert type(error) is UserError
    assert str(error) == f"{out}/runs: no pipeline run made it; give an empty folder or another --out"
    assert (out / "runs" / "mine").exists()
