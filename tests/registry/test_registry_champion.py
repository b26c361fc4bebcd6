"""One champion per environment, moved only by whoever knows which it was; and one watermark, moved the same way."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry_parts import OTHER_POLICY, POLICY, VERDICT, objects, promote, publish_light, write_adapter

from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.registry import (
    ChampionMovedError,
    Pointer,
    WatermarkMovedError,
    advance,
    champion,
    read_verdict,
    versions,
    watermark,
)
from taskmem.store import CorruptObject, LocalStore

UNSAFE = ["", "..", "../door", "door/room", ".door", "a b", "door\n", "é", "x" * 129]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def test_an_environment_has_no_champion_before_the_first_promotion(published: LocalStore) -> None:
    assert champion(published, "door") is None


def test_a_promotion_says_what_was_replaced_and_on_which_verdict(published: LocalStore) -> None:
    first = promote(published, "door", "v1", None, VERDICT)
    second = promote(published, "door", "v3", first, b'{"passed": true, "wins": 40}')
    assert (first.name, first.previous) == ("door@v1", None)
    assert (second.name, second.previous, second.policy) == ("door@v3", "v1", POLICY)
    assert second.verdict == sha256_bytes(b'{"passed": true, "wins": 40}')
    assert champion(published, "door") == second


def test_no_two_promotions_leave_the_same_pointer(published: LocalStore) -> None:
    pointer, pointers = None, []
    for version in ("v1", "v2", "v1", "v2", "v1"):
        pointer = promote(published, "door", version, pointer)
        pointers.append(pointer)
    assert len({(p.version, p.previous) for p in pointers}) < len({p.entry for p in pointers}) == 5


def test_the_verdicts_of_all_promotions_can_be_read(published: LocalStore) -> None:
    pointer, pointers = None, []
    for number in (1, 2, 3):
        pointer = promote(published, "door", f"v{number}", pointer, f'{{"wins": {number}}}'.encode())
        pointers.append(pointer)
    assert [read_verdict(published, "door", p.verdict or "none") for p in pointers] == [
        f'{{"wins": {n}}}'.encode() for n in (1, 2, 3)
    ]


def test_the_pointer_names_the_policy_of_its_version(published: LocalStore, tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "other", 9, OTHER_POLICY)
    version = publish_light(published, other, policy=OTHER_POLICY).version
    assert promote(published, "door", version, None, VERDICT).policy == OTHER_POLICY


def test_promoting_the_champion_again_changes_nothing(published: LocalStore) -> None:
    first = promote(published, "door", "v1", None, VERDICT)
    second = promote(published, "door", "v2", first, VERDICT)
    before = objects(published)
    for expected in (None, first, second):
        assert promote(published, "door", "v2", expected, b'{"another": "verdict"}') == second
    assert objects(published) == before


def test_a_champion_that_moved_meanwhile_is_not_replaced(published: LocalStore) -> None:
    first = promote(published, "door", "v1", None, VERDICT)
    second = promote(published, "door", "v2", first, VERDICT)
    before = objects(published)
    for expected, was in ((None, "none"), (first, "v1")):
        told = rf"^environment door: the champion has moved on from {was}, it is v2; hold the challenger against"
        with pytest.raises(ChampionMovedError, match=told) as caught:
            promote(published, "door", "v3", expected, VERDICT)
        assert caught.value.current == second
    assert objects(published) == before


def test_a_champion_that_has_come_back_is_not_the_one_that_was_expected(published: LocalStore) -> None:
    first = promote(published, "door", "v1", None, VERDICT)
    back = promote(published, "door", "v1", promote(published, "door", "v2", first, VERDICT), VERDICT)
    assert back.version == first.version
    with pytest.raises(ChampionMovedError):
        promote(published, "door", "v3", first, VERDICT)
    assert promote(published, "door", "v3", back, VERDICT).previous == "v1"


def test_a_champion_is_expected_where_there_is_none(published: LocalStore, tmp_path: Path) -> None:
    elsewhere = promote(published, "door", "v1", None, VERDICT)
    publish_light(published, tmp_path / "adapter-0", "room")
    with pytest.raises(ChampionMovedError, match="moved on from v1, it is none"):
        promote(published, "room", "v1", elsewhere, VERDICT)


def test_environments_have_champions_of_their_own(published: LocalStore, tmp_path: Path) -> None:
    publish_light(published, tmp_path / "adapter-2", "room")
    promote(published, "door", "v2", None, VERDICT)
    promote(published, "room", "v1", None, VERDICT)
    assert [pointer.name for e in ("door", "room") if (pointer := champion(published, e))] == ["door@v2", "room@v1"]


def test_only_a_version_can_be_promoted(published: LocalStore) -> None:
    before = objects(published)
    with pytest.raises(UserError, match=r"^door@v4: not in the registry, which has v1, v2, v3 of it; choose another$"):
        promote(published, "door", "v4", None, VERDICT)
    assert objects(published) == before


def test_only_a_whole_version_can_be_promoted(published: LocalStore) -> None:
    published.delete(f"registry/door/files/{versions(published, 'door')[1].files.adapter_model}")
    with pytest.raises(UserError, match=r"adapter_model.safetensors of door@v2 is missing"):
        promote(published, "door", "v2", None, VERDICT)
    assert champion(published, "door") is None


@pytest.mark.parametrize("verdict", [b"", b"{", b"[]", b"true", b"\xff", b"[" * 100_000])
def test_without_a_verdict_nothing_is_promoted(published: LocalStore, verdict: bytes) -> None:
    before = objects(published)
    with pytest.raises(UserError, match=r"^verdict of environment door: .*; run the gate again$"):
        promote(published, "door", "v1", None, verdict)
    assert objects(published) == before


@pytest.mark.parametrize("name", UNSAFE)
def test_an_environment_of_an_unsafe_name_is_refused(store: LocalStore, name: str) -> None:
    for call in (
        lambda: champion(store, name),
        lambda: promote(store, name, "v1", None, VERDICT),
        lambda: read_verdict(store, name, "a" * 64),
        lambda: watermark(store, name),
        lambda: advance(store, name, {"lines": 1}, None),
    ):
        with pytest.raises(UserError, match=r"^environment .*: not a safe name"):
            call()


@pytest.mark.parametrize("digest", ["", "../champion", "A" * 64])
def test_a_verdict_is_named_by_a_digest(published: LocalStore, digest: str) -> None:
    with pytest.raises(UserError, match=r"^verdict .*: not a safe name; use the hex SHA-256 of one"):
        read_verdict(published, "door", digest)


def test_a_verdict_that_is_not_the_one_named_is_found(published: LocalStore) -> None:
    digest = promote(published, "door", "v1", None, VERDICT).verdict or "none"
    key = f"registry/door/verdicts/{digest}"
    published.compare_and_swap(key, b'{"passed": false}', published.get(key).etag)
    with pytest.raises(UserError, match=rf"^{key}: the verdict is damaged; restore the object from a backup$"):
        read_verdict(published, "door", digest)
    published.delete(key)
    with pytest.raises(UserError, match=rf"^{key}: the verdict is missing; restore the object from a backup$"):
        read_verdict(published, "door", digest)


@pytest.mark.parametrize("data", [b"{", b"{}", b'{"environment": "door", "version": "../v1"}', b"null"])
def test_a_pointer_that_is_none_is_found(published: LocalStore, data: bytes) -> None:
    published.put_if_absent("registry/door/champion", data)
    for call in (lambda: champion(published, "door"), lambda: promote(published, "door", "v1", None, VERDICT)):
        with pytest.raises(UserError, match=r"^registry/door/champion: no Pointer of this registry \(.*\); restore"):
            call()


def test_a_pointer_of_another_environment_is_found(published: LocalStore) -> None:
    promote(published, "door", "v1", None, VERDICT)
    published.put_if_absent("registry/room/champion", published.get("registry/door/champion").data)
    with pytest.raises(UserError, match=r"^registry/room/champion: the pointer of environment door; restore"):
        champion(published, "room")


def test_a_damaged_pointer_is_found(published: LocalStore, tmp_path: Path) -> None:
    promote(published, "door", "v1", None, VERDICT)
    path = tmp_path / "store" / "objects" / "registry" / "door" / "champion~"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CorruptObject):
        champion(published, "door")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2)), max_size=8))
def test_the_champion_moves_exactly_when_it_is_the_one_expected(
    published: LocalStore, steps: list[tuple[int, int]]
) -> None:
    published.delete("registry/door/champion")
    history: list[Pointer | None] = [None]
    for number, age in steps:
        now, expected = history[-1], history[max(0, len(history) - 1 - age)]
        version = f"v{number}"
        if now is not None and now.version == version:
            assert promote(published, "door", version, expected, VERDICT) == now
        elif expected == now:
            history.append(promote(published, "door", version, expected, VERDICT))
        else:
            with pytest.raises(ChampionMovedError):
                promote(published, "door", version, expected, VERDICT)
        assert champion(published, "door") == history[-1]
    moved = [pointer for pointer in history if pointer]
    assert [p.previous for p in moved] == [before.version if before else None for before in history[:-1]]
    assert len({p.model_dump_json() for p in moved}) == len(moved)


MARK: dict[str, int | str] = {"offset": 120, "lines": 3, "sha256": "a" * 64}
LATER: dict[str, int | str] = {"offset": 900, "lines": 9, "sha256": "b" * 64}


def test_a_watermark_is_read_as_it_was_advanced(store: LocalStore) -> None:
    assert watermark(store, "door") is None
    advance(store, "door", MARK, None)
    assert watermark(store, "door") == MARK
    advance(store, "door", LATER, MARK)
    assert watermark(store, "door") == LATER
    assert watermark(store, "room") is None


def test_advancing_to_where_it_stands_changes_nothing(store: LocalStore) -> None:
    advance(store, "door", MARK, None)
    for expected in (None, MARK, LATER):
        advance(store, "door", MARK, expected)
    assert watermark(store, "door") == MARK


@pytest.mark.parametrize("expected", [None, LATER])
def test_a_watermark_that_somebody_moved_is_not_advanced(store: LocalStore, expected: Any) -> None:
    advance(store, "door", MARK, None)
    told = "^environment door: its feedback was used by another run meanwhile; collect it again$"
    with pytest.raises(WatermarkMovedError, match=told) as caught:
        advance(store, "door", {"lines": 20}, expected)
    assert caught.value.current == watermark(store, "door") == MARK


def test_a_watermark_is_expected_where_there_is_none(store: LocalStore) -> None:
    with pytest.raises(WatermarkMovedError):
        advance(store, "door", LATER, MARK)
    assert watermark(store, "door") is None


@pytest.mark.parametrize("value", [{"lines": 1.5}, {"lines": True}, {"lines": None}, {"lines": {}}, {"lines": []}])
def test_a_watermark_holds_integers_and_strings_only(store: LocalStore, value: Any) -> None:
    told = r"^watermark of environment door: not a JSON object of integers and strings \(.*\); give what collect wrote$"
    with pytest.raises(UserError, match=told):
        advance(store, "door", value, None)
    assert watermark(store, "door") is None


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"lines": 0.5}'])
def test_a_stored_watermark_that_is_none_is_found(store: LocalStore, data: bytes) -> None:
    store.put_if_absent("registry/door/watermark", data)
    with pytest.raises(UserError, match=r"^registry/door/watermark: not a JSON object of .*; restore the object"):
        watermark(store, "door")
