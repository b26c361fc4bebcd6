"""One group of rollouts: sampled, judged, rewarded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taskmem.config import RewardSettings
from taskmem.judge.protocols import JudgeError, Judges
from taskmem.judge.scoring import judge_group
from taskmem.policy.protocols import Completion
from taskmem.records import Context, Judgement
from taskmem.reward import Reward, Sample, advantages, rewards, richness_pool


@dataclass(frozen=True)
class Group:
    """The rollouts of one context with what training needs of them."""

    context: Context
    completions: tuple[Completion, ...]
    judgements: tuple[Judgement, ...]
    rewards: tuple[Reward, ...]
    advantages: tuple[float, ...]

    @property
    def valid(self) -> list[str]:
        """The memories that may enter the on-policy history: format kept, quality passed."""
        pairs = zip(self.completions, self.judgements, strict=True)
        return [c.memory for c, j in pairs if j.quality_ok and c.memory is not None]


def reward_group(
    context: Context, completions: Sequence[Completion], judges: Judges, settings: RewardSettings
) -> Group:
    """Judge a group and turn verdicts into rewards and advantages (METHOD section 3)."""
    judgements = judge_group(context, completions, judges, settings.quality.memory_budget)
    samples = [
        Sample(judgement, completion.think_tokens, completion.memory_tokens)
        for judgement, completion in zip(judgements, completions, strict=True)
    ]
    pool = richness_pool(judgements, settings)
    group_rewards = rewards(samples, _ranks(context, [completions[i].memory or "" for i in pool], judges), settings)
    return Group(
        context, tuple(completions), tuple(judgements), tuple(group_rewards), tuple(advantages(group_rewards, settings))
    )


def _ranks(context: Context, memories: Sequence[str], judges: Judges) -> list[float] | None:
    if not memories:
        return []
    try:
        return judges.richness.rank(context, memories)
    except JudgeError:
        return None


def summarise(groups: Sequence[Group]) -> Mapping[str, float]:
    """Means over the rollouts: reward and its terms over the scored ones (absent if there are none), lengths and shares.

    `unscored` alone is a count.
    """
    flat = [(c, j, r) for g in groups for c, j, r in zip(g.completions, g.judgements, g.rewards, strict=True)]
    scored = [r for _, _, r in flat if r.scored]
    count = len(flat)
    terms: dict[str, float] = {}
    if scored:
        terms = {
            "reward": sum(r.total or 0.0 for r in scored) / len(scored),
            "format_reward": sum(r.format for r in scored) / len(scored),
            "length_reward": sum(r.length for r in scored) / len(scored),
            "quality_reward": sum(r.quality for r in scored) / len(scored),
            "richness_reward": sum(r.richness for r in scored) / len(scored),
        }
    return {
        **terms,
        "memory_tokens": sum(c.memory_tokens for c, _, _ in flat) / count,
        "think_tokens": sum(c.think_tokens for c, _, _ in flat) / count,
        "format_rate": sum(j.format_ok for _, j, _ in flat) / count,
        "quality_rate": sum(j.quality_ok for _, j, _ in flat) / count,
        "unscored": float(count - len(scored)),
    }
