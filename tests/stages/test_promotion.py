"""Gate and promotion for a shard: who becomes champion, who does not, and what a kill in between leaves."""

import getpass
import os
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from promotion_parts import IMAGE, JUDGE, NOW, OTHER_POLICY, POLICY, Ends, outcome, three_adapters, verdict

from taskmem.feedback.collection import Erasable, tombstone_of
from taskmem.files import canonical_json, sha256_bytes, sha256_file
from taskmem.records import write_json
from taskmem.registry import (
    Provenance,
    advance,
    challenger,
    champion,
    migrate,
    promote,
    promotion_log,
    publish,
    read_verdict,
    rollback,
    verify,
    versions,
    watermark,
)
from taskmem.stages import promotion
from taskmem.stages.gate import VERDICT
from taskmem.stages.promotion import operator
from taskmem.steer import read_adapter
from taskmem.store import LocalStore


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return three_adapters(tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def ends(tmp_path: Path, adapters: list[Path]) -> Ends:
    return Ends(tmp_path, adapters)


def test_a_challenger_that_passed_becomes_champion_on_its_verdict(ends: Ends) -> None:
    ends.night("door")
    (ended,) = ends.promote("door")
    evidence = "40 wins and 2 losses in 9 streams (p = 0.0020), gold questions 0.400 -> 0.600"
    assert (ended.status, ended.stage, ended.version, ended.reason) == ("promoted", "promotion", "door@v1", evidence)
    pointer = champion(ends.store, "door")
    assert pointer is not None
    assert pointer.verdict is not None
    assert (pointer.version, pointer.previous, pointer.policy) == ("v1", None, POLICY)
    written = (ends.root / "night" / "verdicts" / "door" / VERDICT).read_bytes()
    assert read_verdict(ends.store, "door", pointer.verdict) == written
    assert watermark(ends.store, "door") == {"offset": 100, "lines": 5, "sha256": "c" * 64}


@pytest.mark.parametrize(("kind", "name"), [("stream", "s"), ("source", "a" * 64)])
def test_what_rests_on_something_erased_meanwhile_is_not_published(ends: Ends, kind: Erasable, name: str) -> None:
    ends.night("door")
    ends.store.put_if_absent(f"tombstones/{tombstone_of(kind, name)}", b"{}")
    (ended,) = ends.promote("door")
    assert (ended.status, versions(ends.store, "door"), watermark(ends.store, "door")) == ("failed", [], None)
    assert "rests on a stream or source that was erased meanwhile" in ended.reason


def test_the_log_says_who_ran_the_night_and_when(ends: Ends) -> None:
    ends.night("door")
    before = datetime.now(UTC)
    ends.promote("door")
    (entry,) = promotion_log(ends.store, "door")
    assert entry.by == f"taskmem adaptation, as {getpass.getuser()}"
    assert before <= entry.time <= datetime.now(UTC)
    assert (entry.action, entry.version, entry.reason) == ("promote", "v1", None)


def test_a_user_without_a_name_is_named_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 3_000_000_017)
    assert operator() == "user 3000000017"


def test_a_challenger_that_did_not_pass_is_published_and_kept_from_being_champion(ends: Ends) -> None:
    ends.night("door", promotes=False)
    (ended,) = ends.promote("door")
    assert (ended.status, ended.version) == ("kept", None)
    assert ended.reason == "the challenger does not win; gold questions fall"
    assert champion(ends.store, "door") is None
    assert [m.version for m in versions(ends.store, "door")] == ["v1"]
    assert challenger(ends.store, "door") == "v1"
    assert watermark(ends.store, "door") is not None


def test_a_challenger_that_lost_leaves_the_champion_that_is_there(ends: Ends) -> None:
    ends.night("door")
    ends.promote("door")
    before = champion(ends.store, "door")
    ends.night("door", content=1, promotes=False, used=200, night="next")
    (ended,) = ends.promote("door", night="next")
    assert (ended.status, ended.version) == ("kept", "door@v1")
    assert champion(ends.store, "door") == before
    assert [(m.version, m.parent) for m in versions(ends.store, "door")] == [("v1", None), ("v2", "v1")]
    assert (watermark(ends.store, "door") or {})["offset"] == 200


def test_the_next_champion_names_its_parent(ends: Ends) -> None:
    ends.night("door")
    ends.promote("door")
    ends.night("door", content=1, used=200, night="next")
    assert [(o.status, o.version) for o in ends.promote("door", night="next")] == [("promoted", "door@v2")]
    assert challenger(ends.store, "door") is None
    assert [(m.version, m.parent) for m in versions(ends.store, "door")] == [("v1", None), ("v2", "v1")]
    pointer = champion(ends.store, "door")
    assert pointer is not None
    assert (pointer.version, pointer.previous) == ("v2", "v1")


def test_the_manifest_says_what_the_adapter_was_made_of(ends: Ends) -> None:
    ends.night("door", content=2)
    ends.promote("door")
    (manifest,) = versions(ends.store, "door")
    assert (manifest.policy, manifest.image, manifest.seed) == (POLICY, IMAGE, 7)
    assert manifest.pairs == sha256_file(ends.root / "night" / "preferences" / "door" / "preferences.jsonl")
    assert manifest.feedback == sha256_bytes(canonical_json([f"q{n}" for n in range(5)]))
    assert (manifest.feedback_count, manifest.judges) == (5, (JUDGE,))


@pytest.mark.parametrize("status", ["skipped", "failed"])
def test_an_environment_that_did_not_come_this_far_is_untouched_and_stops_no_other(ends: Ends, status: str) -> None:
    ends.night("door")
    ends.end(outcome("room", status, "no feedback yet"))
    room, door = ends.promote("room", "door")
    assert (room, door.status) == (outcome("room", status, "no feedback yet"), "promoted")
    assert ends.objects(besides="door") == {}


def test_the_same_night_again_changes_nothing(ends: Ends) -> None:
    ends.night("door")
    ends.night("room", content=1, promotes=False)
    once = ends.promote("door", "room")
    before = ends.objects()
    assert ends.promote("door", "room") == once
    assert ends.objects() == before


def test_where_the_champion_has_moved_meanwhile_nothing_changes_but_a_version(ends: Ends) -> None:
    ends.night("door")
    ends.night("room")
    provenance = Provenance(
        parent=None, policy=POLICY, pairs="c" * 64, feedback="d" * 64, feedback_count=5, judges=(JUDGE,), commit="unknown",
        image="local", seed=0,
    )  # fmt: skip
    publish(ends.store, "door", ends.adapters[1], provenance, read_adapter)
    other = promote(ends.store, "door", "v1", None, b"{}", "Ada", NOW)
    door, room = ends.promote("door", "room")
    assert (door.status, room.status) == ("failed", "promoted")
    moved = "the champion has moved on from none, it is v1; hold the challenger against the present one"
    assert door.reason == f"environment door: {moved}"
    assert champion(ends.store, "door") == other
    assert watermark(ends.store, "door") is None


def test_after_a_rollback_to_no_adapter_the_next_challenger_needs_no_parent(ends: Ends) -> None:
    ends.night("door")
    ends.promote("door")
    rollback(ends.store, "door", "Bo", NOW)
    ends.night("door", content=1, promotes=False, used=200, night="lost")
    assert [(o.status, o.version) for o in ends.promote("door", night="lost")] == [("kept", None)]
    ends.night("door", content=2, used=300, night="won")
    assert [(o.status, o.version) for o in ends.promote("door", night="won")] == [("promoted", "door@v3")]
    assert [(m.version, m.parent) for m in versions(ends.store, "door")] == [("v1", None), ("v2", None), ("v3", None)]
    assert [e.replaced_version for e in promotion_log(ends.store, "door")] == [None, "v1", None]


def test_the_same_night_again_does_not_undo_a_rollback(ends: Ends) -> None:
    ends.night("door")
    ends.promote("door")
    pointer = rollback(ends.store, "door", "Bo", NOW)
    (ended,) = ends.promote("door")
    assert (ended.status, champion(ends.store, "door")) == ("failed", pointer)
    assert "the champion has moved on from none, it is none" in ended.reason


def test_a_night_on_a_policy_that_is_no_longer_served_promotes_nobody_and_uses_no_feedback(ends: Ends) -> None:
    ends.night("door")
    migrate(ends.store, OTHER_POLICY, "Ada", NOW)
    before = ends.objects()
    (ended,) = ends.promote("door")
    told = f"adapted to the policy {POLICY[:12]}, but {OTHER_POLICY[:12]} is served now; run the night with that one"
    assert (ended.status, ended.reason) == ("failed", f"environment door: {told}")
    assert ends.objects() == before


def test_a_night_on_the_policy_that_is_served_is_as_any_other(ends: Ends) -> None:
    ends.night("door")
    migrate(ends.store, POLICY, "Ada", NOW)
    assert [o.status for o in ends.promote("door")] == ["promoted"]


def test_feedback_that_another_run_has_used_meanwhile_promotes_nobody(ends: Ends) -> None:
    ends.night("door")
    elsewhere: dict[str, int | str] = {"offset": 999, "lines": 9, "sha256": "f" * 64}
    advance(ends.store, "door", elsewhere, None)
    before = ends.objects()
    (ended,) = ends.promote("door")
    assert (ended.status, ended.reason) == (
        "failed",
        "environment door: its feedback was used by another run meanwhile; collect it again",
    )
    assert ends.objects() == before


def test_a_verdict_about_other_bytes_promotes_nobody(ends: Ends) -> None:
    ends.night("door")
    write_json(ends.root / "night" / "adapters" / "door" / "training.json", {"content": "another"})
    (ended,) = ends.promote("door")
    assert ended.status == "failed"
    assert "held.json: the verdict is about another adapter than " in ended.reason
    assert ends.objects() == {}


def test_a_verdict_about_another_environment_promotes_nobody(ends: Ends) -> None:
    ends.night("door")
    path = ends.root / "night" / "verdicts" / "door" / VERDICT
    write_json(path, verdict("room", True).model_dump(mode="json"))
    assert ends.promote("door")[0].status == "failed"
    assert ends.objects() == {}


class KilledError(BaseException):
    """Stands for the kill: nothing after it runs."""


class Dying:
    """A store whose process is killed at one of its writes, before or after it."""

    def __init__(self, store: LocalStore, at: int, done: bool) -> None:
        self._store, self._left, self._done = store, at, done

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        return self._dying(method) if name in ("put_if_absent", "compare_and_swap") else method

    def _dying(self, method: Any) -> Any:
        def write(*args: Any) -> Any:
            self._left -= 1
            if self._left < 0:
                if self._done:
                    method(*args)
                raise KilledError
            return method(*args)

        return write


WRITES = 3 + 1 + 1 + 1 + 2 + 1  # the files, the manifest, the challenger, the verdict, entry and pointer, the watermark


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("at", range(WRITES))
def test_killed_at_any_write_and_run_again_it_ends_as_if_it_had_not_been(
    tmp_path: Path, ends: Ends, monkeypatch: pytest.MonkeyPatch, at: int, done: bool
) -> None:
    ends.night("door")
    shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-whole"))
    whole = replace(ends, root=tmp_path.with_name(f"{tmp_path.name}-whole"))
    expected = whole.promote("door")
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(promotion, "open_store", lambda url: Dying(LocalStore(Path(url)), at, done))
        ends.promote("door")
    assert ends.promote("door") == expected
    assert but_for_the_time(ends) == but_for_the_time(whole)
    assert verify(ends.store, "door") == []


def but_for_the_time(ends: Ends) -> tuple[dict[str, bytes], list[Any], Any]:
    """What the registry holds: all objects, the log and the pointer, but for the time and the digests that follow from it."""
    pointer = champion(ends.store, "door")
    known = {key: data for key, data in ends.objects("log").items() if not key.endswith("/champion")}
    log = [entry.model_dump(exclude={"time", "before"}) for entry in promotion_log(ends.store, "door")]
    return known, log, pointer.model_dump(exclude={"entry"}) if pointer else None
