"""Pipelines that fall into every trap of kfp 2.17, and small ones that step around them."""

# mypy: disable-error-code="untyped-decorator,no-any-return"
# ruff: noqa: PLC0415 - a component's body imports what it needs, for only the body is run

from kfp import dsl
from kfp.dsl import Dataset, Input, Output

from components.base import component

TAGGED = "registry.test/taskmem:1"


@component
def word(text: str) -> str:
    return text


@component
def join(first: str, second: dict) -> str:
    return f"{first} {second['name']}"


@component
def gather(words: list) -> list:
    return sorted(words)


@component
def file(made: Output[Dataset]) -> None:
    from pathlib import Path

    Path(made.path).write_text("given", encoding="utf-8")


@component
def read(name: str, given: Input[Dataset] = None) -> str:  # type: ignore[assignment]
    """What an artifact that may be missing is then."""
    from pathlib import Path

    return f"{name}: {Path(given.path).read_text(encoding='utf-8')}" if given else f"{name}: {given!r}"


@component
def parsed(shard: dict) -> dict:
    """The numbers of a shard's settings as they arrive, and as the library reads them."""
    from taskmem.stages.shard import Shard

    came = shard["environments"][0]["settings"]
    restored = Shard.parse(shard).environments[0].settings
    return {
        when: {
            name: f"{type(value).__name__} {value}" for section in settings.values() for name, value in section.items()
        }
        for when, settings in (("came", came), ("restored", restored))
    }


@dsl.container_component
def shell() -> dsl.ContainerSpec:
    return dsl.ContainerSpec(image=TAGGED, command=["true"])


@dsl.component(base_image=TAGGED, packages_to_install=["numpy"])
def installs() -> None:
    """Would install numpy, and kfp with it."""


@dsl.pipeline(name="artifacts-only")
def artifacts_only(given: Input[Dataset]) -> None:
    read(name="nested", given=given)


@dsl.pipeline(name="artifacts-alone")
def artifacts_alone() -> None:
    artifacts_only(given=file().outputs["made"])


@dsl.pipeline(name="importing")
def importing(uri: str) -> None:
    read(name="x", given=dsl.importer(artifact_uri=uri, artifact_class=Dataset).output)


@dsl.pipeline(name="one-item")
def one_item(first: str, item: dict) -> str:
    return join(first=first, second=item).output


@dsl.pipeline(name="all-items")
def all_items(first: str, items: list) -> list:
    with dsl.ParallelFor(items) as item:
        joined = one_item(first=first, item=item)
    return gather(words=dsl.Collected(joined.output)).output


@dsl.pipeline(name="straight")
def straight(items: list) -> list:
    """A loop whose body takes an earlier task's output as it is."""
    before = word(text="earlier")
    with dsl.ParallelFor(items) as item:
        joined = join(first=before.output, second=item)
    return gather(words=dsl.Collected(joined.output)).output


@dsl.pipeline(name="around")
def around(items: list) -> list:
    """The same with the loop in a nested pipeline, which takes the output as its parameter."""
    return all_items(first=word(text="earlier").output, items=items).output


@dsl.pipeline(name="optional")
def optional() -> list:
    without, with_one = read(name="without"), read(name="with", given=file().outputs["made"])
    return gather(words=[without.output, with_one.output]).output


@dsl.pipeline(name="parsing")
def parsing(shard: dict) -> dict:
    return parsed(shard=shard).output


@dsl.pipeline(name="quoted")
def quoted(text: str) -> None:
    with dsl.If(text == "it's"):
        word(text="equal").set_display_name("equal")
    word(text="always").set_display_name("always")


@dsl.pipeline(name="trapped")
def trapped(items: list, uri: str) -> None:
    """All of them at once."""
    before = word(text=dsl.PIPELINE_JOB_CREATE_TIME_UTC_PLACEHOLDER)
    with dsl.ParallelFor(items) as item:
        join(first=before.output, second=item)
    with dsl.If(before.output == "it's"):
        word(text="equal")
    artifacts_only(given=file().outputs["made"])
    importing(uri=uri)
    shell()
    installs()
    word(text="x").set_container_image(TAGGED).set_caching_options(True)
