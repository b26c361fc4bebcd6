"""What the judges say of every candidate, and a quality report of the policy that wrote them."""

from kfp.dsl import Dataset, Input, Metrics, Output

from components.base import component


@component
def judge_scoring(
    rollouts: Input[Dataset],
    segments: Input[Dataset],
    profile: str,
    judgements: Output[Dataset],
    metrics: Output[Metrics],
    world: Input[Dataset] = None,
) -> None:
    """Write judgements.jsonl, one line per candidate, and summary.json with the shares.

    A judge that fails leaves a candidate unscored, with the reason; it is never counted as a wrong one.
    """
    from taskmem.entry import judge_scoring as stage

    numbers = stage(rollouts.path, segments.path, world.path if world else None, profile, judgements.path)
    # what was left unscored tonight is to be tried again
    judgements.metadata["failed"] = numbers["unscored"]
    for name, value in numbers.items():
        metrics.log_metric(name, value)
