"""Rolling back: to the champion before, to a named one, to no adapter."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry_parts import NOW, objects, overwrite, promote, publish_light, write_adapter

from taskmem.errors import UserError
from taskmem.registry import Pointer, champion, promotion_log, rollback
from taskmem.store import LocalStore


@pytest.fixture
def store(tmp_path: Path, published: LocalStore) -> LocalStore:
    """v1 to v4 of `door`; v1, v2 and v3 have been champion, v3 is."""
    publish_light(published, write_adapter(tmp_path / "adapter-3", 3))
    pointer = None
    for number in (1, 2, 3):
        pointer = promote(published, "door", f"v{number}", pointer, f'{{"wins": {number}}}'.encode())
    return published


def back(store: LocalStore, to: str | None = None) -> Pointer:
    return rollback(store, "door", "Bo", NOW, to)


def test_the_champion_before_comes_back_with_its_evidence(store: LocalStore) -> None:
    pointer, log = back(store), promotion_log(store, "door")
    assert (pointer.version, pointer.previous, pointer.name) == ("v2", "v3", "door@v2")
    assert (pointer.policy, pointer.verdict) == (log[1].policy, log[1].verdict)
    assert champion(store, "door") == pointer
    assert (log[-1].action, log[-1].manifest) == ("rollback", log[1].manifest)


def test_rolling_back_again_goes_further_back_and_ends_at_no_adapter(store: LocalStore) -> None:
    assert [back(store).version for _ in range(3)] == ["v2", "v1", None]
    with pytest.raises(UserError, match=r"^environment door: has no adapter already; there is nothing before that$"):
        back(store)
    assert [e.action for e in promotion_log(store, "door")][-3:] == ["rollback", "rollback", "retire"]


def test_what_was_rolled_back_does_not_come_back_by_itself(store: LocalStore) -> None:
    pointer = promote(store, "door", "v4", back(store))
    assert pointer.previous == "v2"
    assert [back(store).version for _ in range(2)] == ["v2", "v1"]


def test_a_named_champion_comes_back_and_the_steps_before_it_too(store: LocalStore) -> None:
    assert back(store, "v1").version == "v1"
    assert back(store, "v3").version == "v3"
    assert [back(store).version for _ in range(2)] == ["v1", None]


def test_a_version_that_was_promoted_twice_comes_back_on_its_last_verdict(store: LocalStore) -> None:
    promote(store, "door", "v2", promote(store, "door", "v1", champion(store, "door"), b'{"wins": 9}'))
    verdicts = [entry.verdict for entry in promotion_log(store, "door") if entry.version == "v1"]
    assert back(store, "v1").verdict == verdicts[-1] != verdicts[0]


def test_no_adapter_is_no_version_no_policy_and_no_verdict(store: LocalStore) -> None:
    pointer = back(store, "none")
    assert (pointer.version, pointer.policy, pointer.verdict, pointer.previous) == (None, None, None, "v3")
    assert pointer.name is None
    assert champion(store, "door") == pointer
    entry = promotion_log(store, "door")[-1]
    assert (entry.action, entry.version, entry.replaced_version) == ("retire", None, "v3")


def test_after_no_adapter_a_challenger_is_promoted_against_that_very_pointer(store: LocalStore) -> None:
    pointer = back(store, "none")
    with pytest.raises(UserError, match="the champion has moved on from none, it is none"):
        promote(store, "door", "v4", None)
    after = promote(store, "door", "v4", pointer)
    assert (after.version, after.previous) == ("v4", None)
    assert back(store).version is None
    assert back(store, "v3").version == "v3"


@pytest.mark.parametrize("to", ["v3", "none"])
def test_an_environment_that_is_there_already_stays_as_it_is(store: LocalStore, to: str) -> None:
    pointer = back(store, to)
    before = objects(store)
    assert back(store, to) == pointer
    assert objects(store) == before


def test_only_a_version_that_has_been_champion_comes_back(store: LocalStore) -> None:
    before = objects(store)
    for version in ("v4", "v5"):
        told = rf"^door@{version}: has never been champion; promote it on a verdict instead$"
        with pytest.raises(UserError, match=told):
            back(store, version)
    with pytest.raises(UserError, match=r"^version 'latest': not a safe name"):
        back(store, "latest")
    with pytest.raises(UserError, match=r"^environment room: has never had a champion; there is nothing to roll back$"):
        rollback(store, "room", "Bo", NOW)
    assert objects(store) == before


def test_only_a_whole_version_comes_back(store: LocalStore) -> None:
    key = "registry/door/versions/v2"
    whole = store.get(key).data
    overwrite(store, key, whole.replace(b'"seed": 0', b'"seed": 1'))
    with pytest.raises(UserError, match=f"^{key}: not the manifest that was published; restore the object"):
        back(store)
    overwrite(store, key, whole)
    files = [key for key in store.list("registry/door/files/") if key.encode()[-64:] in whole]
    store.delete(files[0])
    with pytest.raises(UserError, match=rf"^{files[0]}: .* of door@v2 is missing"):
        back(store)
    pointer = champion(store, "door")
    assert pointer is not None
    assert pointer.version == "v3"


def test_no_adapter_needs_nothing_but_the_log_s_last_entry(store: LocalStore) -> None:
    pointer = champion(store, "door")
    assert pointer is not None
    needed = {"registry/door/champion", f"registry/door/log/{pointer.entry}"}
    for key in list(store.list("")):
        if key not in needed:
            store.delete(key)
    assert back(store, "none").version is None


def test_who_rolls_back_says_so_in_one_line(store: LocalStore) -> None:
    with pytest.raises(UserError, match=r"^log of environment door: by: .*; say it in one short line$"):
        rollback(store, "door", "Ada\nBo", NOW)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.integers(0, 4), max_size=12))
def test_a_rollback_undoes_the_last_promotion_that_was_not_undone(store: LocalStore, steps: list[int]) -> None:
    store.delete("registry/door/champion")
    undone: list[str] = []
    for step in steps:
        pointer = champion(store, "door")
        if step > 0:
            if not undone or undone[-1] != f"v{step}":
                undone.append(f"v{step}")
            promote(store, "door", f"v{step}", pointer)
        elif undone:
            undone.pop()
            rollback(store, "door", "Bo", NOW)
        now = champion(store, "door")
        assert (now.version if now else None) == (undone[-1] if undone else None)
