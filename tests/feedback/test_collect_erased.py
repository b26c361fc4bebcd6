"""What was erased stays away: a log that arrives late brings nothing of it back."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from taskmem.config import load_profile
from taskmem.errors import UserError
from taskmem.feedback import EventLog, collect, collect_folder, read_collection, write_collection
from taskmem.feedback.collection import ERASED, reseal, rests_on_erased, tombstone_of
from taskmem.records import FeedbackEvent

MINING = load_profile("miniature").mining
USER, NEIGHBOUR = "1" * 64, "2" * 64


def event(number: int, stream: str = "hall", source: str = NEIGHBOUR, **changes: Any) -> FeedbackEvent:
    fields: dict[str, Any] = {
        "id": f"e{number}",
        "environment": "door",
        "source": source,
        "time": datetime(2026, 1, 1, tzinfo=UTC),
        "question": f"q{number}",
        "stream": stream,
        "asked_at_s": 1.0,
        "type": "object",
        "text": f"what {number}?",
        "answer": None,
        "outcome": "unknown",
        "consent": True,
    }
    return FeedbackEvent(**{**fields, **changes})


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "events" / "door.jsonl"
    with EventLog(path) as events:
        for each in (event(1), event(2, stream="yard"), event(3, source=USER), event(4, stream="yard", source=USER)):
            events.append(each)
    return path


@pytest.mark.parametrize(
    ("erased", "left"),
    [
        ([], ["q1", "q2", "q3", "q4"]),
        ([tombstone_of("stream", "yard")], ["q1", "q3"]),
        ([tombstone_of("source", USER)], ["q1", "q2"]),
        ([tombstone_of("stream", "yard"), tombstone_of("source", USER)], ["q1"]),
        # the same name of another kind is another
        ([tombstone_of("source", "yard"), tombstone_of("stream", USER)], ["q1", "q2", "q3", "q4"]),
    ],
)
def test_events_of_what_was_erased_are_refused(log: Path, erased: list[str], left: list[str]) -> None:
    new = collect(log, None, MINING, "door", frozenset(erased))
    assert [question.id for question in new.questions["door"]] == left
    assert [refusal.reason for refusal in new.refused] == [ERASED] * (4 - len(left))
    assert new.watermark.lines == 4
    assert collect_folder(log.parent, MINING, frozenset(erased)).questions == new.questions


def test_a_refusal_tells_neither_the_events_id_nor_its_text(log: Path) -> None:
    new = collect(log, None, MINING, "door", frozenset([tombstone_of("source", USER)]))
    assert [refusal.file for refusal in new.refused] == ["door.jsonl:3", "door.jsonl:4"]
    assert not any(word in refusal.reason for refusal in new.refused for word in ("e3", "q3", "what"))


def test_an_erased_event_does_not_stand_in_the_way_of_one_with_its_id(log: Path) -> None:
    with log.open("a") as lines:
        lines.write(event(2, text="another?").model_dump_json() + "\n")
    new = collect(log, None, MINING, "door", frozenset([tombstone_of("stream", "yard")]))
    assert [question.text for question in new.questions["door"]] == ["what 1?", "what 3?", "another?"]


def test_a_collection_made_before_is_known_to_rest_on_it(log: Path) -> None:
    made = collect(log, None, MINING, "door")
    assert rests_on_erased(made, {tombstone_of("stream", "yard")})
    assert rests_on_erased(made, {tombstone_of("source", USER)})
    assert not rests_on_erased(made, {tombstone_of("stream", "garden"), tombstone_of("source", "3" * 64)})
    assert not rests_on_erased(made, ())


def test_a_tombstone_does_not_tell_the_name_and_is_another_for_each() -> None:
    digests = {tombstone_of("stream", "yard"), tombstone_of("source", "yard"), tombstone_of("stream", "yar")}
    assert len(digests) == 3
    assert all(len(digest) == 64 and "yard" not in digest for digest in digests)


def test_a_collection_changed_on_purpose_is_sealed_again(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_collection(out, collect(log, None, MINING, "door"))
    path = out / "questions" / "door.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(UserError, match="the files were changed"):
        read_collection(out)
    reseal(out)
    assert [question.id for question in read_collection(out).questions["door"]] == ["q1", "q2"]
    with pytest.raises(UserError):
        reseal(tmp_path)
