"""Which rollouts take part in mining (METHOD section 4)."""

from collections.abc import Iterable
from dataclasses import dataclass

from taskmem.config import MiningSettings
from taskmem.errors import UserError
from taskmem.records import Judgement, Rollouts


@dataclass(frozen=True)
class MinedCandidate:
    """A rollout that may become half of a pair; `quality_ok` says whether r_qual would be positive."""

    context: str
    index: int
    memory: str
    memory_tokens: int
    quality_ok: bool


def mined_candidates(
    rollouts: Rollouts, judgements: Iterable[Judgement], settings: MiningSettings
) -> tuple[MinedCandidate, ...]:
    """The candidates of one context that may be compared, by index (METHOD section 4, steps 1 and 4).

    A candidate takes part if it holds a memory, keeps the mining budgets (tokens of memory and of thinking) and is
    scored: a failed judge excludes it and never makes it low-quality. Judgements of other contexts are ignored. Raises
    UserError for a candidate judged twice, or within the budgets and not judged.
    """
    judged: dict[int, Judgement] = {}
    for judgement in judgements:
        if judgement.context != rollouts.context:
            continue
        if judgement.candidate in judged:
            raise UserError(
                f"context {rollouts.context} candidate {judgement.candidate}: judged twice; remove one judgement"
            )
        judged[judgement.candidate] = judgement
    chosen = []
    for candidate in sorted(rollouts.candidates, key=lambda c: c.index):
        over = candidate.memory_tokens > settings.memory_budget or candidate.think_tokens > settings.thinking_budget
        if candidate.memory is None or over:
            continue
        verdict = judged.get(candidate.index)
        if verdict is None:
            raise UserError(
                f"context {rollouts.context} candidate {candidate.index}: no judgement; score these rollouts first"
            )
        if not verdict.unscored:
            chosen.append(
                MinedCandidate(
                    rollouts.context, candidate.index, candidate.memory, candidate.memory_tokens, verdict.quality_ok
                )
            )
    return tuple(chosen)


def distinct(candidates: Iterable[MinedCandidate]) -> dict[str, MinedCandidate]:
    """One candidate for each memory text, the one with the lowest index, which speaks for all of that text."""
    unique: dict[str, MinedCandidate] = {}
    for candidate in sorted(candidates, key=lambda c: c.index):
        unique.setdefault(candidate.memory, candidate)
    return unique
