"""The gate for a shard: what each challenger is held against, and who is not held against anybody."""

from collections.abc import Collection as Names
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from taskmem.backends import Backends, backends_for
from taskmem.cli import shipped_base
from taskmem.config import Profile, load_profile, override
from taskmem.evaluation.gate import Verdict
from taskmem.feedback import Collection, Watermark, write_collection
from taskmem.files import sha256_tree
from taskmem.judge.protocols import Fidelity, FidelityJudge, JudgeError
from taskmem.lineage.outcome import OUTCOMES, Outcome
from taskmem.policy.transformers_policy import load_checkpoint, policy_digest, policy_reference
from taskmem.records import Context, Judge, Memory, Question, read_records, write_json, write_records
from taskmem.registry import Files, Pointer, Provenance, champion, promote, publish, rollback
from taskmem.stages.common import MEMORIES
from taskmem.stages.evaluate import streaming_eval
from taskmem.stages.gate import VERDICT
from taskmem.stages.gating import HELD, GateInputs, Held, gate_shard
from taskmem.stages.segmentation import segmentation
from taskmem.stages.shard import Shard
from taskmem.steer import SteerConfig, read_adapter
from taskmem.store import LocalStore
from taskmem.world.splits import render_split

NOW = datetime(2026, 3, 1, tzinfo=UTC)
POLICY, OTHER_POLICY = policy_digest(shipped_base()), "b" * 64
ENVIRONMENTS = ("door", "room")


def write_adapter(folder: Path, content: int, policy: str = POLICY) -> Path:
    """A steer adapter of the shipped policy's shape, drawn from `content`."""
    model, _ = load_checkpoint(shipped_base())
    steered = get_peft_model(model, SteerConfig(layer=1))
    for name, parameter in steered.named_parameters():
        if "steer_vector" in name:
            parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(content))
    steered.peft_config["default"].base_model_name_or_path = policy_reference(policy)
    steered.save_pretrained(folder, save_embedding_layers=False)
    write_json(folder / "training.json", {"content": content})
    return folder


@dataclass(frozen=True)
class Site:
    """Held-out streams, the policy's evaluation on them, and the feedback of two environments."""

    root: Path
    shared: Path
    profile: Profile
    backends: Backends

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.root / "store")

    def challenge(self, environment: str, content: int) -> Path:
        folder = write_adapter(self.root / "adapters" / environment, content)
        self.end(Outcome(environment=environment, name=environment, stage="phase_two_dpo", status="ready", reason=""))
        return folder

    def end(self, ended: Outcome) -> None:
        """What became of an environment before the gate."""
        path = self.root / "adapters" / OUTCOMES
        write_records(path, [*(read_records(path, Outcome) if path.exists() else []), ended])

    def crown(self, environment: str, content: int, policy: str = POLICY, verdict: bytes = b"{}") -> Pointer:
        """Make an adapter the champion."""
        adapter = write_adapter(self.root / f"champion-{content}", content, policy)
        provenance = Provenance(
            parent=None, policy=policy, pairs="c" * 64, feedback="d" * 64, feedback_count=5, judges=(), commit="unknown",
            image="local", seed=0,
        )  # fmt: skip
        version = publish(self.store, environment, adapter, provenance, read_adapter).version
        return promote(self.store, environment, version, champion(self.store, environment), verdict, "Ada", NOW)

    def gate(self, *environments: str, control: bool = False) -> list[Outcome]:
        specs = [{"environment": name, "control": control} for name in environments]
        inputs = GateInputs(
            adapters=self.root / "adapters",
            policy=shipped_base(),
            evaluation=self.shared / "evaluation",
            segments=self.shared / "film",
            questions=self.shared / "world" / "questions.jsonl",
            feedback=self.shared / "feedback",
        )
        one, store = Shard.parse({"name": "one", "environments": specs}), str(self.root / "store")
        return gate_shard(one, inputs, store, self.backends, self.profile, 0, self.root / "verdicts")

    def held(self, environment: str) -> Held:
        return Held.model_validate_json((self.root / "verdicts" / environment / HELD).read_bytes())

    def verdict(self, environment: str) -> Verdict:
        return Verdict.model_validate_json((self.root / "verdicts" / environment / VERDICT).read_bytes())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Site:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("gated")
    small = {"world": {"stream_segments": 3, "development": 2}}
    profile = override(load_profile("miniature"), small, "small")
    assert profile.world is not None
    render_split(root / "world", "development", profile.world, 0)
    segmentation(root / "world" / "videos", profile, root / "film")
    backends = backends_for(profile, root / "world")
    questions = root / "world" / "questions.jsonl"
    streaming_eval(root / "film", questions, shipped_base(), backends, profile, 0, root / "evaluation")
    for name in ENVIRONMENTS:
        asked = tuple(
            Question(
                id=f"{name}{n}", environment=name, stream="deployment-s0-000", asked_at_s=n, type="object",
                text=f"what was carried at 00:0{n}?",
            )
            for n in range(5)
        )  # fmt: skip
        sources: dict[str, dict[str, tuple[str, ...]]] = {name: {question.id: ("a" * 64,) for question in asked}}
        mark = Watermark(offset=1, lines=1, sha256="c" * 64)
        write_collection(root / "feedback" / name, Collection({name: asked}, sources, (), mark, 5))
    collected = [Outcome(environment=n, name=n, stage="collect", status="ready", reason="") for n in ENVIRONMENTS]
    write_records(root / "feedback" / OUTCOMES, collected)
    return Site(root, root, profile, backends)


@pytest.fixture
def site(tmp_path: Path, shared: Site) -> Site:
    return replace(shared, root=tmp_path)


def memories(folder: Path) -> list[str | None]:
    return [memory.text for memory in read_records(folder / MEMORIES, Memory)]


def test_the_first_challenger_is_held_against_the_policy_alone(site: Site) -> None:
    adapter = site.challenge("door", 1)
    assert [(o.status, o.stage) for o in site.gate("door")] == [("ready", "gate")]
    files = Files.of(adapter)
    expected = Held(environment="door", policy=POLICY, challenger=sha256_tree(adapter), files=files, champion=None)
    assert site.held("door") == expected
    assert site.verdict("door").environment == "door"
    assert not (site.root / "verdicts" / "door" / "champion").exists()
    challenger = memories(site.root / "verdicts" / "door" / "challenger")
    assert challenger != memories(site.shared / "evaluation")


def test_a_later_challenger_is_held_against_the_champion(site: Site) -> None:
    pointer = site.crown("door", 2)
    site.challenge("door", 1)
    site.gate("door")
    assert site.held("door").champion == pointer
    folder = site.root / "verdicts" / "door"
    assert {m.adapter for m in read_records(folder / "champion" / MEMORIES, Memory)} == {"door@v1"}
    by_hand = site.root / "by hand"
    paths = (site.shared / "film", site.shared / "world" / "questions.jsonl", shipped_base())
    streaming_eval(*paths, site.backends, site.profile, 0, by_hand, site.root / "champion-2")
    assert memories(folder / "champion") == memories(by_hand) != memories(site.shared / "evaluation")


def test_a_champion_of_another_policy_does_not_count(site: Site) -> None:
    site.challenge("door", 1)
    site.gate("door")
    alone = site.verdict("door")
    pointer = site.crown("door", 2, OTHER_POLICY)
    (outcome,) = site.gate("door")
    assert outcome.status == "ready"
    assert site.verdict("door") == alone
    assert not (site.root / "verdicts" / "door" / "champion").exists()
    # promotion replaces that pointer, so it is named nevertheless
    assert site.held("door").champion == pointer


def test_where_the_champion_was_rolled_back_to_no_adapter_the_policy_alone_is_to_be_beaten(site: Site) -> None:
    site.challenge("door", 1)
    site.gate("door")
    alone = site.verdict("door")
    site.crown("door", 1)
    pointer = rollback(site.store, "door", "Bo", NOW)
    (outcome,) = site.gate("door")
    assert (outcome.status, pointer.version) == ("ready", None)
    assert site.verdict("door") == alone
    # promotion expects that very pointer
    assert site.held("door").champion == pointer


def test_a_champion_that_came_back_by_a_rollback_is_to_be_beaten_and_keeps_its_verdict(site: Site) -> None:
    site.challenge("door", 1)
    site.gate("door")
    said = (site.root / "verdicts" / "door" / VERDICT).read_bytes().replace(b'"seed": 0', b'"seed": 5')
    site.crown("door", 1, verdict=said)
    site.crown("door", 2)
    pointer = rollback(site.store, "door", "Bo", NOW)
    site.gate("door")
    assert pointer.version == "v1"
    assert (site.root / "verdicts" / "door" / VERDICT).read_bytes() == said
    site.challenge("room", 2)
    site.crown("room", 1)
    site.gate("room")
    assert (site.root / "verdicts" / "room" / "champion").exists()


def test_another_environment_s_champion_does_not_count(site: Site) -> None:
    site.crown("room", 2)
    site.challenge("door", 1)
    site.gate("door")
    assert site.held("door").champion is None
    assert not (site.root / "verdicts" / "door" / "champion").exists()


def test_a_challenger_that_is_champion_already_keeps_the_verdict_that_made_it_so(site: Site) -> None:
    site.challenge("door", 1)
    site.gate("door")
    document = (site.root / "verdicts" / "door" / VERDICT).read_bytes()
    said = document.replace(b'"seed": 0', b'"seed": 5')
    pointer = site.crown("door", 1, verdict=said)
    (outcome,) = site.gate("door")
    assert outcome.status == "ready"
    assert (site.root / "verdicts" / "door" / VERDICT).read_bytes() == said != document
    assert site.held("door").champion == pointer


def test_a_control_is_never_held_against_anybody(site: Site) -> None:
    site.challenge("door", 1)
    (outcome,) = site.gate("door", control=True)
    assert (outcome.status, outcome.reason) == ("skipped", "a control is never promoted")
    assert [path.name for path in (site.root / "verdicts").iterdir()] == [OUTCOMES]


def test_a_broken_challenger_stops_no_other(site: Site) -> None:
    broken = site.challenge("door", 1)
    (broken / "adapter_model.safetensors").write_bytes(b"torn")
    site.challenge("room", 2)
    door, room = site.gate("door", "room")
    assert (door.status, room.status) == ("failed", "ready")
    assert "not a safetensors file" in door.reason
    assert not (site.root / "verdicts" / "door").exists()


def test_a_challenger_without_its_curve_fails_with_the_file_s_name(site: Site) -> None:
    (site.challenge("door", 1) / "training.json").unlink()
    (door,) = site.gate("door")
    assert door.status == "failed"
    assert door.reason.endswith(
        "training.json: cannot be read (No such file or directory); give a folder that phase-two wrote"
    )


def test_what_failed_earlier_is_carried_through_the_gate(site: Site) -> None:
    failed = Outcome(environment="door", name="door", stage="preference_mining", status="failed", reason="judge down")
    site.end(failed)
    assert site.gate("door") == [failed]


class Down:
    """A judge of fidelity that fails for good on the streams named."""

    def __init__(self, judge: FidelityJudge, streams: Names[str]) -> None:
        self.identity: Judge = judge.identity
        self._judge, self._streams = judge, streams

    def fidelity(self, context: Context, memory: str) -> Fidelity:
        if context.current.stream in self._streams:
            raise JudgeError("the endpoint answered 503 four times")
        return self._judge.fidelity(context, memory)


def test_a_gate_whose_judge_is_down_fails_and_leaves_the_feedback_for_another_night(site: Site) -> None:
    site.challenge("door", 1)
    judges = site.backends.judges
    streams = {memory.stream for memory in read_records(site.shared / "evaluation" / MEMORIES, Memory)}
    down = replace(judges, fidelity=Down(judges.fidelity, sorted(streams)[:1]))
    (outcome,) = replace(site, backends=replace(site.backends, judges=down)).gate("door")
    assert outcome.status == "failed"
    assert outcome.reason.startswith("too many contexts are unscored: ")
    assert outcome.reason.endswith("the endpoint answered 503 four times; mend the judge and run the night again")
