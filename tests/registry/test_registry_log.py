"""The promotion log: every move with who, when, from what and on what evidence; whatever is done to it is found and named."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry_parts import NOW, OTHER_POLICY, POLICY, VERDICT, objects, overwrite, promote, publish_light

from taskmem import registry
from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.registry import Pointer, Promotion, champion, promotion_log, rollback
from taskmem.registry.objects import to_bytes
from taskmem.store import Conflict, LocalStore

LOG = "registry/door/log/"


@pytest.fixture
def moved(published: LocalStore) -> LocalStore:
    """Three promotions and a rollback: v1, v2, v3, v2."""
    pointer = None
    for number in (1, 2, 3):
        pointer = promote(published, "door", f"v{number}", pointer, f'{{"wins": {number}}}'.encode(), f"Ada {number}")
    rollback(published, "door", "Bo", NOW + timedelta(hours=1), reason="it forgets the keys")
    return published


def chained(store: LocalStore) -> list[str]:
    """The keys of the log's entries, oldest first, read without the registry."""
    entries = {key: Promotion.model_validate_json(store.get(key).data) for key in store.list(LOG)}
    return sorted(entries, key=lambda key: entries[key].number)


def test_before_the_first_promotion_the_log_is_empty(published: LocalStore) -> None:
    assert promotion_log(published, "door") == []


def test_the_log_says_who_moved_what_when_and_on_what_evidence(moved: LocalStore) -> None:
    log = promotion_log(moved, "door")
    assert [(e.number, e.action, e.replaced_version, e.version, e.by) for e in log] == [
        (1, "promote", None, "v1", "Ada 1"),
        (2, "promote", "v1", "v2", "Ada 2"),
        (3, "promote", "v2", "v3", "Ada 3"),
        (4, "rollback", "v3", "v2", "Bo"),
    ]
    assert [e.verdict for e in log] == [sha256_bytes(f'{{"wins": {n}}}') for n in (1, 2, 3, 2)]
    assert [e.manifest for e in log] == [
        sha256_bytes(moved.get(f"registry/door/versions/v{n}").data) for n in (1, 2, 3, 2)
    ]
    assert [e.time for e in log] == [NOW] * 3 + [NOW + timedelta(hours=1)]
    assert [e.reason for e in log] == [None, None, None, "it forgets the keys"]
    assert {e.policy for e in log} == {POLICY}


def test_each_entry_names_the_bytes_of_the_one_before_and_the_pointer_those_of_the_last(moved: LocalStore) -> None:
    keys = chained(moved)
    digests = [sha256_bytes(moved.get(key).data) for key in keys]
    assert [f"{LOG}{digest}" for digest in digests] == keys
    assert [e.before for e in promotion_log(moved, "door")] == [None, *digests[:-1]]
    pointer = champion(moved, "door")
    assert pointer is not None
    assert pointer.entry == digests[-1]


def test_promoting_the_champion_again_leaves_no_entry(moved: LocalStore) -> None:
    before = objects(moved)
    promote(moved, "door", "v2", champion(moved, "door"), b'{"another": 1}', "Cy")
    assert objects(moved) == before


def test_environments_have_logs_of_their_own(moved: LocalStore, tmp_path: Path) -> None:
    publish_light(moved, tmp_path / "adapter-0", "room")
    promote(moved, "room", "v1", None)
    assert [(e.environment, e.number) for e in promotion_log(moved, "room")] == [("room", 1)]
    assert len(promotion_log(moved, "door")) == 4


def test_a_time_of_any_zone_stays_the_same_moment(published: LocalStore) -> None:
    there = datetime(2026, 3, 1, 23, 15, 1, 250, tzinfo=timezone(timedelta(hours=9)))
    promote(published, "door", "v1", None, time=there)
    assert promotion_log(published, "door")[0].time == there.astimezone(UTC)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"by": ""}, "by: "),
        ({"by": " "}, "by: "),
        ({"by": "Ada\nBo"}, "by: "),
        ({"by": "\ud800"}, "by: "),
        ({"by": "x" * 201}, "by: "),
        ({"reason": ""}, "reason: "),
        ({"reason": "one\ntwo"}, "reason: "),
        ({"reason": "x" * 501}, "reason: "),
        ({"time": datetime(2026, 1, 1)}, "time: "),
    ],
    ids=str,
)
def test_what_cannot_be_recorded_is_the_users_mistake_and_moves_nothing(
    published: LocalStore, changes: dict[str, Any], says: str
) -> None:
    given_: dict[str, Any] = {"by": "Ada", "time": NOW, "reason": None, **changes}
    with pytest.raises(UserError, match=rf"^log of environment door: {says}.*; say it in one short line$") as caught:
        registry.promote(published, "door", "v1", None, VERDICT, **given_)
    assert "\n" not in str(caught.value)
    assert champion(published, "door") is None
    assert list(published.list(LOG)) == []


def test_the_entry_of_somebody_who_lost_is_no_part_of_the_log(moved: LocalStore) -> None:
    log = promotion_log(moved, "door")
    lost = log[-1].model_copy(update={"by": "Cy", "version": "v1"})
    data = to_bytes(lost)
    moved.put_if_absent(f"{LOG}{sha256_bytes(data)}", data)
    assert promotion_log(moved, "door") == log
    pointer = champion(moved, "door")
    assert promote(moved, "door", "v1", pointer).previous == "v2"
    assert [e.by for e in promotion_log(moved, "door")] == [*(e.by for e in log), "Ada"]


class Forgetful:
    """A store that loses its own answer, tries again, and takes its own write for somebody else's."""

    def __init__(self, store: LocalStore, meanwhile: Any = None) -> None:
        self._store, self._meanwhile = store, meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def compare_and_swap(self, key: str, data: bytes, expected: str | None) -> str:
        etag = self._store.compare_and_swap(key, data, expected)
        if self._meanwhile:
            self._meanwhile()
        raise Conflict(key, etag)


def test_a_promotion_whose_answer_was_lost_is_known_as_one_s_own(published: LocalStore) -> None:
    forgetful: Any = Forgetful(published)
    pointer = promote(forgetful, "door", "v1", None)
    assert pointer == champion(published, "door")
    assert rollback(forgetful, "door", "Bo", NOW, "none").version is None
    assert len(promotion_log(published, "door")) == 2


def test_a_promotion_whose_answer_was_lost_has_won_its_step_even_if_another_followed(published: LocalStore) -> None:
    forgetful: Any = Forgetful(published, lambda: promote(published, "door", "v2", champion(published, "door")))
    pointer = promote(forgetful, "door", "v1", None)
    now = champion(published, "door")
    assert now is not None
    assert (pointer.version, now.version, now.previous) == ("v1", "v2", "v1")
    assert [e.version for e in promotion_log(published, "door")] == ["v1", "v2"]


@pytest.mark.parametrize("place", range(4))
def test_a_missing_entry_is_named(moved: LocalStore, place: int) -> None:
    key = chained(moved)[place]
    moved.delete(key)
    told = f"^{key}: the entry of the log of registry/door/champion is missing; restore the object from a backup$"
    with pytest.raises(UserError, match=told):
        promotion_log(moved, "door")


@pytest.mark.parametrize("place", range(4))
def test_a_changed_entry_is_named(moved: LocalStore, place: int) -> None:
    key = chained(moved)[place]
    overwrite(moved, key, moved.get(key).data.replace(b'"number": ', b'"number": 1'))
    with pytest.raises(UserError, match=f"^{key}: the entry of the log of registry/door/champion is damaged; restore"):
        promotion_log(moved, "door")


def test_two_swapped_entries_are_named(moved: LocalStore) -> None:
    _, one, two, _ = chained(moved)
    first, second = moved.get(one).data, moved.get(two).data
    overwrite(moved, one, second)
    overwrite(moved, two, first)
    with pytest.raises(UserError, match=f"^{two}: .* is damaged"):
        promotion_log(moved, "door")


def forge(store: LocalStore, entry: Promotion) -> str:
    """Store an entry as its own digest says."""
    data = to_bytes(entry)
    digest = sha256_bytes(data)
    store.put_if_absent(f"{LOG}{digest}", data)
    return digest


@pytest.mark.parametrize(
    "change",
    [
        {"number": 7},
        {"replaced_version": "v1"},
        {"before": None},
        {"before": None, "replaced_version": None},
        {"environment": "room"},
    ],
    ids=str,
)
def test_a_forged_entry_that_does_not_fit_its_place_is_found(moved: LocalStore, change: dict[str, Any]) -> None:
    last = promotion_log(moved, "door")[-1].model_copy(update=change)
    digest = forge(moved, last)
    pointer = champion(moved, "door")
    assert pointer is not None
    forged = pointer.model_copy(update={"entry": digest, "previous": last.replaced_version})
    overwrite(moved, "registry/door/champion", to_bytes(forged))
    with pytest.raises(UserError, match=rf"^{LOG}[0-9a-f]{{64}}: .*restore the object from a backup$"):
        promotion_log(moved, "door")


def test_a_first_entry_that_replaces_something_is_found(published: LocalStore) -> None:
    pointer = promote(published, "door", "v1", None)
    (entry,) = promotion_log(published, "door")
    digest = forge(published, entry.model_copy(update={"replaced_version": "v2"}))
    forged = pointer.model_copy(update={"entry": digest, "previous": "v2"})
    overwrite(published, "registry/door/champion", to_bytes(forged))
    with pytest.raises(UserError, match=f"^{LOG}{digest}: entry 1 does not belong at this place"):
        promotion_log(published, "door")


@pytest.mark.parametrize(
    "change",
    [{"version": "v1"}, {"previous": None}, {"policy": OTHER_POLICY}, {"verdict": "c" * 64}],
    ids=str,
)
def test_a_pointer_that_says_something_else_than_its_entry_is_named(moved: LocalStore, change: dict[str, Any]) -> None:
    pointer = champion(moved, "door")
    assert pointer is not None
    overwrite(moved, "registry/door/champion", to_bytes(pointer.model_copy(update=change)))
    told = f"^registry/door/champion: says something else than its log's entry {pointer.entry}; restore the object"
    for read in (champion, promotion_log):
        with pytest.raises(UserError, match=told):
            read(moved, "door")


def test_on_a_damaged_log_s_last_entry_nothing_is_built(moved: LocalStore) -> None:
    pointer = champion(moved, "door")
    moved.delete(chained(moved)[-1])
    before = objects(moved)
    with pytest.raises(UserError, match="is missing; restore the object"):
        promote(moved, "door", "v1", pointer)
    assert objects(moved) == before


@pytest.mark.parametrize(
    "change",
    [
        {"version": None},
        {"policy": None},
        {"verdict": None},
        {"manifest": None},
        {"action": "retire"},
        {"version": None, "policy": None, "verdict": None, "manifest": None},
        {"number": 0},
    ],
    ids=str,
)
def test_an_entry_without_its_evidence_is_none(moved: LocalStore, change: dict[str, Any]) -> None:
    entry = promotion_log(moved, "door")[-1].model_dump()
    with pytest.raises(ValueError, match=r"policy, a verdict and a manifest|to retire|greater than"):
        Promotion.model_validate({**entry, **change})


STEPS = st.lists(st.tuples(st.sampled_from(["promote", "back", "none"]), st.integers(1, 3)), max_size=10)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_whatever_is_done_the_log_tells_it_and_ends_where_the_pointer_is(
    published: LocalStore, steps: list[tuple[str, int]]
) -> None:
    published.delete("registry/door/champion")
    told: list[str | None] = []
    pointer: Pointer | None = None
    for action, number in steps:
        if action == "promote":
            pointer = promote(published, "door", f"v{number}", pointer)
        elif pointer is not None:
            pointer = rollback(published, "door", "Bo", NOW, "none" if action == "none" else told[0] or "none")
        now = pointer.version if pointer else None
        if pointer is not None and (not told or told[-1] != now):
            told.append(now)
        log = promotion_log(published, "door")
        assert [entry.version for entry in log] == told
        assert [entry.replaced_version for entry in log] == [None, *told][: len(told)]
        assert champion(published, "door") == pointer
