"""Reads a compiled pipeline: what each task that runs a container carries, and what a profile says it should."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler

from components.images import Images
from taskmem.cluster import StageName, StageResources
from taskmem.config import Profile

Document = dict[str, Any]


@dataclass(frozen=True)
class Ran:
    """One task that runs a container, in the pipeline itself or in one nested in it."""

    key: str  # its name in its own pipeline
    component: str
    executor: str
    task: Document
    container: Document
    kubernetes: Document

    @property
    def name(self) -> str:
        """What it is called on screen."""
        return str(self.task["taskInfo"]["name"])

    @property
    def stage(self) -> str:
        """The stage that its pod's label names."""
        return str(self.kubernetes["podMetadata"]["labels"]["app.kubernetes.io/component"])


def executor_of(spec: Document, component: str) -> Document:
    """The container of one component, such as `comp-toy`."""
    container: Document = spec["deploymentSpec"]["executors"][spec["components"][component]["executorLabel"]][
        "container"
    ]
    return container


def kubernetes_of(spec: Document, platform: Document, component: str) -> Document:
    """What kfp-kubernetes set for one component; empty if nothing."""
    executors: dict[str, Document]
    executors = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    return executors.get(spec["components"][component]["executorLabel"], {})


class CompiledPipeline:
    """Both documents of a compiled pipeline: the specification, and what belongs to Kubernetes."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text(encoding="utf-8")
        spec, *platform = yaml.safe_load_all(self.text)
        self.spec: Document = spec
        self.platform: Document = platform[0] if platform else {}

    def tasks(self) -> list[Ran]:
        """Every task that runs a container; an importer runs none."""
        dags = [self.spec["root"]["dag"], *(c["dag"] for c in self.spec["components"].values() if "dag" in c)]
        found = [(key, task) for dag in dags for key, task in dag["tasks"].items()]
        return [self._ran(key, task) for key, task in found if self._runs(task["componentRef"]["name"])]

    def task(self, name: str) -> Ran:
        """The one task of that name on screen."""
        (found,) = [task for task in self.tasks() if task.name == name]
        return found

    def mixed_up(self) -> list[str]:
        """Tasks whose component or executor bears another's name: a nested pipeline shared it, see `components.base.named`."""
        return [
            task.key
            for task in self.tasks()
            if (task.component, task.executor) != (f"comp-{task.key}", f"exec-{task.key}")
        ]

    def _runs(self, component: str) -> bool:
        label = self.spec["components"][component].get("executorLabel")
        return label is not None and "container" in self.spec["deploymentSpec"]["executors"][label]

    def _ran(self, key: str, task: Document) -> Ran:
        component = task["componentRef"]["name"]
        return Ran(
            key=key,
            component=component,
            executor=self.spec["components"][component]["executorLabel"],
            task=task,
            container=executor_of(self.spec, component),
            kubernetes=kubernetes_of(self.spec, self.platform, component),
        )


def compiled(pipeline: Any, folder: Path) -> CompiledPipeline:
    """A pipeline function's compiled form, by way of a file in `folder`."""
    path = folder / f"{pipeline.name}.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    return CompiledPipeline(path)


def wanted_resources(asked: StageResources) -> Document:
    """The fields that the back end reads; the older ones beside them hold the same as rounded floats."""
    resources: Document = {
        "resourceCpuRequest": asked.cpu,
        "resourceCpuLimit": asked.cpu,
        "resourceMemoryRequest": asked.memory,
        "resourceMemoryLimit": asked.memory,
    }
    if asked.accelerator:
        count, kind = str(asked.accelerator.count), asked.accelerator.type
        resources["accelerator"] = {"count": count, "resourceCount": count, "type": kind, "resourceType": kind}
    return resources


def wanted_kubernetes(stage: StageName, asked: StageResources) -> Document:
    """All of what belongs to Kubernetes: nothing less, and nothing that the profile did not ask for."""
    standard = {
        "app.kubernetes.io/name": "taskmem",
        "app.kubernetes.io/component": stage,
        "app.kubernetes.io/part-of": "taskmem",
    }
    secrets = [
        {
            "secretName": secret.secret,
            "secretNameParameter": {"runtimeValue": {"constant": secret.secret}},
            "keyToEnv": [{"secretKey": secret.key, "envVar": secret.variable}],
            "optional": False,
        }
        for secret in asked.secrets
    ]
    tolerations = [
        {"key": t.key, "effect": t.effect}
        | ({"operator": "Exists"} if t.value is None else {"operator": "Equal", "value": t.value})
        for t in asked.tolerations
    ]
    shm = [{"volumeName": "shm", "mountPath": "/dev/shm", "medium": "Memory", "sizeLimit": asked.shm}]
    wanted = {
        "activeDeadlineSeconds": str(asked.timeout_seconds),
        "podMetadata": {"labels": {**standard, **asked.labels}},
        "securityContext": {"runAsUser": "1000", "runAsGroup": "1000", "runAsNonRoot": True},
        "secretAsEnv": secrets,
        "tolerations": tolerations,
        "nodeSelector": {"labels": asked.node_selector} if asked.node_selector else {},
        "emptyDirMounts": shm if asked.shm else [],
    }
    return {key: value for key, value in wanted.items() if value}


def wanted_retry(asked: StageResources) -> Document | None:
    """The retry policy; none at all where a stage is tried once."""
    if not asked.retry.count:
        return None
    return {
        "maxRetryCount": asked.retry.count,
        "backoffDuration": f"{asked.retry.seconds}s",
        "backoffFactor": asked.retry.factor,
        "backoffMaxDuration": f"{365 * 24 * 3600}s",
    }


def assert_placed(task: Ran, stage: StageName, profile: Profile, images: Images) -> None:
    """That a task carries exactly what the profile says of the stage."""
    asked = profile.cluster.stages[stage]
    held = task.container["resources"]
    read = {key: value for key, value in held.items() if key.startswith("resource") or key == "accelerator"}
    assert task.container["image"] == images.reference(asked.image)
    assert read == wanted_resources(asked)
    assert task.container["env"] == [{"name": "TASKMEM_IMAGE", "value": task.container["image"]}]
    assert task.kubernetes == wanted_kubernetes(stage, asked)
    assert task.task.get("retryPolicy") == wanted_retry(asked)
