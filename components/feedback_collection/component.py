"""The recent questions of each environment since its last adaptation."""

from kfp.dsl import Dataset, Input, Metrics, Output

from components.base import component


@component
def feedback_collection(
    shard: dict,
    parts: str,
    store: str,
    profile: str,
    feedback: Output[Dataset],
    metrics: Output[Metrics],
    events: Input[Dataset] = None,
) -> None:
    """Collect each environment's questions from its own log, events/<environment>.jsonl, or from the store `parts` ("" for none).

    An environment with too few new ones since its watermark in `store` ("" for none) is skipped, with the reason.
    """
    from taskmem.entry import feedback_collection as stage

    logs = events.path if events else None
    numbers = stage(shard, logs, parts, store, profile, feedback.path)
    feedback.metadata["failed"] = numbers["failed"]
    for name, value in numbers.items():
        metrics.log_metric(name, value)
