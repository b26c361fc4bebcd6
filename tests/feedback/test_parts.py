"""Parts in an object store: one order, no gap, never changed, whoever ships and whatever fails."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
from feedback_parts import Counting, event, event_ids, shipped
from registry_parts import FaultError, Weather

from taskmem.errors import UserError
from taskmem.feedback import FeedbackParts, PartsWatermark
from taskmem.feedback.parts import START, environments_of
from taskmem.store import LocalStore, Store

WRITERS, EACH = 8, 8


def test_what_is_shipped_is_read_in_its_order(store: Store) -> None:
    parts = shipped(store, [1, 2], [3], [4, 5, 6])
    assert event_ids(parts) == [["e1", "e2"], ["e3"], ["e4", "e5", "e6"]]
    assert list(store.list("feedback/")) == [f"feedback/door/{n:020}" for n in (1, 2, 3)]
    assert environments_of(store) == ["door"]
    # a reader elsewhere, and a writer that starts anew
    FeedbackParts(store, "door").append([event(7)])
    assert event_ids(FeedbackParts(store, "door"))[-1] == ["e7"]


def test_from_a_watermark_only_later_parts_are_read(store: Store) -> None:
    parts = shipped(store, [1], [2])
    since = parts.end()
    assert list(parts.read(since)) == []
    shipped(store, [3], [4])
    assert [part.header.number for part in parts.read(since)] == [3, 4]
    assert [part.header.number for part in parts.read(until=since)] == [1, 2]
    assert parts.end().parts == 4


def test_nothing_shipped_is_nothing_there(store: Store) -> None:
    parts = FeedbackParts(store, "door")
    parts.append([])
    assert (parts.end(), list(parts.read()), list(store.list("feedback/"))) == (START, [], [])


def test_tenants_share_no_part(store: Store) -> None:
    shipped(store, [1])
    FeedbackParts(store, "doors").append([event(1, environment="doors")])
    assert event_ids(FeedbackParts(store, "door")) == [["e1"]]
    assert environments_of(store) == ["door", "doors"]
    with pytest.raises(UserError, match="environment door: event e9 names another; ship it as that one's"):
        FeedbackParts(store, "door").append([event(8), event(9, environment="doors")])
    assert FeedbackParts(store, "door").end().parts == 1


@pytest.mark.parametrize("name", ["", "..", "../door", "a/b", "a b", "x" * 129])
def test_an_unsafe_name_has_no_parts(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="not a safe name"):
        FeedbackParts(LocalStore(tmp_path), name)


def test_another_logs_watermark_is_refused(tmp_path: Path) -> None:
    parts, others = shipped(LocalStore(tmp_path / "a"), [1], [2]), shipped(LocalStore(tmp_path / "b"), [1], [3], [4])
    for since in (others.end(), PartsWatermark(parts=2, sha256="0" * 64), PartsWatermark(parts=0, sha256="0" * 64)):
        with pytest.raises(UserError, match="the parts up to the watermark are not those it was taken from"):
            list(parts.read(since))
    # one part in, both were the same
    first = next(iter(others.read())).watermark
    assert [part.header.number for part in parts.read(first)] == [2]


@pytest.mark.parametrize("harm", ["missing", "moved", "changed", "no header", "empty"])
def test_a_damaged_order_is_told_and_nothing_is_taken_from_it(tmp_path: Path, harm: str) -> None:
    store = LocalStore(tmp_path)
    parts = shipped(store, [1], [2], [3])
    key, data = parts.key(2), store.get(parts.key(2)).data
    others = shipped(LocalStore(tmp_path / "others"), [7], [8])
    store.delete(key)
    if harm != "missing":
        other = LocalStore(tmp_path / "others").get(others.key(2)).data
        bad = {"moved": store.get(parts.key(3)).data, "changed": other, "no header": data.split(b"\n", 1)[1]}
        store.put_if_absent(key, bad.get(harm, b""))
    with pytest.raises(UserError, match=r"feedback/door/0{19}[23]: .*; restore the object from a backup"):
        list(parts.read())


def test_writers_at_once_lose_nothing_double_nothing_and_leave_no_gap(store: Store) -> None:
    def work(writer: int) -> None:
        parts = FeedbackParts(store, "door")
        for number in range(EACH):
            parts.append([event(100 * writer + number)])

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(work, range(WRITERS)))
    found = [name for names in event_ids(FeedbackParts(store, "door")) for name in names]
    assert sorted(found) == sorted(f"e{100 * w + n}" for w in range(WRITERS) for n in range(EACH))
    for writer in range(WRITERS):
        own = [f"e{100 * writer + n}" for n in range(EACH)]
        assert [name for name in found if name in own] == own


def test_a_store_that_fails_a_fifth_of_all_calls_and_answers_late_loses_nothing(tmp_path: Path) -> None:
    calm = LocalStore(tmp_path)

    def work(writer: int) -> int:
        faults = 0
        stormy = cast(Store, Weather(calm, str(writer), 0.2, 0.002))
        parts = FeedbackParts(stormy, "door")
        for number in range(EACH):
            while True:
                try:
                    parts.append([event(100 * writer + number)])
                    break
                except FaultError:
                    faults += 1
        return faults

    with ThreadPoolExecutor(WRITERS) as pool:
        faults = sum(pool.map(work, range(WRITERS)))
    assert faults > 20
    names = [name for names in event_ids(FeedbackParts(calm, "door")) for name in names]
    assert set(names) == {f"e{100 * w + n}" for w in range(WRITERS) for n in range(EACH)}
    for writer in range(WRITERS):
        first = list(dict.fromkeys(name for name in names if name in {f"e{100 * writer + n}" for n in range(EACH)}))
        assert first == [f"e{100 * writer + n}" for n in range(EACH)]


def test_the_end_is_found_without_reading_the_parts(tmp_path: Path, unsynced: None) -> None:
    store = LocalStore(tmp_path)
    parts = FeedbackParts(store, "door")
    for number in range(600):
        parts.append([event(number)])
    counting = Counting(store)
    reader = FeedbackParts(cast(Store, counting), "door")
    assert reader.end() == parts.end()
    assert len(counting.read) <= 2 * 11
    counting.read.clear()
    parts.append([event(600)])
    assert [part.header.number for part in reader.read(PartsWatermark.model_validate(parts.end()))] == []
    assert len(counting.read) <= 6
