"""The reward of Phase One: four terms, group-normalised advantages and the NSR gate (METHOD section 3).

arXiv:2605.31075. Pure functions over plain floats. Every weight is a setting; nothing here knows the paper's values.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from taskmem.config import LengthTerm, RewardSettings
from taskmem.records import Judgement


@dataclass(frozen=True)
class Sample:
    """One rollout of a group: what the judges said of it, and its lengths in tokens."""

    judgement: Judgement
    think_tokens: int
    memory_tokens: int


@dataclass(frozen=True)
class Reward:
    """The four terms of one sample; all zero where it is not scored."""

    format: float = 0.0
    length: float = 0.0
    quality: float = 0.0
    richness: float = 0.0
    scored: bool = True

    @property
    def total(self) -> float | None:
        """The sum of the terms; None for an unscored sample, which takes no part in training."""
        return self.format + self.length + self.quality + self.richness if self.scored else None


def _passed(judgement: Judgement) -> bool:
    verdicts = (judgement.within_budget, judgement.faithful, judgement.coherent, judgement.non_redundant)
    if None in verdicts and False not in verdicts:
        raise ValueError(
            f"context {judgement.context} candidate {judgement.candidate}: a verdict is missing, yet not unscored"
        )
    return judgement.quality_ok


def length_term(tokens: int, settings: LengthTerm) -> float:
    """r_len: `within` up to `soft` tokens, `beyond` from `hard` tokens, linear between (METHOD section 3)."""
    if tokens <= settings.soft:
        return settings.within
    if tokens >= settings.hard:
        return settings.beyond
    return settings.within + (settings.beyond - settings.within) * (tokens - settings.soft) / (
        settings.hard - settings.soft
    )


def richness_pool(judgements: Sequence[Judgement], settings: RewardSettings) -> list[int]:
    """Positions in the group that the richness judge is to rank, ascending (METHOD section 3, r_rich).

    Pool "valid": format kept and quality passed; "formatted": format kept. Unscored samples are never in it. Empty
    where a rank would decide nothing: fewer than two such samples, or a weight of 0. Raises ValueError for a judgement
    that lacks a verdict without being unscored.
    """
    everyone = settings.richness.pool == "formatted"
    scored = [(i, j) for i, j in enumerate(judgements) if j.format_ok and not j.unscored]
    pool = [i for i, j in scored if everyone or _passed(j)]
    return pool if len(pool) >= 2 and settings.richness.weight > 0 else []


def _shares(pool: Sequence[int], ranks: Sequence[float]) -> dict[int, float]:
    if len(ranks) != len(pool) or not all(1 <= rank <= len(pool) for rank in ranks):
        raise ValueError(f"{len(pool)} samples are to be ranked from 1 to {len(pool)}; got the ranks {list(ranks)}")
    return {i: 1 - (rank - 1) / (len(pool) - 1) for i, rank in zip(pool, ranks, strict=True)}


def rewards(group: Sequence[Sample], ranks: Sequence[float] | None, settings: RewardSettings) -> list[Reward]:
    """The reward of every sample of one group, in its order (METHOD section 3).

    `ranks` holds one rank for each position of `richness_pool`, in its order: 1 is richest, ties share their mean rank.
    Where the pool is empty, `ranks` is None or empty. Where it is not, None says that the richness judge failed for
    good, and every sample of the pool is left unscored. A format violation zeroes every other term. Raises ValueError
    for ranks that do not fit the pool and for a judgement that lacks a verdict without being unscored.
    """
    pool = richness_pool([sample.judgement for sample in group], settings)
    shares = {} if ranks is None else _shares(pool, ranks)
    unranked = set(pool) if ranks is None else set()
    result = []
    for position, sample in enumerate(group):
        if sample.judgement.unscored or position in unranked:
            result.append(Reward(scored=False))
        elif not sample.judgement.format_ok:
            result.append(Reward(format=settings.format.violation))
        else:
            tokens = sample.think_tokens if settings.length.measure == "thinking" else sample.memory_tokens
            result.append(
                Reward(
                    format=settings.format.valid,
                    length=length_term(tokens, settings.length),
                    quality=settings.quality.passed if _passed(sample.judgement) else settings.quality.failed,
                    richness=settings.richness.weight * shares.get(position, 0.0),
                )
            )
    return result


def advantages(group: Sequence[Reward], settings: RewardSettings) -> list[float]:
    """The advantage of every sample of one group: (r - mean) / max(std, std_floor), then the NSR gate.

    METHOD section 3. Mean and deviation are over the scored samples; the deviation is the unbiased one (n - 1), as in
    TRL and `torch.std`. All are 0 where fewer than two samples are scored or all rewards are equal; an unscored
    sample's is always 0. The gate sets a negative advantage to 0 where the sample's own reward is not negative.
    """
    totals = [reward.total for reward in group]
    scored = [total for total in totals if total is not None]
    deviation = statistics.stdev(scored) if len(scored) >= 2 else 0.0
    if deviation == 0:
        return [0.0] * len(group)
    mean, scale = statistics.mean(scored), max(deviation, settings.std_floor)

    def advantage(total: float | None) -> float:
        if total is None or (settings.nsr_gate and mean > total >= 0):
            return 0.0
        return (total - mean) / scale

    return [advantage(total) for total in totals]
