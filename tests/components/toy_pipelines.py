"""Pipelines of toy components, placed as the real ones are."""

# mypy: disable-error-code="untyped-decorator"

from typing import Any

from kfp import dsl

from components.base import component, named
from components.images import Images
from components.placement import place
from taskmem.cluster import STAGES, StageName
from taskmem.config import Profile


@component
def toy(text: str) -> str:
    return text + "!"


def every_stage(profile: Profile, images: Images) -> Any:
    """One toy for each stage, called like it."""

    @dsl.pipeline(name="every-stage")
    def pipeline(text: str = "hello") -> None:
        for stage in STAGES:
            place(named(toy, stage)(text=text), stage, profile, images)

    return pipeline


def one_stage(stage: StageName, profile: Profile, images: Images, **options: Any) -> Any:
    """A toy placed as one stage."""

    @dsl.pipeline(name="one-stage")
    def pipeline(text: str = "hello") -> None:
        place(toy(text=text), stage, profile, images, **options)

    return pipeline


def nested(profile: Profile, images: Images, inner: Any = None) -> Any:
    """A pipeline nested in a loop of another; `inner` is the component of the nested one, by default under a name of its own."""
    part = inner or named(toy, "inner-toy")

    @dsl.pipeline(name="for-one")
    def for_one(item: str) -> None:
        mined = place(part(text=item), "preference_mining", profile, images, name="mine one")
        place(part(text=mined.output), "phase_two_dpo", profile, images, name="train one")

    @dsl.pipeline(name="nested")
    def pipeline(items: list = ["a", "b"]) -> None:  # noqa: B006 - kfp reads the default
        first = place(toy(text="x"), "feedback_collection", profile, images, name="collect all")
        with dsl.ParallelFor(items) as item:
            place(toy(text=item), "rollout_cache", profile, images, name="roll out one").after(first)
            for_one(item=item)
        place(toy(text="y"), "phase_one_gspo", profile, images, name="train all").after(first)

    return pipeline
