"""What changed from one adapter to the next."""

import math
from pathlib import Path

import pytest
from audit_parts import Place, changed, objects_kept, one_byte_off, read_light

from taskmem.audit.diff import Change, Diff, diff, flattened
from taskmem.audit.vectors import distance
from taskmem.errors import UserError


@pytest.fixture(scope="module")
def found(kept_place: Place, tmp_path_factory: pytest.TempPathFactory) -> Diff:
    return diff(kept_place.store, kept_place.lineage, "door@v1", "v2", tmp_path_factory.mktemp("diff"))


def test_feedback_pairs_and_judges_that_one_of_both_has_are_listed(found: Diff) -> None:
    assert found.feedback == Change(5, ("q5",), ())
    assert found.pairs == Change(3, (("s0:3:x", 0, 1),), ())
    assert found.judges is not None
    assert (found.judges.added, found.judges.removed) == (
        (f"helpfulness, judge/1, prompt {'1' * 64}",),
        (f"helpfulness, judge/0, prompt {'0' * 64}",),
    )


def test_settings_that_changed_are_named_by_their_key(found: Diff) -> None:
    assert found.settings == {"profile.phase_two.steps": (5, 6), "seed": (1, 2)}


def test_what_the_manifests_say_differently_is_told_and_what_is_the_same_is_not(found: Diff) -> None:
    assert set(found.told) == {"norm", "seed"}
    assert found.told["seed"] == (1, 2)


def test_the_vectors_are_compared_by_norm_and_cosine(place: Place, found: Diff) -> None:
    a, b = (read_light(place.root / f"night{n}" / "adapters" / "door-night")[1].tolist() for n in (1, 2))
    apart = found.vectors
    assert apart is not None
    assert apart.norms == pytest.approx((math.hypot(*a), math.hypot(*b)))
    assert apart.difference == pytest.approx(math.dist(a, b))
    cosine = sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)
    assert apart.cosine == pytest.approx(cosine)


def test_the_json_has_it_all(found: Diff) -> None:
    document = found.document()
    assert (document["from"], document["to"], document["broken"]) == ("door@v1", "door@v2", [])
    assert document["feedback"] == {"same": 5, "added": ["q5"], "removed": []}
    assert document["settings"]["profile.phase_two.steps"] == {"from": 5, "to": 6}


def test_two_environments_can_be_compared_too(place: Place, tmp_path: Path) -> None:
    found = diff(place.store, place.lineage, "door@v1", "room@v1", tmp_path)
    assert found.settings == {"environment": ("door", "room")}
    assert found.feedback == Change(5, (), ())


def test_an_adapter_compared_with_itself_has_no_difference(place: Place, tmp_path: Path) -> None:
    found = diff(place.store, place.lineage, "door@v1", "v1", tmp_path)
    assert (found.settings, found.told, found.feedback) == ({}, {}, Change(5, (), ()))
    assert found.vectors is not None
    assert (found.vectors.difference, found.vectors.cosine) == (0, pytest.approx(1))


def test_what_is_damaged_is_not_compared_but_named(place: Place, tmp_path: Path) -> None:
    data = (place.root / "night2" / "preferences" / "door-night" / "preferences.jsonl").read_bytes()
    with changed(place.object_of(data), one_byte_off(data)):
        found = diff(place.store, place.lineage, "door@v1", "v2", tmp_path)
    assert (found.pairs, found.feedback) == (None, Change(5, ("q5",), ()))
    assert [(name, link.name, link.status) for name, link in found.broken] == [("door@v2", "pairs", "damaged")]


def test_an_adapter_that_was_not_recorded_has_a_manifest_and_a_vector_to_compare(place: Place, tmp_path: Path) -> None:
    with objects_kept(place):
        place.git("update-ref", "refs/heads/main", place.git("rev-parse", "main^"))
        place.git("tag", "-d", "door@v2")
        found = diff(place.store, place.lineage, "door@v1", "v2", tmp_path)
    assert (found.feedback, found.settings) == (None, None)
    assert found.vectors is not None
    assert [(name, link.name) for name, link in found.broken] == [("door@v2", "run")]


def test_vectors_of_two_layers_are_not_compared(place: Place, tmp_path: Path) -> None:
    folder = place.root / "night1" / "adapters" / "door-night"
    other = tmp_path / "other"
    other.mkdir()
    for path in folder.iterdir():
        data = path.read_bytes()
        moved = data.replace(b'"layer": 1', b'"layer": 2').replace(b"layers.1.", b"layers.2.")
        (other / path.name).write_bytes(moved)
    apart = distance(folder, other)
    assert (apart.layers, apart.cosine, apart.explained) == ((1, 2), None, False)


def test_a_folder_without_an_adapter_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"adapter_config\.json: no such file"):
        distance(tmp_path, tmp_path)


def test_settings_are_told_by_dotted_key_and_a_list_is_a_value() -> None:
    assert flattened({"a": {"b": 1, "c": [1, {"d": 2}]}, "e": None}) == {"a.b": 1, "a.c": [1, {"d": 2}], "e": None}
