"""Gate and promotion for a shard: who becomes champion, who does not, and what a kill in between leaves."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model

from taskmem.cli import shipped_base
from taskmem.config import load_profile
from taskmem.evaluation.gate import Gold, Rate, Unscored, Verdict, Wins
from taskmem.feedback import Collection, Watermark, write_collection
from taskmem.files import canonical_json, sha256_bytes, sha256_file, sha256_tree
from taskmem.lineage.outcome import OUTCOMES, Outcome
from taskmem.policy.transformers_policy import load_checkpoint, policy_digest, policy_reference
from taskmem.records import Comparison, Judge, Preference, Question, read_records, write_json, write_records
from taskmem.registry import Provenance, advance, champion, promote, publish, read_verdict, versions, watermark
from taskmem.stages import promotion
from taskmem.stages.gate import VERDICT
from taskmem.stages.gating import HELD, Held
from taskmem.stages.nightly import SINCE
from taskmem.stages.promotion import promote_shard
from taskmem.stages.shard import Shard
from taskmem.steer import SteerConfig, read_adapter
from taskmem.store import LocalStore

POLICY, OTHER_POLICY, IMAGE = policy_digest(shipped_base()), "b" * 64, "registry.test/taskmem/train@sha256:" + "7" * 64
JUDGE = Judge(role="helpfulness", model="world", prompt_sha256="e" * 64)
STAGES = ("feedback", "preferences", "adapters", "verdicts")


def write_adapter(folder: Path, content: int, policy: str = POLICY) -> Path:
    """A steer adapter of the shipped policy, drawn from `content`."""
    model, _ = load_checkpoint(shipped_base())
    steered = get_peft_model(model, SteerConfig(layer=1))
    for name, parameter in steered.named_parameters():
        if "steer_vector" in name:
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(content))
    steered.peft_config["default"].base_model_name_or_path = policy_reference(policy)
    steered.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    write_json(folder / "training.json", {"content": content})
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("adapters")
    return [write_adapter(root / str(content), content) for content in range(3)]


def verdict(environment: str, promotes: bool) -> Verdict:
    wins = Wins(
        wins=40,
        losses=2,
        ties=9,
        by_grammar=0,
        streams=9,
        least_wins=30,
        least_streams=8,
        p_value=0.002,
        passed=promotes,
    )
    gold = Gold(asked=30, least=20, champion=0.4, challenger=0.6, difference=0.2, interval=(0.1, 0.3), passed=True)
    return Verdict(
        environment=environment,
        promote=promotes,
        reasons=() if promotes else ("the challenger does not win", "gold questions fall"),
        confidence=0.95,
        seed=0,
        unscored=Unscored(contexts=Rate(count=0, of=51, share=0.0), bound=0.05, reason=None, passed=True),
        win_test=wins,
        quality={},
        coverage={},
        gold=gold,
    )


def outcome(name: str, status: str = "ready", reason: str = "") -> Outcome:
    fields = {"environment": name, "name": name, "stage": "earlier", "status": status, "reason": reason}
    return Outcome.model_validate(fields)


@dataclass(frozen=True)
class Ends:
    """The end of a night: what the stages before promotion wrote, for several environments."""

    root: Path
    adapters: list[Path]

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.root / "store")

    def night(
        self, environment: str, content: int = 0, promotes: bool = True, used: int = 100, night: str = "night"
    ) -> None:
        """A challenger and its verdict against the present champion, from feedback since the present watermark."""
        root = self.root / night
        known, pointer = watermark(self.store, environment), champion(self.store, environment)
        mark = Watermark(offset=used, lines=5, sha256="c" * 64)
        questions = tuple(
            Question(
                id=f"q{n}",
                environment=environment,
                stream="s",
                asked_at_s=n,
                type="object",
                text="what was carried at 00:01?",
            )
            for n in range(5)
        )
        asked: dict[str, tuple[str, ...]] = {question.id: ("a" * 64,) for question in questions}
        write_collection(
            root / "feedback" / environment, Collection({environment: questions}, {environment: asked}, (), mark, 5)
        )
        write_json(root / "feedback" / environment / SINCE, known)
        pairs = root / "preferences" / environment
        write_records(pairs / "preferences.jsonl", [_pair(content)])
        write_records(pairs / "comparisons.jsonl", [_comparison()])
        adapter = root / "adapters" / environment
        shutil.copytree(self.adapters[content], adapter)
        held = Held(environment=environment, policy=POLICY, challenger=sha256_tree(adapter), champion=pointer)
        write_json(root / "verdicts" / environment / HELD, held.model_dump(mode="json"))
        write_json(root / "verdicts" / environment / VERDICT, verdict(environment, promotes).model_dump(mode="json"))
        self.end(outcome(environment), night)

    def end(self, ended: Outcome, night: str = "night") -> None:
        """What became of an environment before promotion."""
        for stage in STAGES:
            path = self.root / night / stage / OUTCOMES
            known = read_records(path, Outcome) if path.exists() else []
            write_records(path, [*known, ended])

    def promote(self, *environments: str, night: str = "night") -> list[Outcome]:
        root = self.root / night
        shard = Shard.parse({"name": "one", "environments": [{"environment": name} for name in environments]})
        paths = (root / "adapters", root / "verdicts", root / "preferences", root / "feedback")
        store, profile = str(self.root / "store"), load_profile("miniature")
        return promote_shard(shard, *paths, store, profile, IMAGE, 7, root / "outcomes")

    def objects(self, besides: str = "-") -> dict[str, bytes]:
        return {key: self.store.get(key).data for key in self.store.list("") if f"/{besides}/" not in key}


def _pair(content: int) -> Preference:
    return Preference(context=f"s:{content}:x", chosen=0, rejected=1, path_length=1, token_difference=0)


def _comparison() -> Comparison:
    return Comparison(context="s:0:x", a=0, b=1, questions=("q0",), first_order="a", second_order="a", judge=JUDGE)


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
    assert (pointer.version, pointer.previous, pointer.policy) == ("v1", None, POLICY)
    written = (ends.root / "night" / "verdicts" / "door" / VERDICT).read_bytes()
    assert read_verdict(ends.store, "door", pointer.verdict) == written
    assert watermark(ends.store, "door") == {"offset": 100, "lines": 5, "sha256": "c" * 64}


def test_a_challenger_that_did_not_pass_is_published_and_kept_from_being_champion(ends: Ends) -> None:
    ends.night("door", promotes=False)
    (ended,) = ends.promote("door")
    assert (ended.status, ended.version) == ("kept", None)
    assert ended.reason == "the challenger does not win; gold questions fall"
    assert champion(ends.store, "door") is None
    assert [m.version for m in versions(ends.store, "door")] == ["v1"]
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
    other = promote(ends.store, "door", "v1", None, b"{}")
    door, room = ends.promote("door", "room")
    assert (door.status, room.status) == ("failed", "promoted")
    moved = "the champion has moved on from none, it is v1; hold the challenger against the present one"
    assert door.reason == f"environment door: {moved}"
    assert champion(ends.store, "door") == other
    assert watermark(ends.store, "door") is None


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


WRITES = 3 + 1 + 1 + 1 + 1  # the files, the manifest, the verdict, the pointer, the watermark


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
    assert ends.objects() == whole.objects()
