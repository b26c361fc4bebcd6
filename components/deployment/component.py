"""The agent at work, and the champion's pointer."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.base import component


@component
def deployment(
    policy: Input[Model],
    segments: Input[Dataset],
    questions: Input[Dataset],
    profile: str,
    seed: int,
    memories: Output[Dataset],
    events: Output[Dataset],
    metrics: Output[Metrics],
    world: Input[Dataset] = None,
) -> None:
    """Start the policy as an agent, check it, stream the segments, ask each environment's first questions, stop.

    `memories` gets memories.jsonl and responses.jsonl, `events` one feedback log per environment, <environment>.jsonl.
    """
    from taskmem.entry import deployment as stage

    where = (policy.path, segments.path, questions.path, world.path if world else None)
    for name, value in stage(*where, profile, seed, memories.path, events.path).items():
        metrics.log_metric(name, value)


@component
def promotion(
    shard: dict,
    adapters: Input[Model],
    verdicts: Input[Dataset],
    preferences: Input[Dataset],
    feedback: Input[Dataset],
    store: str,
    profile: str,
    seed: int,
    outcomes: Output[Dataset],
    metrics: Output[Metrics],
) -> None:
    """Publish each challenger as environment@version; move the champion by compare-and-swap where the gate let it pass.

    Writes outcomes.jsonl: what became of every environment of the shard, with its reason.
    """
    from taskmem.entry import promotion as stage

    paths = (adapters.path, verdicts.path, preferences.path, feedback.path)
    numbers = stage(shard, *paths, store, profile, seed, outcomes.path)
    outcomes.metadata["failed"] = numbers["failed"]
    for name, value in numbers.items():
        metrics.log_metric(name, value)
