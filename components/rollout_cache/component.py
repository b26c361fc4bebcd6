"""N candidates per context from the frozen policy, once (METHOD section 4, step 1)."""

from kfp.dsl import Dataset, Input, Model, Output

from components.base import component


@component
def rollout_cache(
    segments: Input[Dataset],
    policy: Input[Model],
    store: str,
    profile: str,
    seed: int,
    rollouts: Output[Dataset],
) -> None:
    """Write rollouts.jsonl: the candidates of every context.

    Those of a context that `store` (a URL; "" for none) holds already are taken from there, new ones are put there: a context is
    sampled once, also over many nights.
    """
    from taskmem.entry import rollout_cache as stage

    stage(segments.path, policy.path, store, profile, seed, rollouts.path)
