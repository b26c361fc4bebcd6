"""Collection from parts: exactly once, whatever was shipped again, and the recent questions are always there."""

import random
from pathlib import Path
from typing import cast

import pytest
from feedback_parts import Counting, event, shipped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskmem.config import MiningSettings, load_profile
from taskmem.errors import UserError
from taskmem.feedback import (
    Collection,
    EventLog,
    FeedbackParts,
    PartsWatermark,
    collect,
    collect_parts,
    collect_store,
    read_collection,
    read_watermark,
    write_collection,
)
from taskmem.feedback.collection import ERASED, NO_CONSENT, tombstone_of
from taskmem.store import LocalStore, Store


def mining(recent: int = 3, per_source: int | None = None) -> MiningSettings:
    changes = {"recent_questions": recent, "questions_per_source": per_source}
    return load_profile("miniature").mining.model_copy(update=changes)


def new(collection: Collection) -> list[str]:
    return [question.id for question in collection.new("door")]


def recent(collection: Collection) -> list[str]:
    return [question.id for question in collection.questions.get("door", ())]


def collected(parts: FeedbackParts, since: PartsWatermark | None, **changes: int) -> Collection:
    """What is collected, which is the same from the file that was kept of it."""
    kept = Path(parts._store._objects.parent) / "kept.jsonl"  # type: ignore[attr-defined]
    collection = collect_parts(parts, since, mining(**changes), kept=kept)
    again = collect(kept, since, mining(**changes))
    assert (again.questions, again.sources, again.watermark) == (
        collection.questions,
        collection.sources,
        collection.watermark,
    )
    assert (again.events, again.carried) == (collection.events, collection.carried)
    assert [r.reason for r in again.refused] == [r.reason for r in collection.refused]
    return collection


@pytest.fixture
def folder(tmp_path: Path, unsynced: None) -> LocalStore:
    return LocalStore(tmp_path / "store")


def test_parts_give_what_a_log_of_the_same_events_gives(store: Store, tmp_path: Path) -> None:
    parts = shipped(store, [0, 1, 2], [3], [4, 5, 6, 7])
    with EventLog(tmp_path / "door.jsonl") as log:
        for number in range(8):
            log.append(event(number))
    for since_part in (None, 1, 3):
        mark = next(p.watermark for p in parts.read() if p.header.number == since_part) if since_part else None
        lines = {None: None, 1: 3, 3: 8}[since_part]
        ours = collect_parts(parts, mark, mining(5))
        head = tmp_path / "head.jsonl"
        head.write_bytes(b"".join((tmp_path / "door.jsonl").read_bytes().splitlines(keepends=True)[:lines]))
        log_mark = collect(head, None, mining()).watermark if lines else None
        theirs = collect(tmp_path / "door.jsonl", log_mark, mining(5), "door")
        assert (ours.questions, ours.sources, ours.events, ours.carried) == (
            theirs.questions,
            theirs.sources,
            theirs.events,
            theirs.carried,
        )
        assert new(ours) == new(theirs)


def test_a_refusal_names_the_part_and_the_line(folder: LocalStore) -> None:
    parts = FeedbackParts(folder, "door")
    parts.append([event(1), event(2, consent=False)])
    parts.append([event(1)])
    collection = collected(parts, None)
    assert [(r.file, r.reason) for r in collect_parts(parts, None, mining()).refused] == [
        ("feedback/door/00000000000000000001:2", NO_CONSENT),
        ("feedback/door/00000000000000000002:1", "event e1 is already in part 1"),
    ]
    assert (collection.events, collection.watermark) == (1, parts.end())


def test_a_watermark_of_parts_is_written_and_read_back(folder: LocalStore, tmp_path: Path) -> None:
    parts = shipped(folder, [1], [2])
    collection = collect_parts(parts, None, mining())
    write_collection(tmp_path / "out", collection)
    assert read_collection(tmp_path / "out") == collection
    since = read_watermark(tmp_path / "out" / "watermark.json")
    assert since == parts.end()
    later = collect_parts(parts, since, mining())
    write_collection(tmp_path / "out", later)
    assert read_collection(tmp_path / "out") == later
    assert later.carried == {"door": 2}


def test_the_watermark_of_a_log_is_not_one_of_parts(folder: LocalStore, tmp_path: Path) -> None:
    parts = shipped(folder, [1])
    with EventLog(tmp_path / "door.jsonl") as log:
        log.append(event(1))
    with pytest.raises(UserError, match="feedback/door: parts, and the watermark is a log's"):
        collect_parts(parts, collect(tmp_path / "door.jsonl", None, mining()).watermark, mining())
    with pytest.raises(UserError, match=r"door\.jsonl: a log, and the watermark is that of parts"):
        collect(tmp_path / "door.jsonl", parts.end(), mining())


@pytest.mark.parametrize("apart", [0, 1, 40, 1100])
def test_an_event_that_was_collected_and_is_shipped_again_counts_no_second_time(folder: LocalStore, apart: int) -> None:
    parts = shipped(folder, [1, 2])
    for number in range(apart):
        parts.append([event(1000 + number)])
    since = parts.end()
    assert "q1" in recent(collect_parts(parts, None, mining(5000)))
    # the agent was killed after the part was put and before its outbox knew
    FeedbackParts(folder, "door").append([event(1), event(2), event(3)])
    collection = collected(parts, since)
    assert (new(collection), collection.events) == (["q3"], 1)
    assert [r.reason for r in collection.refused] == [f"event e{n} is already in an earlier part" for n in (1, 2)]
    # the night after, what is carried over is not taken for newer than it is
    expected = [f"q{1000 + n}" for n in range(apart)][-4:]
    assert recent(collected(parts, parts.end(), recent=5)) == [*(["q1", "q2", *expected][-4:]), "q3"]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=st.lists(st.tuples(st.lists(st.integers(0, 12), max_size=4), st.booleans()), max_size=12))
def test_however_it_is_shipped_and_collected_every_event_counts_exactly_once(
    unsynced: None, tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[list[int], bool]]
) -> None:
    store = LocalStore(tmp_path_factory.mktemp("store"))
    parts, since, counted = FeedbackParts(store, "door"), None, []
    for numbers, night in [*plan, ([], True)]:
        parts.append([event(number) for number in numbers])
        if night:
            collection = collected(parts, since, recent=100)
            counted += new(collection)
            since = cast(PartsWatermark, collection.watermark)
            first = list(dict.fromkeys(n for batch, _ in plan[: len(plan)] for n in batch))
            assert counted == [f"q{n}" for n in first if f"q{n}" in counted]
    assert counted == [f"q{n}" for n in dict.fromkeys(n for batch, _ in plan for n in batch)]
    assert recent(collected(parts, since, recent=5)) == counted[-5:]


def test_a_quiet_night_has_as_many_recent_questions_as_there_are(folder: LocalStore) -> None:
    parts = shipped(folder, *([number] for number in range(9)))
    since = parts.end()
    assert recent(collected(parts, since, recent=4)) == ["q5", "q6", "q7", "q8"]
    assert new(collected(parts, since, recent=4)) == []
    parts.append([event(9)])
    collection = collected(parts, since, recent=4)
    assert (recent(collection), new(collection)) == (["q6", "q7", "q8", "q9"], ["q9"])
    assert collection.carried == {"door": 3}
    assert recent(collected(parts, since, recent=40)) == [f"q{n}" for n in range(10)]


def test_a_question_asked_again_is_new_and_carried_no_second_time(folder: LocalStore) -> None:
    parts = shipped(folder, [1], [2], [3])
    since = parts.end()
    parts.append([event(9, question="q1", text=event(1).text, asked_at_s=1.0)])
    collection = collected(parts, since)
    assert (recent(collection), new(collection)) == (["q2", "q3", "q1"], ["q1"])


def test_what_is_refused_is_not_carried(folder: LocalStore) -> None:
    parts = FeedbackParts(folder, "door")
    parts.append([event(1), event(2, consent=False), event(3, stream="yard"), event(4)])
    erased = {tombstone_of("stream", "yard")}
    assert recent(collect_parts(parts, parts.end(), mining(), erased)) == ["q1", "q4"]


def test_of_one_source_only_its_latest_questions_count(folder: LocalStore) -> None:
    flood = "f" * 64
    parts = shipped(folder, [1, 2])
    parts.append([event(n, source=flood) for n in range(10, 30)])
    parts.append([event(3)])
    collection = collected(parts, None, recent=10, per_source=2)
    assert recent(collection) == ["q1", "q2", "q28", "q29", "q3"]
    assert [r.reason for r in collection.refused] == ["its source has asked 2 questions after this one"] * 18
    assert collect_parts(parts, None, mining(10, 2)).refused[0].file == "feedback/door/00000000000000000002:1"
    assert collection.events == 5
    # a flood of yesterday is no larger when it is carried over
    assert recent(collected(parts, parts.end(), recent=10, per_source=2)) == ["q1", "q2", "q28", "q29", "q3"]


def test_a_flood_neither_moves_nor_drops_what_others_asked(folder: LocalStore) -> None:
    flood, mine = "f" * 64, event(1)
    parts = shipped(folder, [1, 2])
    parts.append([event(50, source=flood, question="q1", text=mine.text, asked_at_s=1.0)])
    parts.append([event(n, source=flood) for n in range(60, 65)])
    collection = collected(parts, None, recent=10, per_source=3)
    assert recent(collection) == ["q1", "q2", "q62", "q63", "q64"]
    assert collection.sources["door"]["q1"] == (mine.source,)


def test_the_shipped_profiles_let_nobody_decide_alone(folder: LocalStore) -> None:
    for name in ("qwen3-vl-30b", "miniature"):
        settings_ = load_profile(name)
        assert settings_.mining.questions_per_source == settings_.mining.recent_questions // 2
        # nobody in the demo asks more, so that it binds nothing there
        assert settings_.mining.questions_per_source >= settings_.evaluation.feedback_questions


@pytest.mark.parametrize("stone", [("stream", "hall"), ("stream", "door/hall"), ("source", event(2).source)])
def test_what_was_erased_is_refused_and_not_kept(folder: LocalStore, tmp_path: Path, stone: tuple[str, str]) -> None:
    kind, name = stone
    parts = FeedbackParts(folder, "door")
    parts.append([event(1, stream="yard"), event(2), event(3, stream="yard"), event(4, consent=False, stream="yard")])
    erased = {tombstone_of(kind, name)}  # type: ignore[arg-type]
    kept = tmp_path / "kept.jsonl"
    collection = collect_parts(parts, None, mining(), erased, kept)
    assert recent(collection) == ["q1", "q3"]
    assert [r.reason for r in collection.refused] == [ERASED, NO_CONSENT]
    assert event(2).text not in kept.read_text()
    assert event(4).text not in kept.read_text()
    again = collect(kept, None, mining())
    assert (again.questions, again.watermark) == (collection.questions, collection.watermark)
    assert [r.reason for r in again.refused] == [ERASED, NO_CONSENT]


def test_another_environments_stream_of_the_same_name_is_not_erased(folder: LocalStore) -> None:
    shipped(folder, [1])
    other = FeedbackParts(folder, "shop")
    other.append([event(1, environment="shop")])
    erased = {tombstone_of("stream", "shop/hall")}
    assert recent(collect_parts(FeedbackParts(folder, "door"), None, mining(), erased)) == ["q1"]
    assert collect_parts(other, None, mining(), erased).questions == {}
    everything = collect_store(folder, mining(), erased)
    assert (list(everything.questions), everything.watermark.parts) == (["door"], 2)  # type: ignore[union-attr]


def test_a_store_without_parts_is_the_users_mistake(folder: LocalStore) -> None:
    with pytest.raises(UserError, match="the store holds no parts"):
        collect_store(folder, mining())


def test_a_file_that_was_kept_from_another_watermark_is_refused(folder: LocalStore, tmp_path: Path) -> None:
    parts = shipped(folder, [1], [2], [3])
    marks = [part.watermark for part in parts.read()]
    collect_parts(parts, marks[1], mining(1), kept=tmp_path / "kept.jsonl")
    for since in (marks[0], None, marks[1].model_copy(update={"sha256": "0" * 64})):
        with pytest.raises(UserError, match="was not kept by a collection from this watermark"):
            collect(tmp_path / "kept.jsonl", since, mining(1))


@pytest.mark.parametrize("harm", ["line", "order", "head"])
def test_a_damaged_kept_file_is_refused(folder: LocalStore, tmp_path: Path, harm: str) -> None:
    parts, kept = shipped(folder, [1], [2], [3]), tmp_path / "kept.jsonl"
    collect_parts(parts, None, mining(), kept=kept)
    lines = kept.read_text().splitlines(keepends=True)
    bad = {"line": [lines[0], "{\n", *lines[1:]], "order": [*lines[:3], *lines[5:]], "head": [lines[0][:50] + "\n"]}
    kept.write_text("".join(bad[harm]))
    with pytest.raises(UserError, match=r"kept\.jsonl"):
        collect(kept, None, mining())


def test_from_a_recent_watermark_of_many_parts_few_are_read(folder: LocalStore) -> None:
    parts = FeedbackParts(folder, "door")
    for number in range(3000):
        parts.append([event(number)])
    since = parts.end()
    parts.append([event(5000), event(7)])
    counting = Counting(folder)
    collection = collect_parts(FeedbackParts(cast(Store, counting), "door"), since, mining(10))
    assert (new(collection), len(recent(collection))) == (["q5000"], 10)
    assert counting.calls["list"] == 0
    assert len(counting.read) < 120
    assert counting.calls["put_if_absent"] == 0


def test_the_index_is_made_again_where_it_is_lost(folder: LocalStore) -> None:
    parts = FeedbackParts(folder, "door")
    for number in range(70):
        parts.append([event(number)])
    since = parts.end()
    kept = {key: folder.get(key).data for key in folder.list("feedback-index/")}
    assert list(kept) == [f"feedback-index/door/1/{n:020}" for n in range(2)]
    for key in kept:
        folder.delete(key)
    FeedbackParts(folder, "door").append([event(3)])
    assert new(collect_parts(FeedbackParts(folder, "door"), since, mining(5))) == []
    assert {key: folder.get(key).data for key in folder.list("feedback-index/")} == kept


def test_nights_between_writers_who_ship_again_count_each_event_once(folder: LocalStore) -> None:
    rng, since, counted = random.Random(5), None, []
    parts = FeedbackParts(folder, "door")
    sent: list[int] = []
    for night in range(25):
        for _ in range(rng.randrange(8)):
            fresh = [len(set(sent)) + n for n in range(rng.randrange(1, 4))]
            again = rng.sample(sent, min(len(sent), rng.randrange(3)))
            batch = [*again, *fresh]
            rng.shuffle(batch)
            FeedbackParts(folder, "door").append([event(n) for n in batch])
            sent += batch
        collection = collected(parts, since, recent=20)
        counted += new(collection)
        since = cast(PartsWatermark, collection.watermark)
        assert len(recent(collection)) == min(20, len(set(sent))), night
    assert sorted(counted) == sorted(f"q{n}" for n in set(sent))
