"""The policy that is served now, what may be served on it, and how environments come over to it."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from registry_parts import NOW, OTHER_POLICY, POLICY, objects, overwrite, promote, publish_light, write_adapter

from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.registry import (
    CurrentPolicy,
    PolicyMovedError,
    advance,
    champion,
    current_policy,
    eligible,
    environments,
    migrate,
    policy_log,
    rollback,
    serving_adapter,
    set_policy,
    standings,
    versions,
    watermark,
)
from taskmem.registry.objects import to_bytes
from taskmem.store import LocalStore

THIRD = "9" * 64
MARK: dict[str, int | str] = {"offset": 120, "lines": 3, "sha256": "a" * 64}
LATER: dict[str, int | str] = {"offset": 900, "lines": 9, "sha256": "b" * 64}


def serve(store: LocalStore, policy: str, expected: CurrentPolicy | None = None) -> CurrentPolicy:
    return set_policy(store, policy, "Ada", NOW, expected)


@pytest.fixture
def site(tmp_path: Path, published: LocalStore) -> LocalStore:
    """Champions of `POLICY` for door and hall, none for yard; all have used feedback."""
    for name in ("hall", "yard"):
        publish_light(published, tmp_path / "adapter-0", name)
    promote(published, "door", "v2", None)
    promote(published, "hall", "v1", None)
    for name in ("door", "hall", "yard"):
        advance(published, name, MARK, None)
    return published


def adapt(store: LocalStore, folder: Path, environment: str, policy: str, promotes: bool = True) -> None:
    """What a night leaves: a version of `policy`, perhaps champion, and a watermark that has moved on."""
    adapter = write_adapter(folder / f"{environment}-{policy[:4]}", 7, policy)
    version = publish_light(store, adapter, environment, policy=policy).version
    if promotes:
        promote(store, environment, version, champion(store, environment))
    advance(store, environment, LATER, watermark(store, environment))


def served(store: LocalStore) -> dict[str, str | None]:
    known = {name: serving_adapter(store, name) for name in environments(store)}
    assert {one.environment: one.served for one in standings(store)} == {
        name: manifest.version if manifest else None for name, manifest in known.items()
    }
    return {name: manifest.version if manifest else None for name, manifest in known.items()}


def test_a_policy_is_set_with_who_and_when(published: LocalStore) -> None:
    assert current_policy(published) is None
    assert policy_log(published) == []
    first = serve(published, POLICY)
    second = serve(published, OTHER_POLICY, first)
    assert current_policy(published) == second
    log = policy_log(published)
    assert [(e.number, e.replaced, e.policy, e.by, e.time) for e in log] == [
        (1, None, POLICY, "Ada", NOW),
        (2, POLICY, OTHER_POLICY, "Ada", NOW),
    ]
    assert log[1].before == first.entry == sha256_bytes(published.get(f"policies/log/{first.entry}").data)


def test_setting_the_policy_that_is_served_changes_nothing(published: LocalStore) -> None:
    first = serve(published, POLICY)
    before = objects(published)
    assert set_policy(published, POLICY, "Bo", NOW, None) == first
    assert objects(published) == before


def test_a_policy_that_moved_meanwhile_is_not_replaced(published: LocalStore) -> None:
    first = serve(published, POLICY)
    serve(published, OTHER_POLICY, first)
    before = objects(published)
    told = "^policies/current: the policy has moved on from aaaaaaaaaaaa, it is bbbbbbbbbbbb; look at it"
    with pytest.raises(PolicyMovedError, match=told) as caught:
        serve(published, THIRD, first)
    assert caught.value.current == current_policy(published)
    assert objects(published) == before


@pytest.mark.parametrize("digest", ["", "a" * 63, "A" * 64, "../current"])
def test_a_policy_is_named_by_its_digest(published: LocalStore, digest: str) -> None:
    with pytest.raises(UserError, match=r"^policy '.*': not a safe name; use the hex SHA-256 of one$"):
        serve(published, digest)
    assert current_policy(published) is None


def test_of_racing_policies_exactly_one_is_served_next(published: LocalStore) -> None:
    ready, expected = threading.Barrier(8), serve(published, POLICY)

    def work(number: int) -> str:
        ready.wait()
        try:
            return serve(published, f"{number:064x}", expected).entry
        except PolicyMovedError:
            return "moved"

    with ThreadPoolExecutor(8) as pool:
        became = list(pool.map(work, range(8)))
    (won,) = [entry for entry in became if entry != "moved"]
    now = current_policy(published)
    assert now is not None
    assert now.entry == won
    assert len(policy_log(published)) == 2


def test_a_damaged_policy_is_named_and_serves_nobody(site: LocalStore) -> None:
    pointer = serve(site, POLICY)
    overwrite(site, "policies/current", to_bytes(pointer.model_copy(update={"policy": OTHER_POLICY})))
    for read in (current_policy, policy_log, standings, lambda store: serving_adapter(store, "door")):
        with pytest.raises(UserError, match=r"^policies/current: says something else than its log's entry "):
            read(site)
    site.delete(f"policies/log/{pointer.entry}")
    with pytest.raises(UserError, match=f"^policies/log/{pointer.entry}: the entry of the log .* is missing"):
        current_policy(site)


@pytest.mark.parametrize(
    ("policy", "set_to", "may"),
    [(POLICY, None, True), (POLICY, POLICY, True), (POLICY, OTHER_POLICY, False), (None, None, False)],
)
def test_an_adapter_may_be_served_on_its_own_policy_alone(policy: str | None, set_to: str | None, may: bool) -> None:
    current = CurrentPolicy(entry="e" * 64, policy=set_to) if set_to else None
    assert eligible(policy, current) is may


def test_a_new_policy_is_served_without_the_old_one_s_adapters(site: LocalStore) -> None:
    assert served(site) == {"door": "v2", "hall": "v1", "yard": None}
    first = serve(site, POLICY)
    assert served(site) == {"door": "v2", "hall": "v1", "yard": None}
    second = serve(site, OTHER_POLICY, first)
    assert served(site) == {"door": None, "hall": None, "yard": None}
    serve(site, POLICY, second)
    assert served(site) == {"door": "v2", "hall": "v1", "yard": None}


def test_an_environment_that_was_rolled_back_to_no_adapter_is_served_none(site: LocalStore) -> None:
    rollback(site, "door", "Bo", NOW, "none")
    assert served(site) == {"door": None, "hall": "v1", "yard": None}
    assert serving_adapter(site, "cellar") is None


def test_a_manifest_that_is_not_the_promoted_one_is_not_served(site: LocalStore) -> None:
    key = "registry/door/versions/v2"
    overwrite(site, key, site.get(key).data.replace(b'"seed": 0', b'"seed": 1'))
    with pytest.raises(UserError, match=f"^{key}: not the manifest that was published; restore"):
        serving_adapter(site, "door")


def test_a_migration_frees_the_feedback_of_those_whose_champion_is_left_behind(site: LocalStore) -> None:
    known = {one.environment: one for one in migrate(site, OTHER_POLICY, "Ada", NOW)}
    assert [name for name, one in known.items() if one.waiting] == ["door", "hall"]
    assert {name: watermark(site, name) for name in known} == {"door": {}, "hall": {}, "yard": MARK}
    assert {name: one.used for name, one in known.items()} == {"door": {}, "hall": {}, "yard": MARK}
    assert [e.by for e in policy_log(site)] == ["Ada"]


def test_an_environment_whose_champion_is_of_the_new_policy_already_keeps_its_watermark(
    site: LocalStore, tmp_path: Path
) -> None:
    adapt(site, tmp_path, "hall", OTHER_POLICY)
    migrate(site, OTHER_POLICY, "Ada", NOW)
    assert (watermark(site, "door"), watermark(site, "hall")) == ({}, LATER)
    assert served(site) == {"door": None, "hall": "v2", "yard": None}


def test_migrating_again_changes_nothing_even_after_a_night_that_promoted_nobody(
    site: LocalStore, tmp_path: Path
) -> None:
    migrate(site, OTHER_POLICY, "Ada", NOW)
    before = objects(site)
    migrate(site, OTHER_POLICY, "Bo", NOW)
    assert objects(site) == before
    adapt(site, tmp_path, "door", OTHER_POLICY, promotes=False)
    adapt(site, tmp_path, "hall", OTHER_POLICY)
    migrate(site, OTHER_POLICY, "Bo", NOW)
    assert (watermark(site, "door"), watermark(site, "hall")) == (LATER, LATER)
    assert served(site) == {"door": None, "hall": "v2", "yard": None}


def test_the_next_policy_frees_the_feedback_once_more(site: LocalStore, tmp_path: Path) -> None:
    migrate(site, OTHER_POLICY, "Ada", NOW)
    adapt(site, tmp_path, "door", OTHER_POLICY)
    migrate(site, THIRD, "Ada", NOW)
    assert watermark(site, "door") == {}
    advance(site, "door", MARK, {})
    # back to a policy of before: the champion is of the one between, so its feedback is free again
    migrate(site, OTHER_POLICY, "Ada", NOW)
    assert (watermark(site, "door"), watermark(site, "hall")) == (MARK, {})
    assert served(site)["door"] == versions(site, "door")[-1].version


def test_a_champion_without_any_used_feedback_needs_no_reset(published: LocalStore) -> None:
    promote(published, "door", "v1", None)
    migrate(published, OTHER_POLICY, "Ada", NOW)
    assert watermark(published, "door") is None


class KilledError(BaseException):
    """Stands for the kill: nothing after it runs."""


class Between:
    """A store that lets something happen before or after one of its writes."""

    def __init__(self, store: LocalStore, at: int, done: bool, happens: Any) -> None:
        self._store, self._left, self._done, self._happens = store, at, done, happens

    def __getattr__(self, name: str) -> Any:
        def write(*args: Any) -> Any:
            self._left -= 1
            if self._left == -1 and not self._done:
                self._happens()
            answer = getattr(self._store, name)(*args)
            if self._left == -1 and self._done:
                self._happens()
            return answer

        return write if name in ("put_if_absent", "compare_and_swap") else getattr(self._store, name)


def kill() -> None:
    raise KilledError


WRITES = 2 + 2 * 2  # the policy's entry and pointer; the watermark and the mark of two environments


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("at", range(WRITES))
def test_killed_at_any_write_and_called_again_it_completes(site: LocalStore, at: int, done: bool) -> None:
    killed: Any = Between(site, at, done, kill)
    with pytest.raises(KilledError):
        migrate(killed, OTHER_POLICY, "Ada", NOW)
    assert all(version is None or at < 2 for version in served(site).values())
    known = migrate(site, OTHER_POLICY, "Ada", NOW)
    assert [one.environment for one in known if one.waiting] == ["door", "hall"]
    assert {name: watermark(site, name) for name in environments(site)} == {"door": {}, "hall": {}, "yard": MARK}
    assert len(policy_log(site)) == 1
    before = objects(site)
    migrate(site, OTHER_POLICY, "Ada", NOW)
    assert objects(site) == before


def test_after_its_last_write_there_is_nothing_left_to_kill(site: LocalStore) -> None:
    survived: Any = Between(site, WRITES, False, kill)
    migrate(survived, OTHER_POLICY, "Ada", NOW)


def test_a_night_of_the_new_policy_that_ends_meanwhile_keeps_what_it_used(site: LocalStore, tmp_path: Path) -> None:
    overtaken: Any = Between(site, 2, False, lambda: adapt(site, tmp_path, "door", OTHER_POLICY))
    known = {one.environment: one for one in migrate(overtaken, OTHER_POLICY, "Ada", NOW)}
    assert (known["door"].waiting, known["hall"].waiting) == (False, True)
    assert (watermark(site, "door"), watermark(site, "hall")) == (LATER, {})


def test_the_feedback_that_a_night_of_the_old_policy_uses_meanwhile_is_freed_too(
    site: LocalStore, tmp_path: Path
) -> None:
    overtaken: Any = Between(site, 2, False, lambda: adapt(site, tmp_path, "door", POLICY, promotes=False))
    migrate(overtaken, OTHER_POLICY, "Ada", NOW)
    assert (watermark(site, "door"), watermark(site, "hall")) == ({}, {})


def test_of_two_migrations_at_once_the_earlier_stops(site: LocalStore) -> None:
    overtaken: Any = Between(site, 1, True, lambda: migrate(site, THIRD, "Bo", NOW))
    with pytest.raises(PolicyMovedError):
        migrate(overtaken, OTHER_POLICY, "Ada", NOW)
    assert [e.policy for e in policy_log(site)] == [OTHER_POLICY, THIRD]


@pytest.mark.parametrize("data", [b"{}", b"null", b'{"environment": "door"}'])
def test_a_damaged_mark_of_a_migration_is_named(site: LocalStore, data: bytes) -> None:
    migrate(site, OTHER_POLICY, "Ada", NOW)
    overwrite(site, "registry/door/migration", data)
    with pytest.raises(UserError, match=r"^registry/door/migration: no Migration of this registry"):
        migrate(site, OTHER_POLICY, "Ada", NOW)
    overwrite(site, "registry/door/migration", site.get("registry/hall/migration").data)
    with pytest.raises(UserError, match=r"^registry/door/migration: the record of environment hall"):
        migrate(site, OTHER_POLICY, "Ada", NOW)
