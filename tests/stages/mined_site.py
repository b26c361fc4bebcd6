"""Short streams with everything that a night's training needs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from night_parts import shard

from taskmem.cli import shipped_base
from taskmem.config import Profile
from taskmem.judge.protocols import HelpfulnessJudge
from taskmem.lineage.outcome import Outcome
from taskmem.records import Preference, read_records
from taskmem.stages.nightly import Learning, mine_shard, train_shard

ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "influence.json", "training.json"}


@dataclass(frozen=True)
class Site:
    """Short streams, the shipped base's candidates with their judgements, and the feedback of three environments."""

    root: Path
    profile: Profile
    judge: HelpfulnessJudge

    @property
    def learning(self) -> Learning:
        return Learning(*(self.root / name for name in ("feedback", "rollouts", "judgements", "film")))

    def mine(self, *environments: str | dict[str, Any], out: str = "pairs") -> list[Outcome]:
        return mine_shard(shard(*environments), self.learning, self.judge, self.profile, 0, self.root / out)

    def pairs(self, name: str, out: str = "pairs") -> list[Preference]:
        return read_records(self.root / out / name / "preferences.jsonl", Preference)

    def train(self, *environments: str | dict[str, Any], out: str = "adapters", **more: Any) -> list[Outcome]:
        paths = (self.root / "pairs", self.root / "rollouts", self.root / "film", shipped_base())
        return train_shard(shard(*environments), *paths, self.profile, 0, self.root / out, **more)

    def adapter(self, name: str, out: str = "adapters") -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((self.root / out / name).iterdir())}
