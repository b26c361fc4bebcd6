"""Comparisons under each environment's recent questions, and the pairs of each context (METHOD section 4)."""

from kfp.dsl import Dataset, Input, Metrics, Output

from components.base import component


@component
def preference_mining(
    shard: dict,
    feedback: Input[Dataset],
    rollouts: Input[Dataset],
    judgements: Input[Dataset],
    segments: Input[Dataset],
    profile: str,
    seed: int,
    preferences: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """Write <name>/preferences.jsonl and comparisons.jsonl for each environment, and outcomes.jsonl."""
    from taskmem.entry import preference_mining as stage

    paths = (feedback.path, rollouts.path, judgements.path, segments.path)
    numbers = stage(shard, *paths, profile, seed, preferences.path)
    preferences.metadata["failed"] = numbers["failed"]
    for name, value in numbers.items():
        metrics.log_metric(name, value)
