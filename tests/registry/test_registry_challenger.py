"""The challenger: the version last published, while it is not champion."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from registry_parts import NOW, objects, overwrite, promote, publish_light

from taskmem.errors import UserError
from taskmem.registry import challenge, challenger, kept_in_a_row, rollback
from taskmem.store import LocalStore

KEY = "registry/door/challenger"


def test_there_is_none_before_the_first_night(published: LocalStore) -> None:
    assert challenger(published, "door") is None


def test_the_version_last_published_is_the_challenger(published: LocalStore) -> None:
    for version in ("v1", "v2"):
        challenge(published, "door", version)
        assert challenger(published, "door") == version


def test_an_earlier_version_published_again_does_not_come_back(published: LocalStore) -> None:
    challenge(published, "door", "v3")
    before = objects(published)
    for version in ("v1", "v3"):
        challenge(published, "door", version)
    assert objects(published) == before


def test_a_challenger_that_is_champion_is_none_until_it_is_rolled_back(published: LocalStore) -> None:
    challenge(published, "door", "v2")
    promote(published, "door", "v2", None)
    assert challenger(published, "door") is None
    rollback(published, "door", "Bo", NOW)
    assert challenger(published, "door") == "v2"


def test_challengers_that_were_kept_are_counted_since_the_last_one_that_was_promoted(published: LocalStore) -> None:
    assert kept_in_a_row(published, "door") == 0
    counts = []
    for version, promoted in (("v1", False), ("v2", True), ("v3", False)):
        challenge(published, "door", version)
        if promoted:
            promote(published, "door", version, None)
        counts.append(kept_in_a_row(published, "door"))
    assert counts == [1, 0, 1]
    rollback(published, "door", "Bo", NOW)
    assert kept_in_a_row(published, "door") == 1


def test_only_a_version_can_be_a_challenger(published: LocalStore) -> None:
    with pytest.raises(UserError, match=r"^door@v4: not in the registry"):
        challenge(published, "door", "v4")
    assert challenger(published, "door") is None


def test_of_racing_publishers_the_latest_version_stays(published: LocalStore) -> None:
    for _ in range(10):
        if KEY in list(published.list(KEY)):
            published.delete(KEY)
        ready = threading.Barrier(3)

        def work(number: int, ready: threading.Barrier = ready) -> None:
            ready.wait()
            challenge(published, "door", f"v{number}")

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(work, (1, 2, 3)))
        assert challenger(published, "door") == "v3"


def test_a_damaged_pointer_is_named(published: LocalStore, tmp_path: Path) -> None:
    challenge(published, "door", "v3")
    whole = published.get(KEY).data
    overwrite(published, KEY, b"{}")
    with pytest.raises(UserError, match=f"^{KEY}: no Challenger of this registry"):
        challenger(published, "door")
    publish_light(published, tmp_path / "adapter-0", "room")
    published.put_if_absent("registry/room/challenger", whole)
    with pytest.raises(UserError, match=r"^registry/room/challenger: the pointer of environment door; restore"):
        challenger(published, "room")


def test_a_changed_manifest_of_a_challenger_is_named(published: LocalStore) -> None:
    challenge(published, "door", "v3")
    key = "registry/door/versions/v3"
    overwrite(published, key, published.get(key).data.replace(b'"seed": 0', b'"seed": 1'))
    with pytest.raises(UserError, match=f"^{key}: not the manifest that was published; restore"):
        challenger(published, "door")
    published.delete(key)
    with pytest.raises(UserError, match=f"^{key}: the manifest is missing; restore"):
        challenger(published, "door")
