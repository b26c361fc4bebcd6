"""Phase Two: one steer vector per environment, the policy frozen (METHOD section 4, step 5)."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.base import component


@component
def phase_two_dpo(
    shard: dict,
    preferences: Input[Dataset],
    rollouts: Input[Dataset],
    segments: Input[Dataset],
    policy: Input[Model],
    profile: str,
    seed: int,
    adapters: Output[Model],
    metrics: Output[Metrics],
) -> None:
    """Train the challenger adapter <name>/ of each environment from zero, and write outcomes.jsonl."""
    from taskmem.entry import phase_two_dpo as stage

    paths = (preferences.path, rollouts.path, segments.path, policy.path)
    numbers = stage(shard, *paths, profile, seed, adapters.path)
    adapters.metadata["failed"] = numbers["failed"]
    for name, value in numbers.items():
        metrics.log_metric(name, value)
