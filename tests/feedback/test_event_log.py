"""The event log: idempotent, durable, one writer, mended after a kill."""

import random
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from taskmem.errors import UserError
from taskmem.feedback import EventConflictError, EventLog
from taskmem.records import FeedbackEvent, dump_record, read_records


def event(number: int, **changes: Any) -> FeedbackEvent:
    fields: dict[str, Any] = {
        "id": f"event-{number}",
        "environment": "shop",
        "source": f"{number:064x}",
        "time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "question": f"q{number}",
        "stream": "street-1",
        "asked_at_s": 10.0 * number,
        "type": "colour",
        "text": f"Which colour was the bag of customer {number}? Größe \u2028 égal",
        "answer": "red",
        "outcome": "unknown",
        "consent": True,
    }
    return FeedbackEvent(**{**fields, **changes})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "events.jsonl"


def test_events_are_read_back_in_the_order_of_arrival(path: Path) -> None:
    with EventLog(path) as log:
        assert [log.append(event(n)) for n in (3, 1, 2)] == [True, True, True]
    assert read_records(path, FeedbackEvent) == [event(3), event(1), event(2)]


@pytest.mark.parametrize("reopen", [False, True])
def test_the_same_event_again_changes_nothing(path: Path, reopen: bool) -> None:
    log = EventLog(path)
    log.append(event(1))
    before = path.read_bytes()
    if reopen:
        log.close()
        log = EventLog(path)
    assert log.append(event(1)) is False
    log.close()
    assert path.read_bytes() == before


@pytest.mark.parametrize("reopen", [False, True])
def test_a_known_id_with_other_content_is_an_error_and_changes_nothing(path: Path, reopen: bool) -> None:
    log = EventLog(path)
    log.append(event(1))
    before = path.read_bytes()
    if reopen:
        log.close()
        log = EventLog(path)
    with pytest.raises(EventConflictError, match=r"events\.jsonl: event event-1 is already there with other content"):
        log.append(event(1, outcome="correct"))
    log.append(event(2))
    log.close()
    assert path.read_bytes().startswith(before)
    assert read_records(path, FeedbackEvent) == [event(1), event(2)]


def test_a_second_writer_is_turned_away_until_the_first_has_closed(path: Path) -> None:
    with EventLog(path), pytest.raises(UserError, match="another process is writing this log"):
        EventLog(path)
    EventLog(path).close()


def test_a_closed_log_takes_no_events(path: Path) -> None:
    log = EventLog(path)
    log.close()
    log.close()
    with pytest.raises(UserError, match="the log is closed"):
        log.append(event(1))


def test_threads_may_share_a_log(path: Path) -> None:
    numbers = [n % 20 for n in range(80)]
    with EventLog(path) as log, ThreadPoolExecutor(4) as threads:
        new = list(threads.map(lambda n: log.append(event(n)), numbers))
    assert sum(new) == 20
    assert sorted(e.id for e in read_records(path, FeedbackEvent)) == sorted({event(n).id for n in numbers})


def test_a_torn_last_line_is_cut_off_wherever_it_tore_and_nothing_else(path: Path, tmp_path: Path) -> None:
    with EventLog(path) as log:
        log.append(event(1))
        complete = path.stat().st_size
        log.append(event(2))
    whole = path.read_bytes()
    for end in (*range(complete, len(whole) - 4, 5), *range(len(whole) - 4, len(whole))):
        torn = tmp_path / f"{end}.jsonl"
        torn.write_bytes(whole[:end])
        with EventLog(torn) as log:
            only_the_line_end_is_missing = end == len(whole) - 1
            assert log.torn_bytes == (0 if only_the_line_end_is_missing else end - complete)
            assert log.append(event(2)) is not only_the_line_end_is_missing
            assert log.append(event(1)) is False
        assert torn.read_bytes() == whole


def test_a_complete_line_that_is_no_event_is_left_for_the_collector(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b'{"not": "an event"}\n\xff\xfe\n\n')
    with EventLog(path) as log:
        log.append(event(1))
    assert path.read_bytes() == b'{"not": "an event"}\n\xff\xfe\n\n' + dump_record(event(1)).encode() + b"\n"


def test_a_log_that_is_a_folder_is_the_users_mistake_and_leaves_no_lock(path: Path) -> None:
    path.mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(UserError, match=r"events\.jsonl: cannot keep the log \(Is a directory\)"):
            EventLog(path)


def test_a_write_that_fails_half_way_closes_the_log_and_opening_mends_it(path: Path) -> None:
    with EventLog(path) as log:
        log.append(event(1))
    whole = path.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    log = EventLog(path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 50, limits[1]))
        with pytest.raises(UserError, match="File too large"):
            log.append(event(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    with pytest.raises(UserError, match="closed"):
        log.append(event(3))
    assert path.stat().st_size == len(whole) + 50
    with EventLog(path) as log:
        assert log.torn_bytes == 50
        assert path.read_bytes() == whole
        assert log.append(event(2)) is True


_WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_event_log import event
from taskmem.feedback import EventLog
log, number = EventLog(Path(sys.argv[1])), 0
while True:
    log.append(event(number, text=f"{number} " * 20_000))
    print(number, flush=True)
    number += 1
"""


def test_a_writer_killed_at_any_moment_loses_no_acknowledged_event(path: Path) -> None:
    rng = random.Random(0)
    here = str(Path(__file__).parent)
    for _ in range(3):
        path.unlink(missing_ok=True)
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), here], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(rng.uniform(0.01, 0.05))
            writer.kill()
            acknowledged = 1 + sum(line.endswith("\n") for line in writer.stdout)
        EventLog(path).close()
        found = [e.id for e in read_records(path, FeedbackEvent)]
        assert found == [f"event-{n}" for n in range(len(found))]
        assert acknowledged <= len(found) <= acknowledged + 1
