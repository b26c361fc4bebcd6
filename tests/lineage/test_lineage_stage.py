"""What the real stages made of an environment is recorded, and in a fresh clone its commands make the same bytes again."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from lineage_parts import IMAGE, SHARED, Place, dvc, files, git, place

from taskmem.backends import backends_for, helpfulness_judge
from taskmem.cli import shipped_base
from taskmem.config import load_profile, override
from taskmem.errors import UserError
from taskmem.feedback import EventLog, FeedbackParts
from taskmem.lineage.layout import SHARDED
from taskmem.lineage.outcome import OUTCOMES, Outcome
from taskmem.lineage.stage import Places, members, record_stage
from taskmem.records import FeedbackEvent, read_records
from taskmem.registry import advance
from taskmem.stages.candidates import rollout_cache
from taskmem.stages.judging import judge_scoring
from taskmem.stages.nightly import Learning, collect_shard, mine_shard, train_shard
from taskmem.stages.segmentation import segmentation
from taskmem.stages.shard import Shard
from taskmem.store import LocalStore
from taskmem.world.splits import render_split

SMALL = {"world": {"stream_segments": 4, "deployment": 3}, "mining": {"candidates": 6}, "phase_two": {"steps": 2}}
PROFILE = override(load_profile("miniature"), SMALL, "small")
SHARD = Shard.parse(
    {
        "name": "one",
        "environments": [
            {"environment": "door", "settings": {"phase_two": {"learning_rate": 0.01}}},
            {"environment": "closed", "settings": {"gate": {"unscored": 1.0}}},
        ],
    }
)
SEED = 7


def each(number: int, environment: str) -> FeedbackEvent:
    fields: dict[str, Any] = {
        "id": f"q{number}",
        "environment": environment,
        "source": f"{number % 3:x}" * 64,
        "time": datetime(2026, 1, 1, 0, number, tzinfo=UTC),
        "question": f"q{number}",
        "stream": "deployment-s7-000",
        "asked_at_s": float(number),
        "type": "object",
        "text": f"what was carried at 00:{number:02d}?",
        "answer": None,
        "outcome": "unknown",
        "consent": True,
    }
    return FeedbackEvent(**fields)


def asked(log: Path, count: int) -> None:
    with EventLog(log) as events:
        for number in range(count):
            events.append(each(number, log.stem))


def night(root: Path) -> tuple[dict[str, list[Path]], list[Outcome]]:
    """A night of one environment up to its adapter; another one's settings are refused."""
    torch.set_num_threads(1)
    world, film = root / "world", root / "film"
    assert PROFILE.world is not None
    render_split(world, "deployment", PROFILE.world, SEED)
    segmentation(world / "videos", PROFILE, film)
    rollout_cache(film, shipped_base(), PROFILE, SEED, root / "rollouts")
    judge_scoring(root / "rollouts", film, backends_for(PROFILE, world), PROFILE, root / "judgements")
    for environment in ("door", "closed"):
        asked(root / "events" / f"{environment}.jsonl", 5)
    collect_shard(SHARD, root / "events", "", PROFILE, root / "feedback")
    learning = Learning(root / "feedback", root / "rollouts", root / "judgements", film)
    mine_shard(SHARD, learning, helpfulness_judge(PROFILE), PROFILE, SEED, root / "preferences")
    paths = (root / "preferences", root / "rollouts", film, shipped_base())
    outcomes = train_shard(SHARD, *paths, PROFILE, SEED, root / "adapters")
    (root / "verdicts").mkdir()
    used = {name: [root / name] for name in ("events", "feedback", "preferences", "adapters", "verdicts", "rollouts")}
    used |= {"judgements": [root / "judgements"], "policy": [shipped_base()], "champion": [root / "judgements"]}
    return used | {"segments": [film], "gate_segments": [film], "gate_questions": [world]}, outcomes


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, Path, list[str]]:
    """The night recorded, and what was said meanwhile."""
    where = place(tmp_path_factory.mktemp("stage"))
    used, outcomes = night(where.root / "night")
    said: list[str] = []
    places = Places(str(where.root / "store"), str(where.lineage), where.remote)
    out = where.root / "record"
    record_stage(
        used, outcomes, SHARD.environments, PROFILE, IMAGE, SEED, places, out, where.root / "table.md", said.append
    )
    return where, where.clone(where.root / "clone"), said


def test_in_a_fresh_clone_the_recorded_commands_make_the_same_bytes_again(
    recorded: tuple[Place, Path, list[str]],
) -> None:
    where, clone, _ = recorded
    adapter = files(clone / "environments/door/adapter")
    assert adapter == files(where.root / "night/adapters/door")
    assert set(adapter) >= {"adapter_model.safetensors", "adapter_config.json", "training.json"}
    stages = [f"environments/door/dvc.yaml:{stage}" for stage in ("mine", "phase_two")]
    said = dvc(clone, "repro", "--force", "--single-item", *stages)
    assert said.count("Running stage") == 2
    assert files(clone / "environments/door/adapter") == adapter
    # neither dvc.lock nor anything else has changed
    assert git(clone, "status", "--short") == ""
    assert dvc(clone, "status") == "Data and pipelines are up to date."


def test_the_record_beside_it_is_as_without_a_repository(recorded: tuple[Place, Path, list[str]]) -> None:
    where, clone, said = recorded
    document = json.loads((clone / "run.json").read_text())
    written = json.loads((where.root / "record" / "lineage.json").read_text())
    assert document["artifacts"] == written["artifacts"]
    assert sorted(path.name for path in (where.root / "record").iterdir()) == ["lineage.json", OUTCOMES]
    assert said[0] == "cloned"
    assert said[-1] == f"run {document['id']} is commit {where.head()}"
    assert not (where.root / ".lineage").exists()


def test_an_environment_whose_settings_were_refused_has_its_outcome_alone(
    recorded: tuple[Place, Path, list[str]],
) -> None:
    _, clone, _ = recorded
    assert [path.name for path in (clone / "environments/closed").iterdir()] == ["outcome.json"]
    (outcome,) = read_records(clone / "environments/closed/outcome.json", Outcome)
    assert (outcome.status, outcome.reason[:7]) == ("failed", "sha256:")
    assert set(members(SHARD.environments, PROFILE)) == {"door"}
    assert members(SHARD.environments, PROFILE)["door"].profile.phase_two.learning_rate == 0.01


def test_random_pairs_are_known_as_such() -> None:
    control = {"environment": "door", "adapter": "control", "pairs": "random", "control": True}
    shard = Shard.parse({"name": "one", "environments": [{"environment": "door"}, control]})
    assert {name: m.drawn for name, m in members(shard.environments, PROFILE).items()} == {
        "door": False,
        "control": True,
    }


def test_without_a_repository_there_is_the_record_alone(tmp_path: Path) -> None:
    out = tmp_path / "record"
    record_stage({}, [], [], PROFILE, IMAGE, 0, Places("", "", ""), out, tmp_path / "table.md")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["lineage.json", OUTCOMES, "record", "table.md"]


def test_a_repository_without_a_remote_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    whole = {kind: [tmp_path / "used"] for kind in ("events", *SHARED, *SHARDED)}
    used = {kind: folders for kind, folders in whole.items() if kind != "segments"}
    with pytest.raises(UserError, match=r"^artifacts: segments: there must be one"):
        nowhere = Places(str(tmp_path / "store"), str(tmp_path / "lineage.git"), str(tmp_path / "remote"))
        record_stage(used, [], [], PROFILE, IMAGE, 0, nowhere, tmp_path / "record", tmp_path / "table.md")
    with pytest.raises(
        UserError, match=r"^remote \(empty\): neither s3:// nor a folder; give s3://bucket/prefix or a f"
    ):
        nowhere = Places(str(tmp_path / "store"), str(tmp_path / "lineage.git"), "")
        record_stage(whole, [], [], PROFILE, IMAGE, 0, nowhere, tmp_path / "record", tmp_path / "table.md")
    assert not (tmp_path / "lineage.git").exists()


def test_feedback_that_came_in_parts_is_recorded_as_it_was_read_and_collects_to_the_same_bytes(
    recorded: tuple[Place, Path, list[str]], tmp_path: Path
) -> None:
    root = recorded[0].root / "night"
    store = LocalStore(tmp_path / "store")
    for number in range(4):
        FeedbackParts(store, "door").append([each(number, "door"), each(number + 1, "door")])
    advance(store, "door", FeedbackParts(store, "door").end().model_dump(mode="json"), None)
    FeedbackParts(store, "door").append([each(n, "door") for n in (4, 5, 6, 7, 8, 9)])
    outcomes = collect_shard(SHARD, str(tmp_path / "store"), str(tmp_path / "store"), PROFILE, tmp_path / "feedback")
    assert [o.status for o in outcomes] == ["ready", "failed"]
    (tmp_path / "none").mkdir()
    used = {kind: [root / "rollouts"] for kind in SHARED} | {"segments": [root / "film"], "policy": [shipped_base()]}
    used |= {kind: [tmp_path / "none"] for kind in SHARDED} | {"feedback": [tmp_path / "feedback"]}
    where = place(tmp_path / "place")
    places = Places(str(tmp_path / "store"), str(where.lineage), where.remote)
    out = where.root / "record"
    record_stage(used, outcomes, SHARD.environments, PROFILE, IMAGE, SEED, places, out, where.root / "table.md")
    folder = where.clone(tmp_path / "clone") / "environments/door"
    made = files(folder / "feedback")
    assert (folder / "events.jsonl").read_bytes() == (tmp_path / "feedback/door/events.jsonl").read_bytes()
    assert set(made) == {"questions/door.jsonl", "refused.jsonl", "sources.json", "watermark.json"}
    dvc(tmp_path / "clone", "repro", "--force", "--single-item", "environments/door/dvc.yaml:collect")
    assert files(folder / "feedback") == made
    assert git(tmp_path / "clone", "status", "--short") == ""
