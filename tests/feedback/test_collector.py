"""Collection: exactly once, only with consent, never an answer, nothing skipped in silence."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskmem.config import MiningSettings, load_profile
from taskmem.errors import UserError
from taskmem.feedback import (
    Collection,
    EventLog,
    Watermark,
    collect,
    read_collection,
    read_watermark,
    to_question,
    write_collection,
)
from taskmem.files import sha256_bytes
from taskmem.records import FeedbackEvent, Question, Refusal, dump_record, read_records

SECRET = "the answer nobody may see"


def event(number: int, **changes: Any) -> FeedbackEvent:
    fields: dict[str, Any] = {
        "id": f"e{number}",
        "environment": "shop",
        "source": sha256_bytes(str(number)),
        "time": datetime(2026, 1, 1, tzinfo=UTC),
        "question": f"q{number}",
        "stream": f"street-{number % 3}",
        "asked_at_s": float(number),
        "type": "colour",
        "text": f"Which colour was bag {number}?",
        "answer": f"{SECRET} {number}",
        "outcome": "incorrect",
        "correction": f"{SECRET}, corrected",
        "consent": True,
    }
    return FeedbackEvent(**{**fields, **changes})


def mining(recent: int) -> MiningSettings:
    return load_profile("miniature").mining.model_copy(update={"recent_questions": recent})


def write(path: Path, *events: FeedbackEvent) -> Path:
    with EventLog(path) as log:
        for one in events:
            log.append(one)
    return path


def add_line(path: Path, line: bytes) -> None:
    with path.open("ab") as handle:
        handle.write(line)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def ids(collection: Collection) -> dict[str, list[str]]:
    return {environment: [q.id for q in questions] for environment, questions in collection.questions.items()}


def test_each_environment_gives_its_most_recent_questions_oldest_first(path: Path) -> None:
    write(path, *(event(n, environment="shop" if n % 2 else "home") for n in range(10)))
    assert ids(collect(path, None, mining(3))) == {"home": ["q4", "q6", "q8"], "shop": ["q5", "q7", "q9"]}


def test_a_question_is_what_the_event_says_without_any_answer(path: Path) -> None:
    write(path, event(7))
    expected = Question(
        id="q7", environment="shop", stream="street-1", asked_at_s=7.0, type="colour", text="Which colour was bag 7?"
    )
    assert to_question(event(7)) == expected
    assert collect(path, None, mining(5)).questions == {"shop": (expected,)}
    assert (expected.answer, expected.origin) == (None, "none")


def test_no_answer_and_no_correction_reaches_any_file(path: Path, tmp_path: Path) -> None:
    write(path, event(1), event(2, consent=False))
    add_line(path, dump_record(event(1, outcome="correct")).encode() + b"\n")
    write_collection(tmp_path / "out", collect(path, None, mining(5)))
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert len(files) == 4
    assert all(SECRET not in p.read_text() for p in files)


def test_an_event_without_consent_is_refused_counted_and_leaves_nothing_but_its_line(
    path: Path, tmp_path: Path
) -> None:
    write(path, event(1), event(2, consent=False, text="private words"), event(3, consent=False, environment="home"))
    collection = collect(path, None, mining(5))
    assert ids(collection) == {"shop": ["q1"]}
    assert (collection.events, collection.without_consent) == (1, 2)
    assert collection.refused == tuple(Refusal(file=f"events.jsonl:{n}", reason="no consent") for n in (2, 3))
    write_collection(tmp_path / "out", collection)
    everything = "".join(p.read_text() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert "private words" not in everything
    assert event(2).source not in everything


def test_a_question_asked_again_counts_once_at_its_last_place_with_all_its_sources(path: Path) -> None:
    again = [event(n, question="q0", stream="street-0", asked_at_s=0.0, text="Same?") for n in (0, 5)]
    write(path, again[0], event(1), event(2), again[1])
    collection = collect(path, None, mining(2))
    assert ids(collection) == {"shop": ["q2", "q0"]}
    assert collection.sources == {
        "shop": {"q2": (event(2).source,), "q0": tuple(sorted({event(0).source, event(5).source}))}
    }
    assert collection.events == 4


def test_environments_may_use_the_same_question_id_for_different_questions(path: Path) -> None:
    write(path, event(1, text="In the shop?"), event(2, question="q1", environment="home", text="At home?"))
    texts = {e: [q.text for q in qs] for e, qs in collect(path, None, mining(5)).questions.items()}
    assert texts == {"home": ["At home?"], "shop": ["In the shop?"]}


def test_a_question_that_contradicts_an_earlier_one_is_refused(path: Path) -> None:
    write(path, event(1), event(2), event(3, question="q1", text="Something else?"))
    collection = collect(path, None, mining(5))
    assert ids(collection) == {"shop": ["q1", "q2"]}
    assert collection.questions["shop"][0].text == event(1).text
    assert collection.sources["shop"]["q1"] == (event(1).source,)
    assert [(r.file, r.reason) for r in collection.refused] == [
        ("events.jsonl:3", "question q1 differs from an earlier one with the same id")
    ]


BROKEN = [
    (b"{", "Invalid JSON"),
    (b"\xff\xfe", "Invalid JSON"),
    (b'{"id": "x"}', "environment: Field required"),
    (b"[]", "the line: Input should be an object"),
    (dump_record(event(9)).replace('"shop"', '"../shop"').encode(), "environment: String should match pattern"),
    (dump_record(event(9)).replace("bag", r"\ud800").encode(), "Invalid JSON"),
    (dump_record(event(9)).replace('"consent": true', '"consent": "yes"').encode(), "consent: "),
    (dump_record(event(9)).replace('"id"', r'"x\ny": 1, "id"').encode(), r"x\ny: Extra inputs are not permitted"),
    (dump_record(event(1)).encode(), "event e1 is already on line 1"),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN)
def test_a_corrupt_line_is_listed_with_its_place_and_the_rest_goes_on(path: Path, line: bytes, reason: str) -> None:
    write(path, event(1))
    add_line(path, line + b"\n\n")
    write(path, event(2), event(3, environment="home"))
    collection = collect(path, None, mining(5))
    assert ids(collection) == {"home": ["q3"], "shop": ["q1", "q2"]}
    assert [r.file for r in collection.refused] == ["events.jsonl:2"]
    assert reason in collection.refused[0].reason
    assert "\n" not in collection.refused[0].reason
    assert collection.watermark.lines == 5


def test_an_unfinished_last_line_is_listed_and_left_for_the_next_collection(path: Path) -> None:
    write(path, event(1))
    whole = dump_record(event(2)).encode()
    add_line(path, whole[:30])
    first = collect(path, None, mining(5))
    assert ids(first) == {"shop": ["q1"]}
    assert [(r.file, r.reason) for r in first.refused] == [
        ("events.jsonl:2", "unfinished line, left for the next collection")
    ]
    add_line(path, whole[30:] + b"\n")
    second = collect(path, first.watermark, mining(5))
    assert ([q.id for q in second.new("shop")], second.refused) == (["q2"], ())


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_however_the_log_is_divided_every_event_is_collected_exactly_once(tmp_path: Path, parts: list[int]) -> None:
    path = tmp_path / "events.jsonl"
    path.unlink(missing_ok=True)
    path.touch()
    watermark, collected, number = None, [], 0
    for part in parts:
        lines = [dump_record(event(number + n)) + "\n" for n in range(part)]
        add_line(path, "".join(lines).encode())
        number += part
        collection = collect(path, watermark, mining(100))
        watermark = collection.watermark
        collected += [q.id for q in collection.new("shop")]
        assert collection.events == part
    assert collected == [f"q{n}" for n in range(number)]
    assert watermark == collect(path, None, mining(100)).watermark


def test_the_watermark_is_the_length_lines_and_digest_of_what_was_read(path: Path) -> None:
    write(path, event(1), event(2))
    raw = path.read_bytes()
    assert collect(path, None, mining(5)).watermark == Watermark(offset=len(raw), lines=2, sha256=sha256_bytes(raw))


def test_a_watermark_beyond_many_pieces_of_the_log_is_checked_in_full(path: Path) -> None:
    write(path, *(event(n, text="long " * 100_000) for n in range(8)))
    since = collect(path, None, mining(5)).watermark
    assert since.offset > 3_000_000
    write(path, event(9))
    assert [q.id for q in collect(path, since, mining(5)).new("shop")] == ["q9"]


@pytest.mark.parametrize("fault", ["shorter", "changed", "lines"])
def test_a_watermark_of_another_log_is_refused(path: Path, fault: str) -> None:
    write(path, event(1), event(2))
    since = collect(path, None, mining(5)).watermark
    if fault == "shorter":
        path.write_bytes(path.read_bytes()[:-10])
    elif fault == "changed":
        path.write_bytes(path.read_bytes().replace(b"bag 1", b"bag 7"))
    else:
        since = since.model_copy(update={"lines": 1})
    with pytest.raises(UserError, match=r"events\.jsonl:\d: the log before the watermark is not the one"):
        collect(path, since, mining(5))


def test_a_missing_log_is_the_users_mistake(path: Path) -> None:
    with pytest.raises(UserError, match=r"events\.jsonl: the event log cannot be read \(No such file or directory\)"):
        collect(path, None, mining(5))


@pytest.fixture
def collection(path: Path) -> Collection:
    write(path, *(event(n, environment="shop" if n % 2 else "home", consent=n != 4) for n in range(8)))
    return collect(path, None, mining(3))


def test_a_collection_is_read_back_as_it_was_written(collection: Collection, tmp_path: Path) -> None:
    write_collection(tmp_path / "out", collection)
    assert read_collection(tmp_path / "out") == collection
    assert read_watermark(tmp_path / "out" / "watermark.json") == collection.watermark


def test_an_empty_collection_is_written_and_read_back(path: Path, tmp_path: Path) -> None:
    path.touch()
    empty = collect(path, None, mining(3))
    write_collection(tmp_path, empty)
    assert (
        read_collection(tmp_path)
        == empty
        == Collection({}, {}, (), Watermark(offset=0, lines=0, sha256=sha256_bytes("")), 0)
    )


def test_the_files_are_where_the_next_stage_looks_for_them(collection: Collection, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_collection(out, collection)
    assert read_records(out / "questions" / "home.jsonl", Question) == list(collection.questions["home"])
    assert [r.file for r in read_records(out / "refused.jsonl", Refusal)] == ["events.jsonl:5"]
    assert json.loads((out / "sources.json").read_text())["home"]["q6"] == [event(6).source]
    assert json.loads((out / "watermark.json").read_text())["watermark"]["lines"] == 8


def test_the_same_log_gives_the_same_bytes(collection: Collection, path: Path, tmp_path: Path) -> None:
    contents = []
    for out in (tmp_path / "one", tmp_path / "two"):
        write_collection(out, collect(path, None, mining(3)))
        contents.append({p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()})
    assert contents[0] == contents[1]


def test_a_new_collection_replaces_the_old_one_and_leaves_other_files_alone(
    collection: Collection, path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_collection(out, collection)
    (out / "run.jsonl").write_text("kept")
    write(path, event(20))
    later = collect(path, collection.watermark, mining(3), "shop")
    write_collection(out, later)
    assert read_collection(out) == later
    assert not (out / "questions" / "home.jsonl").exists()
    assert (out / "run.jsonl").read_text() == "kept"


def test_a_collection_that_was_not_written_to_the_end_is_not_read_but_its_old_watermark_is(
    collection: Collection, path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_collection(out, collection)
    old = (out / "watermark.json").read_bytes()
    write(path, event(20))
    write_collection(out, collect(path, collection.watermark, mining(3)))
    (out / "watermark.json").write_bytes(old)  # as after a kill just before the last file
    with pytest.raises(UserError, match="not written to the end; run collect again"):
        read_collection(out)
    assert read_watermark(out / "watermark.json") == collection.watermark


@pytest.mark.parametrize("name", ["questions/home.jsonl", "refused.jsonl", "sources.json", "watermark.json"])
def test_a_missing_file_of_a_collection_is_the_users_mistake(collection: Collection, tmp_path: Path, name: str) -> None:
    write_collection(tmp_path, collection)
    (tmp_path / name).unlink()
    with pytest.raises(UserError):
        read_collection(tmp_path)


@pytest.mark.parametrize("text", ["[]", '{"watermark": NaN}', '{"watermark": {"offset": -1}}', '{"a": "\\ud800"}'])
def test_a_watermark_file_of_another_kind_is_the_users_mistake(tmp_path: Path, text: str) -> None:
    (tmp_path / "watermark.json").write_text(text)
    with pytest.raises(UserError, match=r"watermark\.json: not (a file of a collection|valid JSON)") as caught:
        read_watermark(tmp_path / "watermark.json")
    assert "\n" not in str(caught.value)
