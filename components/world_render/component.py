"""The embedded world's source of videos; a deployment brings its own instead."""

from kfp.dsl import Dataset, Output

from components.base import component


@component
def world_render(
    profile: str,
    seed: int,
    phase_one: Output[Dataset],
    deployment: Output[Dataset],
    development: Output[Dataset],
    held_out: Output[Dataset],
) -> None:
    """Render the four splits of the embedded world.

    Each split is a folder with videos/<stream>.mp4, questions.jsonl and truth.jsonl; streams never stand in two of them.
    """
    from taskmem.entry import world_render as stage

    splits = {"phase_one": phase_one, "deployment": deployment, "development": development, "held_out": held_out}
    stage(profile, seed, {name: split.path for name, split in splits.items()})
