"""A night after a watermark went back to the start: all feedback counts again."""

from pathlib import Path

import pytest
from night_parts import NEEDED, Logs, brief

from taskmem.config import load_profile
from taskmem.records import read_json
from taskmem.registry import WatermarkMovedError, advance, reset, watermark
from taskmem.stages.nightly import SINCE


@pytest.fixture
def used(tmp_path: Path) -> Logs:
    """The logs of an environment whose feedback has all been used."""
    logs = Logs(tmp_path, load_profile("miniature"))
    logs.ask("door", range(NEEDED))
    logs.collect("door")
    logs.use("door")
    return logs


def test_after_a_reset_all_questions_are_collected_again(used: Logs) -> None:
    assert used.collect("door")[0].status == "skipped"
    before = watermark(used.store, "door")
    assert before is not None
    reset(used.store, "door", before)
    assert brief(used.collect("door")) == [("door", "ready", "")]
    assert [q.id for q in used.collected("door").questions["door"]] == [f"q{n}" for n in range(NEEDED)]
    assert read_json(used.root / "out" / "door" / SINCE) == {}
    used.use("door")
    assert watermark(used.store, "door") == before
    assert used.collect("door")[0].status == "skipped"


def test_after_a_reset_too_little_feedback_is_told_as_what_there_is_in_all(used: Logs) -> None:
    reset(used.store, "door", watermark(used.store, "door") or {})
    eager = {"environment": "door", "settings": {"adaptation": {"new_questions": 10}}}
    assert used.collect(eager)[0].reason == f"too little feedback: {NEEDED} questions in all, needs 10"


def test_a_night_that_collected_before_the_reset_uses_nothing_up(used: Logs) -> None:
    before = watermark(used.store, "door")
    assert before is not None
    reset(used.store, "door", before)
    with pytest.raises(WatermarkMovedError):
        advance(used.store, "door", {"lines": 9}, before)
    with pytest.raises(WatermarkMovedError):
        reset(used.store, "room", before)
    assert (watermark(used.store, "door"), watermark(used.store, "room")) == ({}, None)
