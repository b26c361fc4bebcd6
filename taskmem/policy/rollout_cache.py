"""The rollout cache: N candidates per context, sampled once from the frozen policy with the adapter off (METHOD section 4, 1)."""

import random
from collections.abc import Sequence
from typing import Protocol

from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.policy.protocols import Completion, Policy
from taskmem.policy.stream import by_stream, watch
from taskmem.progress import Progress, silent
from taskmem.records import Candidate, Context, Rollouts, Segment

CONTEXTS_AT_ONCE = 16


class KeptRollouts(Protocol):
    """Candidates that outlive a job, by context; several jobs may share them."""

    def get(self, context: str) -> Rollouts | None:
        """The candidates of a context id, None where there are none yet."""
        ...

    def keep(self, rollouts: Rollouts) -> Rollouts:
        """Keep new candidates and return those that are kept: another job's, if it was first."""
        ...


def build_rollouts(
    policy: Policy,
    segments: Sequence[Segment],
    profile: Profile,
    seed: int,
    progress: Progress = silent,
    kept: KeptRollouts | None = None,
) -> tuple[list[Rollouts], list[Context]]:
    """Watch the streams with the policy, then sample candidates for (a seeded choice of) its contexts.

    A context whose candidates are `kept` is not sampled again; new ones are added there. The preceding memories are
    the policy's own. UserError if an adapter is on: the cache must not depend on any champion.
    """
    if policy.adapter != "none":
        raise UserError(f"rollouts: adapter {policy.adapter} is on; the cache is built with the frozen policy alone")
    _, contexts = watch(policy, by_stream(segments), profile.policy.window, seed)
    wanted = profile.mining.contexts
    if wanted is not None and wanted < len(contexts):
        chosen = sorted(random.Random(f"rollouts-{seed}").sample(range(len(contexts)), wanted))
        contexts = [contexts[i] for i in chosen]
    cached = {c.id: found for c in contexts if (found := kept.get(c.id))} if kept else {}
    new = [context for context in contexts if context.id not in cached]
    for start in range(0, len(new), CONTEXTS_AT_ONCE):
        part = new[start : start + CONTEXTS_AT_ONCE]
        groups = policy.write(part, profile.mining.candidates, seed)
        for context, group in zip(part, groups, strict=True):
            sampled = _rollouts(context, group, policy, seed)
            cached[context.id] = kept.keep(sampled) if kept else sampled
        progress(len(cached), len(contexts))
    return [cached[context.id] for context in contexts], contexts


def _rollouts(context: Context, group: Sequence[Completion], policy: Policy, seed: int) -> Rollouts:
    return Rollouts(
        context=context.id,
        stream=context.current.stream,
        index=context.current.index,
        memories=context.memories,
        candidates=tuple(
            Candidate(index=i, text=c.text, memory=c.memory, think_tokens=c.think_tokens, memory_tokens=c.memory_tokens)
            for i, c in enumerate(group)
        ),
        policy=policy.digest,
        seed=seed,
    )
