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

    @property
    def lesson(self) -> "Lesson":
        """What the processes that did not write this group need of it."""
        pairs = zip(self.completions, self.judgements, strict=True)
        return Lesson(
            context=self.context.id,
            tokens=[list(c.tokens) for c in self.completions],
            advantages=list(self.advantages),
            rewards=[_terms(reward) if reward.scored else None for reward in self.rewards],
            written=[_lengths(c, j) for c, j in pairs],
            valid=self.valid,
        )


@dataclass(frozen=True)
class Lesson:
    """A group as it travels between processes, plain JSON: what is learned from each rollout, and what the curves show.

    `rewards` holds the terms of each rollout, None where it is not scored. `context` is the context's id.
    """

    context: str
    tokens: list[list[int]]
    advantages: list[float]
    rewards: list[dict[str, float] | None]
    written: list[dict[str, float]]
    valid: list[str]


def _terms(reward: Reward) -> dict[str, float]:
    terms = {f"{name}_reward": getattr(reward, name) for name in ("format", "length", "quality", "richness")}
    return {"reward": reward.total or 0.0, **terms}


def _lengths(completion: Completion, judgement: Judgement) -> dict[str, float]:
    return {
        "memory_tokens": completion.memory_tokens,
        "think_tokens": completion.think_tokens,
        "format_rate": judgement.format_ok,
        "quality_rate": judgement.quality_ok,
    }


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


def summarise(lessons: Sequence[Lesson]) -> Mapping[str, float]:
    """Means over the rollouts: reward and its terms over the scored ones (absent if there are none), lengths and shares.

    `unscored` alone is a count.
    """
    rewards = [reward for lesson in lessons for reward in lesson.rewards]
    scored = [reward for reward in rewards if reward is not None]
    written = [figures for lesson in lessons for figures in lesson.written]
    means = {name: sum(reward[name] for reward in scored) / len(scored) for name in (scored[0] if scored else ())}
    means |= {name: sum(figures[name] for figures in written) / len(written) for name in written[0]}
    return {**means, "unscored": float(len(rewards) - len(scored))}
