"""A Kubernetes API on loopback, as far as a TrainJob needs one: what it is sent is held against kubeflow_trainer_api's models.

As a script it runs a TrainJob against such a server, to be ended by a signal: cluster_stub.py URL
"""

import json
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubeflow_trainer_api import models
from kubernetes import client

from taskmem.cluster import JobSettings, StageResources
from taskmem.config import load_profile
from taskmem.phase_one.trainjob import Owner, TrainJobs, Waiting, train_job

NAMESPACE = "team"
TOKEN = "Bearer a-token"
JOBS = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
RUNTIME = "/apis/trainer.kubeflow.org/v1alpha1/clustertrainingruntimes/torch-distributed"
IMAGE = "registry.test/taskmem/train@sha256:" + "a" * 64
NAME = "taskmem-phase-one-0123456789abcdef"
QUICK = Waiting(look=0.02, away=1.0, drain=2.0)


def condition(kind: str, reason: str = "", message: str = "") -> dict[str, Any]:
    return {
        "type": kind,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


_STEP = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
_NODE = {
    "metadata": {"labels": _STEP},
    "spec": {"template": {"spec": {"containers": [{"name": "node", "image": "torch"}]}}},
}
TORCH_RUNTIME = {
    "apiVersion": "trainer.kubeflow.org/v1alpha1",
    "kind": "ClusterTrainingRuntime",
    "metadata": {"name": "torch-distributed", "labels": {"trainer.kubeflow.org/framework": "torch"}},
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {"spec": {"replicatedJobs": [{"name": "node", "template": _NODE}]}},
    },
}
COMPLETE = [condition("Complete", "AllJobsCompleted")]
FAILED = [condition("Failed", "JobFailed", "node-0 exited\nwith 1")]
DEADLINE = [condition("Failed", "DeadlineExceeded", "the job was active longer than specified deadline")]
SUSPENDED = [condition("Suspended", "Suspended")]


def pod(name: str, phase: str, created: str) -> dict[str, Any]:
    """A pod of node 0."""
    labels = {
        "jobset.sigs.k8s.io/jobset-name": NAME,
        "jobset.sigs.k8s.io/replicatedjob-name": "node",
        "batch.kubernetes.io/job-completion-index": "0",
    }
    metadata = {
        "name": name,
        "namespace": NAMESPACE,
        "uid": f"uid-{name}",
        "labels": labels,
        "creationTimestamp": created,
    }
    return {"metadata": metadata, "spec": {"containers": [{"name": "node"}]}, "status": {"phase": phase}}


class Cluster:
    """What the server holds. `states` are the conditions that one look after another sees, the last one for ever."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.states: list[list[dict[str, Any]]] = [COMPLETE]
        self.pods: list[dict[str, Any]] = []
        self.logs: dict[str, list[str]] = {}
        self.faults: dict[str, list[int]] = {}
        self.requests: Counter[str] = Counter()
        self.created: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.selectors: set[str] = set()
        self.on_create: Callable[[dict[str, Any]], None] = lambda body: None
        self.hold = threading.Event()
        self.hold.set()
        self.url = ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: Cluster

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._faulty():
            return
        made = models.TrainerV1alpha1TrainJob.from_dict(body)
        if urlsplit(self.path).path != JOBS or made is None or made.to_dict() != body:
            self._json(422, {"kind": "Status", "message": "unknown or misspelled fields"})
        elif body["metadata"]["name"] in self.cluster.jobs:
            self._json(409, {"kind": "Status", "message": "already exists"})
        else:
            self.cluster.created.append(body)
            self.cluster.jobs[body["metadata"]["name"]] = body
            self.cluster.on_create(body)
            self._json(201, body)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if self._faulty():
            return
        if parts.path == PODS:
            self.cluster.selectors.add(query["labelSelector"])
            self._json(200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": self.cluster.pods})
        elif match := re.fullmatch(f"{PODS}/([a-z0-9-]+)/log", parts.path):
            self._log(match[1], query)
        elif (name := parts.path.removeprefix(f"{JOBS}/")) in self.cluster.jobs:
            states = self.cluster.states
            state = states.pop(0) if len(states) > 1 else states[0]
            job = self.cluster.jobs[name]
            metadata = {**job["metadata"], "namespace": NAMESPACE, "creationTimestamp": "2026-01-01T00:00:00Z"}
            self._json(200, {**job, "metadata": metadata, "status": {"conditions": state}})
        elif parts.path == RUNTIME:
            self._json(200, TORCH_RUNTIME)
        else:
            self._json(404, {"kind": "Status", "message": "not found"})

    def do_DELETE(self) -> None:
        if self._faulty():
            return
        name = urlsplit(self.path).path.removeprefix(f"{JOBS}/")
        if self.cluster.jobs.pop(name, None) is None:
            self._json(404, {"kind": "Status", "message": "not found"})
        else:
            self.cluster.deleted.append(name)
            self._json(200, {"kind": "Status", "status": "Success"})

    def _log(self, name: str, query: dict[str, str]) -> None:
        assert query["container"] == "node"
        assert query["timestamps"] == "True"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in self.cluster.logs.get(name, []):
            self._chunk((line + "\n").encode())
        if query.get("follow") == "True":
            self.cluster.hold.wait(10)
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _faulty(self) -> bool:
        self.cluster.requests[self.command] += 1
        if self.headers.get("Authorization") != TOKEN:
            self._json(401, {"kind": "Status", "message": "Unauthorized"})
            return True
        waiting = self.cluster.faults.get(self.command, [])
        if not waiting:
            return False
        code = waiting.pop(0)
        if code:
            self._json(code, {"kind": "Status", "message": f"fault\n{code}"})
        else:
            self.close_connection = True  # hung up without a word
        return True

    def _json(self, code: int, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Cluster]:
    cluster = Cluster()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cluster": cluster}))
    cluster.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield cluster
    finally:
        cluster.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()


def reached(url: str, token: str = TOKEN) -> client.Configuration:
    """How the real client reaches the server, as it would in a cluster."""
    settings = client.Configuration()
    settings.host = url
    settings.api_key = {"authorization": token}
    settings.retries = False
    return settings


def api(url: str, token: str = TOKEN) -> client.ApiClient:
    return client.ApiClient(reached(url, token))


def jobs_at(url: str, said: list[str] | None = None, waiting: Waiting = QUICK, token: str = TOKEN) -> TrainJobs:
    lines = said if said is not None else []
    return TrainJobs(api(url, token), NAMESPACE, lines.append, waiting)


def settings(nodes: int = 4, **resources: Any) -> JobSettings:
    """The paper's profile on so many nodes."""
    cluster = load_profile("qwen3-vl-30b").cluster
    assert cluster is not None
    asked = StageResources.model_validate(cluster.stages["phase_one_gspo"].model_dump() | resources)
    return JobSettings(image=IMAGE, nodes=cluster.nodes.model_copy(update={"count": nodes}), resources=asked)


def body(job: JobSettings | None = None, owner: Owner | None = None) -> dict[str, Any]:
    return train_job(NAME, job or settings(), ["-m", "taskmem.stages.nodes", "/mnt/job.json"], owner)


if __name__ == "__main__":
    TrainJobs(api(sys.argv[1]), NAMESPACE, lambda line: print(line, flush=True), QUICK).run(body())
