"""The end of a night: challengers with their verdicts, for `promote_shard` to publish and promote."""

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from peft import get_peft_model

from taskmem.cli import shipped_base
from taskmem.config import load_profile
from taskmem.evaluation.gate import Gold, Rate, Unscored, Verdict, Wins
from taskmem.feedback import Collection, Watermark, write_collection
from taskmem.files import sha256_tree
from taskmem.lineage.outcome import OUTCOMES, Outcome
from taskmem.policy.transformers_policy import load_checkpoint, policy_digest, policy_reference
from taskmem.records import Comparison, Judge, Preference, Question, read_records, write_json, write_records
from taskmem.registry import Files, champion, watermark
from taskmem.stages.gate import VERDICT
from taskmem.stages.gating import HELD, Held
from taskmem.stages.nightly import SINCE
from taskmem.stages.promotion import promote_shard
from taskmem.stages.shard import Shard
from taskmem.steer import SteerConfig
from taskmem.store import LocalStore

POLICY, OTHER_POLICY, IMAGE = policy_digest(shipped_base()), "b" * 64, "registry.test/taskmem/train@sha256:" + "7" * 64
JUDGE = Judge(role="helpfulness", model="world", prompt_sha256="e" * 64)
NOW = datetime(2026, 3, 1, tzinfo=UTC)
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


def three_adapters(root: Path) -> list[Path]:
    torch.set_num_threads(1)
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
        digest, files = sha256_tree(adapter), Files.of(adapter)
        held = Held(environment=environment, policy=POLICY, challenger=digest, files=files, champion=pointer)
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
