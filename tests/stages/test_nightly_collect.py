"""The first stage of a night: whose feedback is collected, and why an environment's is not."""

import json
from pathlib import Path

import pytest
from night_parts import NEEDED, Logs, brief, event, shard

from taskmem.config import load_profile
from taskmem.errors import UserError
from taskmem.feedback import EventLog
from taskmem.feedback.collection import Erasable, tombstone_of
from taskmem.registry import watermark
from taskmem.stages.nightly import SINCE, collect_shard


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    (tmp_path / "events").mkdir()
    return Logs(tmp_path, load_profile("miniature"))


def test_an_environment_with_enough_questions_is_ready(logs: Logs) -> None:
    logs.ask("door", range(NEEDED))
    assert brief(logs.collect("door")) == [("door", "ready", "")]
    assert [q.id for q in logs.collected("door").questions["door"]] == [f"q{n}" for n in range(NEEDED)]
    assert json.loads((logs.root / "out" / "door" / SINCE).read_text()) is None


def test_an_environment_nobody_asked_in_is_skipped(logs: Logs) -> None:
    assert brief(logs.collect("door")) == [("door", "skipped", "no feedback yet")]
    assert not (logs.root / "out" / "door").exists()


@pytest.mark.parametrize("asked", [0, 1, NEEDED - 1])
def test_an_environment_with_too_few_questions_is_skipped(logs: Logs, asked: int) -> None:
    logs.ask("few", range(asked))
    logs.ask("door", range(NEEDED))
    reason = f"too little feedback: {asked} questions in all, needs {NEEDED}"
    assert brief(logs.collect("few", "door")) == [("few", "skipped", reason), ("door", "ready", "")]
    assert not (logs.root / "out" / "few").exists()


def test_a_question_asked_twice_counts_once(logs: Logs) -> None:
    logs.ask("door", range(NEEDED - 1))
    with EventLog(logs.root / "events" / "door.jsonl") as log:
        log.append(event("door", 0, id="again"))
    assert logs.collect("door")[0].status == "skipped"
    logs.ask("door", range(NEEDED - 1, NEEDED))
    assert logs.collect("door")[0].status == "ready"


def test_lines_that_were_refused_are_counted_in_the_reason_and_the_first_is_quoted(logs: Logs) -> None:
    logs.ask("door", range(2))
    with (logs.root / "events" / "door.jsonl").open("a") as log:
        log.write(
            event("room", 7).model_dump_json() + "\n{\n" + event("door", 8, consent=False).model_dump_json() + "\n"
        )
    (outcome,) = logs.collect("door")
    assert outcome.reason == (
        f"too little feedback: 2 questions in all, needs {NEEDED}; 3 lines refused, the first door.jsonl:3: "
        "event q7 names another environment than the log's"
    )


def test_a_log_of_garbage_fails_nothing_and_says_what_it_is(logs: Logs) -> None:
    lines = [b"not JSON", b"\x00\xff", b"[" * 100_000, b'{"id": 1}', b"\xed\xa0\x80", b'{"schema_version": 1, "id"']
    (logs.root / "events" / "corrupt.jsonl").write_bytes(b"\n".join(lines))
    logs.ask("door", range(NEEDED))
    corrupt, door = logs.collect("corrupt", "door")
    assert (corrupt.status, door.status) == ("skipped", "ready")
    assert f"0 questions in all, needs {NEEDED}; 6 lines refused, the first corrupt.jsonl:1: " in corrupt.reason
    assert corrupt.reason.isprintable()


def test_only_questions_since_the_watermark_count(logs: Logs) -> None:
    logs.ask("door", range(NEEDED))
    logs.collect("door")
    logs.use("door")
    (outcome,) = logs.collect("door")
    assert outcome.status == "skipped"
    assert outcome.reason == f"too little feedback: 0 questions since the last adaptation, needs {NEEDED}"
    logs.ask("door", range(10, 10 + NEEDED))
    used = watermark(logs.store, "door")
    assert brief(logs.collect("door")) == [("door", "ready", "")]
    assert [q.id for q in logs.collected("door").questions["door"]] == [f"q{n}" for n in range(10, 10 + NEEDED)]
    assert json.loads((logs.root / "out" / "door" / SINCE).read_text()) == used


@pytest.mark.parametrize(("kind", "name"), [("stream", "gone"), ("source", "d" * 64)])
def test_what_was_erased_is_not_collected_though_it_arrives_late(logs: Logs, kind: Erasable, name: str) -> None:
    logs.ask("door", range(NEEDED))
    logs.ask("door", range(NEEDED, 2 * NEEDED), **{kind: name})
    logs.store.put_if_absent(f"tombstones/{tombstone_of(kind, name)}", b"{}")
    assert brief(logs.collect("door")) == [("door", "ready", "")]
    assert [q.id for q in logs.collected("door").questions["door"]] == [f"q{n}" for n in range(NEEDED)]
    assert len(logs.collected("door").refused) == NEEDED


def test_collecting_moves_no_watermark(logs: Logs) -> None:
    logs.ask("door", range(NEEDED))
    logs.collect("door")
    assert list(logs.store.list("")) == []


def test_without_a_store_everything_is_collected(logs: Logs) -> None:
    logs.ask("door", range(NEEDED))
    logs.collect("door")
    logs.use("door")
    assert brief(logs.collect("door", store=False)) == [("door", "ready", "")]


def test_a_watermark_that_does_not_fit_its_log_fails_that_environment_alone(logs: Logs) -> None:
    for environment in ("door", "room"):
        logs.ask(environment, range(NEEDED))
        logs.collect(environment)
        logs.use(environment)
        logs.ask(environment, range(10, 10 + NEEDED))
    log = logs.root / "events" / "door.jsonl"
    log.write_text(log.read_text().replace("q1", "x1", 1))
    door, room = logs.collect("door", "room")
    assert (door.status, room.status) == ("failed", "ready")
    assert "the log before the watermark is not the one it was taken from" in door.reason


def test_a_damaged_watermark_fails_that_environment_alone(logs: Logs) -> None:
    for environment in ("door", "room"):
        logs.ask(environment, range(NEEDED))
    logs.store.put_if_absent("registry/door/watermark", b"[]")
    assert [o.status for o in logs.collect("door", "room")] == ["failed", "ready"]


def test_an_environment_says_itself_how_much_is_enough(logs: Logs) -> None:
    logs.ask("door", range(2))
    assert logs.collect({"environment": "door", "settings": {"adaptation": {"new_questions": 2}}})[0].status == "ready"
    logs.ask("door", range(2, 5))
    logs.ask("door", range(5, 9), source="b" * 64)
    eager = {"environment": "door", "settings": {"adaptation": {"new_questions": 10}}}
    assert logs.collect(eager)[0].reason.startswith("too little feedback: 9 questions in all, needs 10")


def test_every_adapter_of_an_environment_gets_its_feedback(logs: Logs) -> None:
    logs.ask("door", range(NEEDED))
    logs.collect("door", {"environment": "door", "adapter": "door2"})
    assert logs.collected("door2") == logs.collected("door")


def test_a_folder_of_logs_that_is_not_there_is_one_mistake_for_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no folder of feedback logs; give the one that the agent writes"):
        collect_shard(shard("door"), tmp_path / "nowhere", "", load_profile("miniature"), tmp_path / "out")
