"""Phase One: GSPO teaches the base policy how to memorize (METHOD section 3)."""

from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.base import component


@component
def phase_one_gspo(
    segments: Input[Dataset],
    base: Input[Model],
    development: Input[Dataset],
    questions: Input[Dataset],
    profile: str,
    seed: int,
    job: str,
    policy: Output[Model],
    training: Output[Dataset],
    metrics: Output[Metrics],
    world: Input[Dataset] = None,
) -> None:
    """Train the policy pi_0 from `base` on `segments`.

    The checkpoint is picked by accuracy on the development split: `development` are its segments, `questions` a folder with its
    questions.jsonl. `training` holds the curves (training.json, validation.json). `world` is the embedded world's split, for a
    profile that has one. `job` says what each node gets where the training is on several: this task starts them and waits.
    """
    from taskmem.entry import phase_one_gspo as stage

    truth = world.path if world else None
    paths = (segments.path, base.path, development.path, questions.path, truth)
    for name, value in stage(*paths, profile, seed, policy.path, training.path, job).items():
        metrics.log_metric(name, value)
