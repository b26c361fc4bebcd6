"""The nightly run as files for a repository that a cluster follows: the pipeline, its pinned version, and a Job that ensures it.

A hand-applied ScheduledWorkflow is not supported by Kubeflow: the Job calls `taskmem schedule` with the version's name.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler, components
from kfp.compiler.compiler_utils import KubernetesManifestOptions

from components.images import is_pinned
from pipelines.parameters import Package
from taskmem.cluster import USER
from taskmem.errors import UserError
from taskmem.files import atomic_write, canonical_json, sha256_bytes

PIPELINE, JOB = "pipeline.yaml", "ensure.yaml"
AUDIENCE = "pipelines.kubeflow.org"
TOKEN_FOLDER, PARAMETERS_FOLDER = "/var/run/secrets/kubeflow/pipelines", "/etc/taskmem"
LONGEST_NAME = 63
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """The Job: in which namespace, with which image and service account, and where the API server is for it."""

    namespace: str
    image: str
    service_account: str
    host: str


def write_manifests(
    package: Package, job: Job, schedule: str, options: Sequence[str], parameters: Mapping[str, Any], out: Path
) -> list[Path]:
    """Write `out`/pipeline.yaml and `out`/ensure.yaml, the same bytes each time; returns both paths.

    `schedule` is the recurring run's name, `options` what `taskmem schedule` takes besides. UserError for an image by tag: what
    it names may change.
    """
    if not is_pinned(job.image):
        raise UserError(
            f"{job.image}: an image by tag, and what that names may change; give it by digest, see --images"
        )
    out.mkdir(parents=True, exist_ok=True)
    partial = out / f".{PIPELINE}.partial.yaml"
    named = KubernetesManifestOptions(
        pipeline_name=package.name,
        pipeline_version_name=package.version,
        # by which the API server is asked for it
        pipeline_version_display_name=package.version,
        namespace=job.namespace,
        include_pipeline_manifest=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = components.load_component_from_file(str(package.path))
        compiler.Compiler().compile(
            pipeline, str(partial), kubernetes_manifest_options=named, kubernetes_manifest_format=True
        )
    atomic_write(out / PIPELINE, partial.read_bytes())
    partial.unlink()
    words = ["schedule", f"{package.name}@{package.version}", "--name", schedule, *options]
    atomic_write(out / JOB, yaml.safe_dump_all(_job(job, schedule, words, parameters), sort_keys=False, width=1000))
    return [out / PIPELINE, out / JOB]


def _job(job: Job, schedule: str, words: Sequence[str], parameters: Mapping[str, Any]) -> list[Manifest]:
    """The parameters and the Job. A Job cannot be changed, so that its name tells what it is of."""
    text = canonical_json(dict(parameters))
    digest = sha256_bytes(canonical_json([job.image, job.service_account, job.host, *words, text]))[:10]
    name = f"{_part(f'taskmem-ensure-{schedule}')[: LONGEST_NAME - 11].rstrip('-')}-{digest}"
    labels = {
        "app.kubernetes.io/name": "taskmem",
        "app.kubernetes.io/component": "schedule",
        "app.kubernetes.io/part-of": "taskmem",
    }
    meta = {"name": name, "namespace": job.namespace, "labels": labels}
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": meta,
        "immutable": True,
        "data": {"parameters.json": text},
    }
    pod = {
        "metadata": {"labels": labels},
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": job.service_account,
            # the one token that is mounted is for Kubeflow alone
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [_container(job, [*words, "--params", f"{PARAMETERS_FOLDER}/parameters.json"])],
            "volumes": [
                {"name": "token", "projected": {"sources": [_token()]}},
                {"name": "parameters", "configMap": {"name": name}},
                {"name": "tmp", "emptyDir": {}},
            ],
        },
    }
    spec = {"backoffLimit": 6, "activeDeadlineSeconds": 1800, "template": pod}
    return [config, {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec}]


def _container(job: Job, words: Sequence[str]) -> Manifest:
    variables = {
        "KF_PIPELINES_ENDPOINT": job.host,
        "KF_PIPELINES_SA_TOKEN_PATH": f"{TOKEN_FOLDER}/token",
        "HOME": "/tmp",
    }
    return {
        "name": "schedule",
        "image": job.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["taskmem"],
        "args": list(words),
        "env": [{"name": key, "value": value} for key, value in variables.items()],
        "resources": {
            "requests": {"cpu": "100m", "memory": "512Mi"},
            "limits": {"cpu": "1", "memory": "512Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "token", "mountPath": TOKEN_FOLDER, "readOnly": True},
            {"name": "parameters", "mountPath": PARAMETERS_FOLDER, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }


def _token() -> Manifest:
    return {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600, "audience": AUDIENCE}}


def _part(text: str) -> str:
    """Text as a part of a Kubernetes name."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower())
