"""Arms on streams and questions they have never seen, the gate's verdict, and the report (METHOD section 5)."""

from typing import List, NamedTuple

from kfp.dsl import HTML, Dataset, Input, Markdown, Metrics, Model, Output

from components.base import component


@component
def streaming_eval(
    shard: dict,
    segments: Input[Dataset],
    questions: Input[Dataset],
    policy: Input[Model],
    profile: str,
    seed: int,
    evaluation: Output[Dataset],
    metrics: Output[Metrics],
    adapters: Input[Model] = None,
    feedback: Input[Dataset] = None,
    world: Input[Dataset] = None,
) -> None:
    """Evaluate one arm: write every memory, answer every question from memory alone, grade the answers.

    The policy is steered by the adapter of the shard's only environment, if `adapters` are given, and told that environment's
    recent questions, if `feedback` is. Writes memories.jsonl, graded.jsonl and summary.json.
    """
    from taskmem.entry import streaming_eval as stage

    steered, told, truth = (given.path if given else None for given in (adapters, feedback, world))
    where = (segments.path, questions.path, policy.path, steered, told, truth)
    numbers = stage(shard, *where, profile, seed, evaluation.path)
    evaluation.metadata["arm"] = shard["name"]
    for name, value in numbers.items():
        metrics.log_metric(name, value)


@component
def choose_tasks(
    evaluation: Input[Dataset],
) -> NamedTuple("Tasks", [("task", str), ("prompted", dict), ("adapted", List[dict])]):  # type: ignore[valid-type]
    """The task with most headroom on the development split, and the arms that the demonstration adapts to it."""
    from taskmem.entry import choose_tasks as stage

    return stage(evaluation.path)  # type: ignore[return-value]


@component
def gate(
    shard: dict,
    adapters: Input[Model],
    policy: Input[Model],
    evaluation: Input[Dataset],
    segments: Input[Dataset],
    questions: Input[Dataset],
    feedback: Input[Dataset],
    store: str,
    profile: str,
    seed: int,
    verdicts: Output[Dataset],
    metrics: Output[Metrics],
    world: Input[Dataset] = None,
) -> None:
    """Hold each environment's challenger against its champion on held-out streams; write <name>/verdict.json.

    `evaluation` is that of the policy without adapter on the same streams: the champion of an environment that has none yet.
    """
    from taskmem.entry import gate as stage

    arms = (adapters.path, policy.path, evaluation.path)
    held_out = (segments.path, questions.path, feedback.path)
    numbers = stage(shard, *arms, *held_out, store, world.path if world else None, profile, seed, verdicts.path)
    verdicts.metadata["failed"] = numbers["failed"]
    for name, value in numbers.items():
        metrics.log_metric(name, value)


@component
def results_report(
    base: Input[Model],
    base_arm: Input[Dataset],
    prompted_arm: Input[Dataset],
    policy_arm: Input[Dataset],
    adapted_arms: Input[List[Dataset]],
    adapters: Input[List[Model]],
    verdicts: Input[List[Dataset]],
    training: Input[Dataset],
    segments: Input[Dataset],
    questions: Input[Dataset],
    feedback: Input[Dataset],
    task: str,
    profile: str,
    seed: int,
    results: Output[Dataset],
    report: Output[HTML],
    table: Output[Markdown],
    metrics: Output[Metrics],
    world: Input[Dataset] = None,
) -> None:
    """Put every arm side by side: results.json, and the page and the table that people read."""
    from taskmem.entry import results_report as stage

    arms = {arm.metadata["arm"]: arm.path for arm in [base_arm, prompted_arm, policy_arm, *adapted_arms]}
    lists = ([adapter.path for adapter in adapters], [verdict.path for verdict in verdicts])
    sources = (training.path, segments.path, questions.path, feedback.path)
    truth = world.path if world else None
    out = (results.path, report.path, table.path)
    numbers = stage(base.path, arms, *lists, *sources, truth, task, profile, seed, *out)
    for name, value in numbers.items():
        metrics.log_metric(name, value)
