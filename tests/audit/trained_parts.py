"""A night of the stages themselves on short streams, from the rendered world to the recorded run; its verdict is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import torch
from audit_parts import IMAGE, verdict

from taskmem.backends import backends_for, helpfulness_judge
from taskmem.cli import shipped_base
from taskmem.config import Profile, load_profile, override
from taskmem.feedback import EventLog
from taskmem.files import sha256_bytes, sha256_tree
from taskmem.lineage.git import new_repository
from taskmem.lineage.outcome import Outcome
from taskmem.lineage.stage import Places, record_stage
from taskmem.records import FeedbackEvent, Question, read_records, write_json
from taskmem.registry import Files, champion
from taskmem.stages.candidates import rollout_cache
from taskmem.stages.gating import Held
from taskmem.stages.judging import judge_scoring
from taskmem.stages.nightly import Learning, collect_shard, mine_shard, train_shard
from taskmem.stages.promotion import promote_shard
from taskmem.stages.segmentation import segmentation
from taskmem.stages.shard import Shard
from taskmem.store import Store, open_store
from taskmem.world.splits import render_split

SMALL = {"world": {"stream_segments": 6, "deployment": 4}, "mining": {"candidates": 6}, "phase_two": {"steps": 3}}
TASK, SEED = "object", 5


@dataclass(frozen=True)
class Night:
    """A finished night, recorded: where everything is."""

    root: Path
    url: str
    remote: str

    @property
    def store(self) -> Store:
        return open_store(self.url)

    @property
    def lineage(self) -> str:
        return str(self.root / "lineage.git")

    @property
    def adapter(self) -> Path:
        return self.root / "adapters" / "door"


def night(root: Path, url: str, remote: str) -> Night:
    """The environment `door` is adapted and its adapter promoted, on a verdict that is written by hand."""
    torch.set_num_threads(1)
    profile, shard = override(load_profile("miniature"), SMALL, "small"), _shard()
    _watched(root, profile)
    outcomes = _adapted(root, url, profile, shard)
    new_repository(root / "lineage.git")
    shared = {kind: [_shared(root, kind)] for kind in ("gate_segments", "gate_questions", "champion")}
    paths = {"segments": "film", "policy": "", "rollouts": "rollouts", "judgements": "judgements", "events": "events"}
    folders = {kind: [root / name if name else shipped_base()] for kind, name in paths.items()}
    made = {kind: [root / kind] for kind in ("feedback", "preferences", "adapters", "verdicts")}
    where = Places(url, str(root / "lineage.git"), remote)
    used = {**shared, **folders, **made}
    record_stage(used, outcomes, shard.environments, profile, IMAGE, SEED, where, root / "record", root / "summary.md")
    return Night(root, url, remote)


def _shard() -> Shard:
    return Shard.parse({"name": "one", "environments": [{"environment": "door"}]})


def _watched(root: Path, profile: Profile) -> None:
    assert profile.world is not None
    render_split(root / "world", "deployment", profile.world, SEED)
    segmentation(root / "world" / "videos", profile, root / "film")
    rollout_cache(root / "film", shipped_base(), profile, SEED, root / "rollouts")
    judges = backends_for(profile, root / "world")
    judge_scoring(root / "rollouts", root / "film", judges, profile, root / "judgements")
    asked = [q for q in read_records(root / "world" / "questions.jsonl", Question) if q.type == TASK]
    with EventLog(root / "events" / "door.jsonl") as log:
        for number, question in enumerate(asked[:6]):
            log.append(_event(question, number))
    (root / "events" / "door.jsonl.lock").unlink()


def _adapted(root: Path, url: str, profile: Profile, shard: Shard) -> Sequence[Outcome]:
    collect_shard(shard, root / "events", url, profile, root / "feedback")
    learning = Learning(*(root / name for name in ("feedback", "rollouts", "judgements", "film")))
    mine_shard(shard, learning, helpfulness_judge(profile), profile, SEED, root / "preferences")
    paths = (root / "preferences", root / "rollouts", root / "film", shipped_base())
    (ended,) = train_shard(shard, *paths, profile, SEED, root / "adapters")
    assert ended.status == "ready", ended.reason
    _judged(root, open_store(url), ended)
    folders = (root / "adapters", root / "verdicts", root / "preferences", root / "feedback")
    outcomes = promote_shard(shard, *folders, url, profile, IMAGE, SEED, root / "outcomes")
    assert [outcome.status for outcome in outcomes] == ["promoted"], outcomes[0].reason
    return outcomes


def _judged(root: Path, store: Store, ended: Outcome) -> None:
    """What the gate leaves of a challenger that wins."""
    adapter, folder = root / "adapters" / "door", root / "verdicts" / "door"
    held = Held(
        environment="door",
        policy=sha256_tree(shipped_base()),
        challenger=sha256_tree(adapter),
        files=Files.of(adapter),
        champion=champion(store, "door"),
    )
    write_json(folder / "held.json", held.model_dump(mode="json"))
    write_json(folder / "verdict.json", verdict("door", True).model_dump(mode="json"))
    (root / "verdicts" / "outcomes.jsonl").write_text(f"{ended.model_dump_json()}\n")


def _shared(root: Path, kind: str) -> Path:
    write_json(root / kind / f"{kind}.json", {"kind": kind})
    return root / kind


def _event(question: Question, number: int) -> FeedbackEvent:
    return FeedbackEvent(
        id=f"e{number}",
        environment="door",
        source=sha256_bytes(f"user {number % 2}"),
        time=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=question.asked_at_s),
        question=question.id,
        stream=question.stream,
        asked_at_s=question.asked_at_s,
        type=question.type,
        text=question.text,
        options=question.options,
        answer=None,
        outcome="unknown",
        consent=True,
    )
