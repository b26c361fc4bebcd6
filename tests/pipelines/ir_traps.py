"""What in a compiled pipeline would go wrong, on a cluster or in kfp's local runner; each function lists the offenders."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler, dsl

Document = dict[str, Any]
RUN_PLACEHOLDERS = (
    dsl.PIPELINE_JOB_CREATE_TIME_UTC_PLACEHOLDER,
    dsl.PIPELINE_JOB_SCHEDULE_TIME_UTC_PLACEHOLDER,
    dsl.PIPELINE_JOB_RESOURCE_NAME_PLACEHOLDER,
)


@dataclass(frozen=True)
class Graph:
    """A pipeline, one nested in it, or the body of a loop or condition."""

    name: str
    inputs: Document
    tasks: dict[str, Document]


class Compiled:
    """The specification of a compiled pipeline."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text(encoding="utf-8")
        self.spec: Document = next(yaml.load_all(self.text, Loader=yaml.CSafeLoader))

    def graphs(self) -> list[Graph]:
        """All graphs, the pipeline's own first."""
        named = {"root": self.spec["root"], **self.spec["components"]}
        return [
            Graph(name, component.get("inputDefinitions", {}), component["dag"]["tasks"])
            for name, component in named.items()
            if "dag" in component
        ]

    def tasks(self) -> Iterator[tuple[str, Document]]:
        """Every task of every graph, as graph/task."""
        for graph in self.graphs():
            for key, task in graph.tasks.items():
                yield f"{graph.name}/{key}", task

    def executor(self, task: Document) -> Document | None:
        """What runs a task; None for a graph."""
        label = self.spec["components"][task["componentRef"]["name"]].get("executorLabel")
        return self.spec["deploymentSpec"]["executors"][label] if label else None

    def executors(self) -> dict[str, Document]:
        """Every executor by its label."""
        executors: dict[str, Document] = self.spec["deploymentSpec"]["executors"]
        return executors


def compiled(pipeline: Any, folder: Path) -> Compiled:
    """A pipeline function's compiled form."""
    path = folder / f"{pipeline.name}.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    return Compiled(path)


def is_loop(task: Document) -> bool:
    """Whether a task is a ParallelFor."""
    return "parameterIterator" in task or "artifactIterator" in task


def outer_outputs_in_loops(pipeline: Compiled) -> list[str]:
    """Outputs of tasks before a loop that are handed to its body as parameters: there they become the loop's item."""
    return [
        f"{name}: {parameter}"
        for name, task in pipeline.tasks()
        if is_loop(task)
        for parameter, given in task.get("inputs", {}).get("parameters", {}).items()
        if "taskOutputParameter" in given
    ]


def nested_without_parameter(pipeline: Compiled) -> list[str]:
    """Nested pipelines that take no parameter: the local runner raises."""
    return [graph.name for graph in pipeline.graphs()[1:] if not graph.inputs.get("parameters")]


def conditions(pipeline: Compiled) -> list[str]:
    """Tasks under an `If`: one that compares with a text that has a quote in it is silently false."""
    return [name for name, task in pipeline.tasks() if "condition" in task.get("triggerPolicy", {})]


def run_placeholders(pipeline: Compiled) -> list[str]:
    """Placeholders of the run at which the local runner raises."""
    return [placeholder for placeholder in RUN_PLACEHOLDERS if placeholder in pipeline.text]


def installing(pipeline: Compiled) -> list[str]:
    """Executors that install something before they run."""
    return [
        label
        for label, executor in pipeline.executors().items()
        if re.search(r"\b(pip|uv|apt-get|conda)\b", " ".join(executor.get("container", {}).get("command", ())[:-1]))
    ]


def importers_in_nested(pipeline: Compiled) -> list[str]:
    """Importers anywhere but in the pipeline itself."""
    return [
        name
        for name, task in pipeline.tasks()
        if "importer" in (pipeline.executor(task) or {}) and not name.startswith("root/")
    ]


def not_python(pipeline: Compiled) -> list[str]:
    """Executors that are no typed Python function: the local runner raises."""
    containers = {label: e["container"] for label, e in pipeline.executors().items() if "container" in e}
    return [label for label, c in containers.items() if "--function_to_execute" not in c.get("args", ())]


def cached(pipeline: Compiled) -> list[tuple[str, str]]:
    """The name on screen and the image of every container whose result may be reused."""
    return [
        (task["taskInfo"]["name"], executor["container"]["image"])
        for _, task in pipeline.tasks()
        if task.get("cachingOptions", {}).get("enableCache")
        and (executor := pipeline.executor(task))
        and "container" in executor
    ]


def cached_by_tag(pipeline: Compiled) -> list[str]:
    """Images by tag of which a result may be reused, although another code may stand behind the same name by then."""
    return sorted({image for _, image in cached(pipeline) if "@sha256:" not in image})


def loops(pipeline: Compiled) -> list[str]:
    """Every ParallelFor."""
    return [name for name, task in pipeline.tasks() if is_loop(task)]
