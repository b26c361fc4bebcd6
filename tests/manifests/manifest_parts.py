"""The manifests as Kubernetes would get them, and what the tests look up in them."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
OVERLAYS = ("dev", "prod")
PLACES = ("cluster", "fill", "nodes", *(f"overlays/{name}" for name in OVERLAYS))
TOOLS = ROOT / ".venv-manifests" / "bin"
WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")
Document = dict[str, Any]


def tool(name: str) -> str:
    """A command of the tests' own environment, else of this machine's."""
    own = TOOLS / name
    found = str(own) if own.is_file() else shutil.which(name)
    assert found, f"{name} is not here: `make test-system` installs it"
    return found


def rendered(place: str) -> str:
    """What `kubectl kustomize` makes of a folder of manifests/."""
    command = [tool("kubectl"), "kustomize", str(MANIFESTS / place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def documents(text: str) -> list[Document]:
    return [document for document in yaml.load_all(text, Loader=yaml.CSafeLoader) if document]


def files() -> Iterator[Path]:
    return (path for path in sorted(MANIFESTS.rglob("*.yaml")) if path.is_file())


def rules() -> list[Document]:
    """Every rule of the PrometheusRules, read from the files: no tool is needed."""
    return [rule for group in rule_groups() for rule in group["rules"]]


def rule_groups() -> list[Document]:
    found = [
        d for path in files() for d in documents(path.read_text(encoding="utf-8")) if d["kind"] == "PrometheusRule"
    ]
    return [group for document in found for group in document["spec"]["groups"]]


def alerts() -> list[Document]:
    return [rule for rule in rules() if "alert" in rule]


def dashboard() -> Document:
    loaded: Document = json.loads((MANIFESTS / "monitoring" / "dashboard.json").read_text(encoding="utf-8"))
    return loaded


class Cluster:
    """The documents of one overlay, and how they name each other."""

    def __init__(self, documents: list[Document]) -> None:
        self.documents = documents

    def of(self, *kinds: str) -> list[Document]:
        return [document for document in self.documents if document["kind"] in kinds]

    def has(self, kind: str, name: str, namespace: str) -> bool:
        return any(self.key(document) == (kind, name, namespace) for document in self.documents)

    @staticmethod
    def key(document: Document) -> tuple[str, str, str]:
        metadata = document["metadata"]
        return document["kind"], metadata["name"], metadata.get("namespace", "")

    @property
    def workloads(self) -> list[Document]:
        return self.of(*WORKLOADS)

    def chosen(self, selector: Document, namespace: str) -> list[Document]:
        """The workloads of a namespace whose pods a label selector takes."""
        own = [workload for workload in self.workloads if workload["metadata"]["namespace"] == namespace]
        return [workload for workload in own if takes(selector, pod(workload)["metadata"]["labels"])]


def pod(workload: Document) -> Document:
    template: Document = workload["spec"]["template"]
    return template


def containers(workload: Document) -> list[Document]:
    spec = pod(workload)["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def ports(workload: Document) -> dict[str, int]:
    """The container ports of a workload by name."""
    return {port["name"]: port["containerPort"] for c in containers(workload) for port in c.get("ports", [])}


def takes(selector: Document, labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for wanted in selector.get("matchExpressions", []):
        assert wanted["operator"] == "In", "no other operator is used"
        if labels.get(wanted["key"]) not in wanted["values"]:
            return False
    return True
