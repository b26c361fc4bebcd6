"""Events go out of a log under its lock, and its watermark stays at the same place."""

from pathlib import Path

import pytest
from erasure_texts import CANARY, MINING, NEIGHBOUR, OTHERS, OURS, USER, event, holding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskmem.erasure.contents import Eraser
from taskmem.erasure.known import Known
from taskmem.erasure.logs import START, Logs
from taskmem.erasure.target import Target
from taskmem.errors import UserError
from taskmem.feedback import EventLog, Watermark, collect
from taskmem.progress import unheard
from taskmem.records import dump_record
from taskmem.registry import advance, watermark
from taskmem.store import LocalStore


def write(folder: Path, ours: list[bool], start: int = 0) -> Path:
    """One event for each of `ours`: about our stream, or the other."""
    path = folder / "door.jsonl"
    with EventLog(path) as log:
        for number, mine in enumerate(ours, start):
            log.append(event("door", number, OURS if mine else OTHERS, USER if mine else NEIGHBOUR))
    return path


def eraser(logs: Logs) -> Eraser:
    known = Known(Target("stream", OURS))
    logs.gather(known)
    return Eraser(known)


def since(store: LocalStore) -> Watermark | None:
    used = watermark(store, "door")
    return Watermark.model_validate(used) if used else None


def use(store: LocalStore, path: Path) -> None:
    now = collect(path, since(store), MINING, "door").watermark.model_dump(mode="json")
    advance(store, "door", now, watermark(store, "door"))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.lists(st.booleans(), min_size=1, max_size=6), after=st.lists(st.booleans(), max_size=6))
def test_the_next_collection_has_exactly_what_was_not_used_yet(
    tmp_path_factory: pytest.TempPathFactory, before: list[bool], after: list[bool]
) -> None:
    root = tmp_path_factory.mktemp("log")
    store = LocalStore(root / "store")
    path = write(root, before)
    use(store, path)
    write(root, after, len(before))
    logs = Logs(root)
    found = eraser(logs)
    assert logs.found(found).records == sum(before) + sum(after)
    logs.erase(found, store, unheard)
    left = [f"q{number}" for number, ours in enumerate(after, len(before)) if not ours]
    new = collect(path, since(store), MINING, "door")
    assert [question.id for question in new.new("door")] == left[-MINING.recent_questions :]
    assert len(path.read_bytes().splitlines()) == len(before) + len(after) - sum(before) - sum(after)
    assert holding(CANARY, root) == []


@pytest.mark.parametrize("before", [None, {}, START])
def test_a_watermark_at_the_start_stays_there_and_is_not_what_a_night_has_seen(
    tmp_path: Path, before: dict[str, int | str] | None
) -> None:
    store = LocalStore(tmp_path / "store")
    path = write(tmp_path, [True, False])
    if before is not None:
        advance(store, "door", before, None)
    logs = Logs(tmp_path)
    logs.erase(eraser(logs), store, unheard)
    assert watermark(store, "door") not in (None, before)
    assert [question.id for question in collect(path, since(store), MINING, "door").questions["door"]] == ["q1"]


def test_a_log_without_the_target_keeps_its_bytes_and_its_watermark(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    path = write(tmp_path, [False, False])
    use(store, path)
    before = path.read_bytes(), path.stat().st_ino, watermark(store, "door")
    logs = Logs(tmp_path)
    logs.erase(eraser(logs), store, unheard)
    assert (path.read_bytes(), path.stat().st_ino, watermark(store, "door")) == before


def test_lines_that_are_no_events_and_an_unfinished_one_stay(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    path = write(tmp_path, [False, True, False])
    others = [line for line in path.read_bytes().splitlines(keepends=True) if OTHERS.encode() in line]
    path.write_bytes(path.read_bytes() + b"garbage\r\n\n" + dump_record(event("door", 9, OTHERS, USER))[:40].encode())
    rest = b"garbage\r\n\n" + dump_record(event("door", 9, OTHERS, USER))[:40].encode()
    logs = Logs(tmp_path)
    logs.erase(eraser(logs), store, unheard)
    assert path.read_bytes() == b"".join(others) + rest


def test_the_log_keeps_its_permissions(tmp_path: Path) -> None:
    path = write(tmp_path, [True, False])
    path.chmod(0o640)
    logs = Logs(tmp_path)
    logs.erase(eraser(logs), LocalStore(tmp_path / "store"), unheard)
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_watermark_of_another_log_is_said_and_nothing_changes(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    path = write(tmp_path, [True, False])
    advance(store, "door", {"offset": 3, "lines": 1, "sha256": "0" * 64}, None)
    before = path.read_bytes()
    logs = Logs(tmp_path)
    with pytest.raises(UserError, match=r"door\.jsonl: the log before its watermark in the store is not the one"):
        logs.erase(eraser(logs), store, unheard)
    assert path.read_bytes() == before


def test_a_log_that_an_agent_has_open_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, [True])
    logs = Logs(tmp_path)
    with EventLog(path), pytest.raises(UserError, match="an agent is writing this log; stop it"):
        logs.check_unused()
    logs.check_unused()


def test_a_folder_without_logs_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no event log"):
        Logs(tmp_path)
