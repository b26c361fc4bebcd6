"""A tombstone is written first and tells what became of it, once."""

from datetime import timedelta

import pytest
from erasure_texts import NEIGHBOUR, OURS, USER, WHEN, WHO

from taskmem.erasure import erased_objects, tombstones
from taskmem.erasure.target import Target
from taskmem.erasure.tombstones import Count, Stone, read_tombstone
from taskmem.errors import UserError
from taskmem.feedback.collection import tombstone_of
from taskmem.store import LocalStore

TARGET = Target("stream", OURS)
FEW, MORE = {"logs": Count(records=1)}, {"logs": Count(records=3, files=2)}


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    return LocalStore(tmp_path_factory.mktemp("store"))


def stone(store: LocalStore, **changes: object) -> Stone:
    return Stone(store, TARGET, **{"by": WHO, "time": WHEN, "reason": None, **changes})  # type: ignore[arg-type]


def test_from_the_first_moment_collectors_know_of_it(store: LocalStore) -> None:
    assert tombstones(store) == set()
    stone(store)
    Stone(store, Target("source", USER), WHO, WHEN, None)
    assert tombstones(store) == {tombstone_of("stream", OURS), tombstone_of("source", USER)}
    assert read_tombstone(store, Target("source", NEIGHBOUR)) is None


def test_what_a_killed_erasure_finds_again_is_not_counted_twice(store: LocalStore) -> None:
    stone(store).begin(MORE, ["door@v1"], ["a"], ["git"])
    again = stone(store, by="Grace", time=WHEN + timedelta(days=1))
    again.begin(FEW, ["door@v2"], [], ["git", "backups"])
    again.finish()
    found = read_tombstone(store, TARGET)
    assert found is not None
    assert (found.state, found.by, found.time) == ("erased", WHO, WHEN)
    assert found.erased == MORE
    assert found.adapters == ("door@v1", "door@v2")
    assert found.remaining == ("git", "backups")
    assert erased_objects(store) == {"a"}


def test_what_came_since_is_added(store: LocalStore) -> None:
    first = stone(store)
    first.begin(FEW, [], ["a"])
    first.finish()
    second = stone(store)
    second.begin(MORE, [], ["b"])
    assert second.now.state == "erasing"
    second.finish()
    assert second.now.erased == {"logs": Count(records=4, files=2)}
    assert erased_objects(store) == {"a", "b"}


def test_with_nothing_left_it_stays_as_it_is(store: LocalStore) -> None:
    first = stone(store)
    first.begin(FEW, ["door@v1"])
    first.finish()
    before = {key: store.get(key) for key in store.list("")}
    second = stone(store, reason="again")
    second.begin({"logs": Count()}, ["door@v1"], remaining=["backups"])
    assert second.now.state == "erased"
    assert {key: store.get(key) for key in store.list("")} == before


def test_of_two_that_erase_the_same_at_once_one_gives_way(store: LocalStore) -> None:
    first, second = stone(store), stone(store)
    first.begin(FEW)
    with pytest.raises(UserError, match="somebody else erases the same at this time"):
        second.begin(FEW)


def test_a_damaged_tombstone_is_named(store: LocalStore) -> None:
    stone(store)
    key = f"tombstones/{TARGET.digest}"
    store.compare_and_swap(key, b"{}", store.get(key).etag)
    with pytest.raises(UserError, match=f"{key}: no Tombstone"):
        stone(store)
