"""Verification: whatever object of the registry is changed, missing or swapped is found and named."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry_parts import NOW, OTHER_POLICY, POLICY, objects, overwrite, promote, publish_light, write_adapter

from taskmem.files import sha256_bytes
from taskmem.registry import (
    Promotion,
    advance,
    challenge,
    champion,
    migrate,
    promotion_log,
    rollback,
    verify,
    verify_policies,
)
from taskmem.registry.migration import Migration
from taskmem.registry.objects import to_bytes
from taskmem.store import LocalStore, Stored

LOG = "registry/door/log/"
MARK: dict[str, int | str] = {"offset": 120, "lines": 3, "sha256": "a" * 64}
UNSEALED = "watermark"
"""Nothing names its bytes by digest: only its form can be wrong."""


@pytest.fixture
def whole(tmp_path: Path, published: LocalStore) -> LocalStore:
    """Everything that a registry can hold of `door`."""
    pointer = None
    for number in (1, 2):
        pointer = promote(published, "door", f"v{number}", pointer, f'{{"wins": {number}}}'.encode())
    challenge(published, "door", "v3")
    advance(published, "door", MARK, None)
    migrate(published, OTHER_POLICY, "Ada", NOW)
    migrate(published, POLICY, "Ada", NOW)
    rollback(published, "door", "Bo", NOW)
    promote(published, "door", "v2", champion(published, "door"))
    return published


def damaged(store: LocalStore) -> list[str]:
    """The lines that name what is damaged; each object once."""
    damages = [*verify(store, "door"), *verify_policies(store)]
    assert len({damage.key for damage in damages}) == len(damages)
    return [f"{damage.key}: {damage.what}" for damage in damages]


def test_of_a_whole_registry_nothing_is_damaged(whole: LocalStore) -> None:
    folders = {key.split("/")[2] for key in whole.list("registry/")}
    assert folders == {"versions", "files", "champion", "log", "verdicts", "challenger", "watermark", "migration"}
    assert damaged(whole) == []
    assert verify(whole, "nowhere") == []


def test_what_a_killed_or_beaten_promotion_leaves_is_no_damage(whole: LocalStore, tmp_path: Path) -> None:
    lost = promotion_log(whole, "door")[-1].model_copy(update={"by": "Cy"})
    for data, folder in ((to_bytes(lost), "log"), (b"{}", "verdicts"), (b"torn", "files")):
        whole.put_if_absent(f"registry/door/{folder}/{sha256_bytes(data)}", data)
    assert damaged(whole) == []


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_changed_bit_of_any_object_is_found_and_the_object_named(whole: LocalStore, data: st.DataObject) -> None:
    before = objects(whole)
    key = data.draw(st.sampled_from([key for key in before if not key.endswith(UNSEALED)]), "object")
    bit = data.draw(st.integers(0, 8 * len(before[key]) - 1), "bit")
    spoilt = bytearray(before[key])
    spoilt[bit // 8] ^= 1 << bit % 8
    overwrite(whole, key, bytes(spoilt))
    found = damaged(whole)
    assert [line for line in found if key in line], found
    overwrite(whole, key, before[key])
    assert damaged(whole) == []


def test_a_changed_byte_that_changes_no_meaning_is_found_too(whole: LocalStore) -> None:
    for key, data in objects(whole).items():
        if b'": ' in data and "/files/" not in key:
            overwrite(whole, key, data.replace(b'": ', b'":\t', 1))
            assert [line for line in damaged(whole) if key in line], key
            overwrite(whole, key, data)
    assert damaged(whole) == []


def test_what_no_adapter_and_no_entry_names_is_held_against_its_own_name(whole: LocalStore) -> None:
    for folder in ("files", "verdicts", "log"):
        whole.put_if_absent(f"registry/door/{folder}/{'0' * 64}", b"{}")
    found = [line.partition(": ")[0] for line in damaged(whole)]
    assert found == [f"registry/door/{folder}/{'0' * 64}" for folder in ("files", "log", "verdicts")]


def test_any_missing_object_is_found_and_named(whole: LocalStore) -> None:
    for key, data in objects(whole).items():
        if key.endswith(("challenger", UNSEALED, "migration")):  # as before the first night
            continue
        whole.delete(key)
        found = damaged(whole)
        assert [line for line in found if line.startswith(f"{key}: ")], (key, found)
        whole.put_if_absent(key, data)
    assert damaged(whole) == []


def test_a_migration_for_no_known_policy_change_is_named(whole: LocalStore) -> None:
    key = "registry/door/migration"
    overwrite(whole, key, to_bytes(Migration(environment="door", entry="e" * 64)))
    told = f"{key}: names policy change {'e' * 64}, which is missing or damaged; restore the object from a backup"
    assert damaged(whole) == [told]


def test_a_watermark_that_is_none_is_named(whole: LocalStore) -> None:
    overwrite(whole, "registry/door/watermark", b"[]")
    (line,) = damaged(whole)
    assert line.startswith("registry/door/watermark: not a JSON object of integers and strings")


def test_two_swapped_entries_are_both_named(whole: LocalStore) -> None:
    one, two = list(whole.list(LOG))[:2]
    first, second = whole.get(one).data, whole.get(two).data
    overwrite(whole, one, second)
    overwrite(whole, two, first)
    assert [line.partition(": ")[0] for line in damaged(whole)] == sorted([one, two])


def test_two_swapped_files_are_both_named_with_their_adapter(whole: LocalStore) -> None:
    one, two = list(whole.list("registry/door/files/"))[:2]
    first, second = whole.get(one).data, whole.get(two).data
    overwrite(whole, one, second)
    overwrite(whole, two, first)
    found = damaged(whole)
    assert [line.partition(": ")[0] for line in found] == [one, two]
    assert all(" of door@v" in line for line in found)


def test_every_damaged_object_is_named_not_only_the_first(whole: LocalStore) -> None:
    spoilt = [
        "registry/door/versions/v1",
        next(iter(whole.list("registry/door/verdicts/"))),
        "registry/door/challenger",
        "policies/current",
    ]
    for key in spoilt:
        overwrite(whole, key, b"[]")
    assert sorted(spoilt) == sorted(line.partition(": ")[0] for line in damaged(whole))


def test_a_pointer_set_back_by_several_moves_is_found(whole: LocalStore) -> None:
    log = [Promotion.model_validate_json(whole.get(key).data) for key in whole.list(LOG)]
    second = next(entry for entry in log if entry.number == 2)
    pointer = champion(whole, "door")
    assert pointer is not None
    was = {"entry": sha256_bytes(to_bytes(second)), "version": "v2", "previous": "v1", "verdict": second.verdict}
    old = pointer.model_copy(update=was)
    overwrite(whole, "registry/door/champion", to_bytes(old))
    assert len(promotion_log(whole, "door")) == 2
    (line,) = damaged(whole)
    assert line.startswith("registry/door/champion: set back or deleted: registry/door/log/")


def test_a_manifest_that_was_made_whole_again_around_a_change_is_found(whole: LocalStore) -> None:
    key = "registry/door/versions/v1"
    overwrite(whole, key, whole.get(key).data.replace(b'"feedback_count": 5', b'"feedback_count": 6'))
    assert damaged(whole) == [f"{key}: not the manifest that was promoted; restore the object from a backup"]


def test_a_stray_object_among_the_versions_is_named(whole: LocalStore) -> None:
    whole.put_if_absent("registry/door/versions/latest", b"v1")
    assert damaged(whole) == ["registry/door/versions/latest: not a version's name; delete the object"]


def test_what_lies_damaged_on_the_disk_is_named(whole: LocalStore, tmp_path: Path) -> None:
    for path in sorted((tmp_path / "store" / "objects" / "registry").rglob("*~")):
        good = path.read_bytes()
        path.write_bytes(good[:-3])
        key = path.relative_to(tmp_path / "store" / "objects").as_posix()[:-1]
        assert [line for line in damaged(whole) if line.startswith(f"{key}: damaged in ")], key
        path.write_bytes(good)


class Busy(LocalStore):
    """A store in which a version is promoted whenever its log is listed."""

    promotes: str | None = None

    def get(self, key: str) -> Stored:
        """Promote once, just before the first entry is read."""
        if key.startswith(LOG) and self.promotes:
            version, self.promotes = self.promotes, None
            promote(self, "door", version, champion(self, "door"))
        return super().get(key)


def test_a_registry_that_is_promoted_in_meanwhile_is_not_damaged(whole: LocalStore, tmp_path: Path) -> None:
    busy = Busy(tmp_path / "store")
    for number in range(3):
        fresh = publish_light(busy, write_adapter(tmp_path / f"fresh-{number}", 10 + number)).version
        busy.promotes = fresh
        assert verify(busy, "door") == []
        pointer = champion(busy, "door")
        assert pointer is not None
        assert pointer.version == fresh
