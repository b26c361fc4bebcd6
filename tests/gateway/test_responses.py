"""The response log: a line that was written is durable, whole and found by the audit."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from taskmem.errors import UserError
from taskmem.gateway.responses import ResponseLog
from taskmem.records import Response, read_records

WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_responses import response
from taskmem.gateway.responses import ResponseLog
with ResponseLog(Path(sys.argv[1]), "a") as log:
    for number in range(1_000_000):
        log.append(response(number))
        print(number, flush=True)
"""


def response(number: int, **changes: Any) -> Response:
    fields: dict[str, Any] = {
        "id": f"req-{number}",
        "time": datetime(2026, 3, 1, 12, 30, tzinfo=UTC),
        "environment": "door",
        "policy": "a" * 64,
        "adapter": "door@v3",
        "adapter_digest": "b" * 64,
        "image": "local",
        "stream": None,
        "question": None,
        "memories": (),
    }
    return Response(**{**fields, **changes})


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """So many bytes to a file, beyond which the disk is as if full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_what_was_written_is_read_back_line_by_line(tmp_path: Path) -> None:
    with ResponseLog(tmp_path / "responses", "gateway-1") as log:
        both = [response(1), response(2, stream="s0", question="q1", memories=("s0:3",))]
        for one in both:
            log.append(one)
        assert log.path == tmp_path / "responses" / "responses-gateway-1.jsonl"
    assert read_records(log.path, Response) == both


def test_many_threads_write_whole_lines(tmp_path: Path) -> None:
    with ResponseLog(tmp_path, "a") as log, ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: log.append(response(number)), range(400)))
        assert {one.id for one in read_records(log.path, Response)} == {f"req-{n}" for n in range(400)}


def test_those_who_write_during_a_sync_share_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs, real = [], os.fsync

    def patient(file: int) -> None:
        syncs.append(file)
        while log.path.read_bytes().count(b"\n") < 16:
            time.sleep(0.001)
        real(file)

    with ResponseLog(tmp_path, "a") as log, ThreadPoolExecutor(16) as pool:
        monkeypatch.setattr(os, "fsync", patient)
        list(pool.map(lambda number: log.append(response(number)), range(16)))
        monkeypatch.undo()
    assert len(syncs) == 2
    assert len(read_records(log.path, Response)) == 16


def test_what_was_acknowledged_before_a_kill_is_there_and_the_torn_line_is_not(tmp_path: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    last = [next(run.stdout) for _ in range(20)][-1]
    run.kill()
    told = [int(last), *(int(line) for line in run.stdout if line.endswith("\n"))]
    run.wait()
    with (tmp_path / "responses-a.jsonl").open("ab") as torn:
        torn.write(b'{"schema_version": 1, "id": "req-torn')
    with ResponseLog(tmp_path, "a") as log:
        log.append(response(2_000_000))
    kept = [one.id for one in read_records(tmp_path / "responses-a.jsonl", Response)]
    assert kept[: told[-1] + 1] == [f"req-{n}" for n in range(told[-1] + 1)]
    assert kept[-1] == "req-2000000"
    assert "req-torn" not in kept


def test_a_line_that_does_not_fit_is_an_error_and_leaves_no_trace(tmp_path: Path) -> None:
    with ResponseLog(tmp_path, "a") as log:
        log.append(response(1))
        before = log.path.read_bytes()
        with largest_file(len(before) + 100), pytest.raises(UserError, match=r"cannot be written .*free the disk"):
            log.append(response(2))
        assert log.path.read_bytes() == before
        log.append(response(3))
    assert [one.id for one in read_records(log.path, Response)] == ["req-1", "req-3"]


def test_a_sync_that_fails_is_an_error_for_all_who_waited_and_the_log_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(file: int) -> None:
        raise OSError(5, "Input/output error")

    with ResponseLog(tmp_path, "a") as log:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fails)
            with pytest.raises(UserError, match="Input/output error"):
                log.append(response(1))
        log.append(response(2))
        log.check()
    assert "req-2" in {one.id for one in read_records(log.path, Response)}


def test_a_log_that_was_moved_away_is_begun_again(tmp_path: Path) -> None:
    with ResponseLog(tmp_path, "a") as log:
        log.append(response(1))
        log.path.rename(tmp_path / "responses-old.jsonl")
        log.append(response(2))
    assert [one.id for one in read_records(tmp_path / "responses-old.jsonl", Response)] == ["req-1"]
    assert [one.id for one in read_records(log.path, Response)] == ["req-2"]


def test_two_processes_do_not_write_one_log(tmp_path: Path) -> None:
    with ResponseLog(tmp_path, "a"), pytest.raises(UserError, match="another process is writing this log"):
        ResponseLog(tmp_path, "a")
    with ResponseLog(tmp_path, "a"), ResponseLog(tmp_path, "b"):
        pass


def test_a_closed_log_and_an_unsafe_name_are_errors(tmp_path: Path) -> None:
    log = ResponseLog(tmp_path, "a")
    log.close()
    log.close()
    with pytest.raises(UserError, match="the log is closed"):
        log.append(response(1))
    with pytest.raises(UserError, match="not a safe name"):
        ResponseLog(tmp_path, "../a")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        ResponseLog(tmp_path / "file", "a")
