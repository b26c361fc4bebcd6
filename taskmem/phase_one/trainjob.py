"""A training on several nodes: one Kubeflow TrainJob, watched to its end and always removed.

The body is made of kubeflow_trainer_api's models and sent by the kubernetes client: the `kubeflow` package's own call takes plain
environment variables only, and our nodes read theirs from secrets. Waiting is for terminal conditions alone, because a job may
queue for hours (Kueue) before a pod exists. A job that is pre-empted is suspended and comes back with new pods, which go on from
the last checkpoint.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from kubeflow_trainer_api import models  # type: ignore[import-untyped]
from kubernetes import client  # type: ignore[import-untyped]
from kubernetes.client.exceptions import ApiException  # type: ignore[import-untyped]
from urllib3.exceptions import HTTPError

from taskmem.cluster import IMAGE, USER, JobSettings, pod_labels
from taskmem.errors import UserError
from taskmem.phase_one.node_log import NodeLog
from taskmem.progress import Note
from taskmem.records import one_line

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
NODE = "node"
"""The replicated job and the container that Kubeflow's torch runtimes give a node."""
MANAGER = "taskmem.dev/phase-one"
CONNECT_SECONDS, REPLY_SECONDS = 10.0, 60.0
TERMINATED = 143
_TRANSIENT = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Owner:
    """The pod that starts a job; Kubernetes removes the job when it removes the pod."""

    name: str
    uid: str


@dataclass(frozen=True)
class Waiting:
    """Seconds: between two looks at a job, that the API may stay away, and that the log may take to end after the job."""

    look: float = 10.0
    away: float = 900.0
    drain: float = 15.0


def train_job(name: str, job: JobSettings, arguments: Sequence[str], owner: Owner | None = None) -> dict[str, Any]:
    """The TrainJob `name` whose nodes run `torchrun arguments`; all that it asks for comes from the stage's resources."""
    asked, spread = job.resources, job.nodes
    metadata: dict[str, Any] = {"name": name, "labels": pod_labels("phase_one_gspo", asked)}
    if owner:
        reference = {"apiVersion": "v1", "kind": "Pod", "name": owner.name, "uid": owner.uid}
        metadata["ownerReferences"] = [{**reference, "blockOwnerDeletion": False, "controller": False}]
    environment: list[dict[str, Any]] = [{"name": IMAGE, "value": job.image}]
    for secret in asked.secrets:
        value = {"secretKeyRef": {"name": secret.secret, "key": secret.key, "optional": False}}
        environment.append({"name": secret.variable, "valueFrom": value})
    amounts = {"cpu": asked.cpu, "memory": asked.memory}
    if asked.accelerator:
        amounts[asked.accelerator.type] = str(asked.accelerator.count)
    trainer = {
        "image": job.image,
        "command": ["torchrun"],
        "args": list(arguments),
        "env": environment,
        "numNodes": spread.count,
        "numProcPerNode": asked.accelerator.count if asked.accelerator else 1,
        "resourcesPerNode": {"requests": amounts, "limits": amounts},
    }
    patch = {"name": NODE, "template": {"spec": {"template": _pod(job)}}}
    runtime = {"template": {"spec": {"replicatedJobs": [patch]}}}
    spec = {
        "runtimeRef": {"apiGroup": GROUP, "kind": "ClusterTrainingRuntime", "name": spread.runtime},
        "activeDeadlineSeconds": asked.timeout_seconds,
        "trainer": trainer,
        "runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": runtime}],
    }
    body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "TrainJob", "metadata": metadata, "spec": spec}
    made: dict[str, Any] = models.TrainerV1alpha1TrainJob.from_dict(body).to_dict()
    return made


def _pod(job: JobSettings) -> dict[str, Any]:
    """The patch of a node's pod: where it may run, its volumes and its user."""
    asked, spread = job.resources, job.nodes
    volumes: list[dict[str, Any]] = [{"name": "shared", "persistentVolumeClaim": {"claimName": spread.claim}}]
    mounts = [{"name": "shared", "mountPath": spread.mount}]
    if asked.shm:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": asked.shm}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    # Pod Security "restricted"
    user = {"runAsUser": USER, "runAsGroup": USER, "runAsNonRoot": True, "fsGroup": USER}
    confined = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    pod: dict[str, Any] = {
        "volumes": volumes,
        "containers": [{"name": NODE, "volumeMounts": mounts, "securityContext": confined}],
        "securityContext": {**user, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    if asked.node_selector:
        pod["nodeSelector"] = dict(asked.node_selector)
    if asked.tolerations:
        pod["tolerations"] = [taint.kubernetes for taint in asked.tolerations]
    return {"metadata": {"labels": pod_labels("phase_one_gspo", asked)}, "spec": pod}


class TrainJobs:
    """Runs TrainJobs in one namespace; `say` hears the log of node 0 and what becomes of the job, line by line."""

    def __init__(self, api: client.ApiClient, namespace: str, say: Note, waiting: Waiting | None = None) -> None:
        self._api = api
        self._jobs = client.CustomObjectsApi(api)
        self._where = (GROUP, VERSION, namespace, PLURAL)
        self._namespace = namespace
        self._say = say
        self._waiting = waiting or Waiting()

    def run(self, body: Mapping[str, Any]) -> None:
        """Create the job, show node 0's log, wait for its end, and remove it whatever happens, SIGTERM included.

        A job of the same name that still runs is taken up: it is this one, started before its launcher was lost. UserError with
        the job's own reason if it fails or runs out of time, and for an API that refuses or stays away. Main thread only.
        """
        name, refused = body["metadata"]["name"], False
        with _termination():
            try:
                try:
                    self._create(name, body)
                except UserError:
                    refused = True
                    raise
                with self._log(name):
                    self._wait(name)
            finally:
                if not refused:
                    self._delete(name)

    def _create(self, name: str, body: Mapping[str, Any]) -> None:
        for _ in range(2):
            try:
                self._tried(lambda: self._jobs.create_namespaced_custom_object(*self._where, dict(body), **_TIMES))
                self._say(f"TrainJob {self._namespace}/{name} created")
                return
            except ApiException as error:
                if error.status != 409:
                    raise self._refusal("create", name, error) from None
            if self._running(name):
                self._say(f"TrainJob {self._namespace}/{name} runs already; waiting for it")
                return
            self._delete(name)
            self._gone(name)
        raise UserError(f"TrainJob {self._namespace}/{name}: somebody else keeps creating it; end the other run")

    def _running(self, name: str) -> bool:
        job = self._get(name)
        return job is not None and not job.get("metadata", {}).get("deletionTimestamp") and _end(job) is None

    def _gone(self, name: str) -> None:
        until = time.monotonic() + self._waiting.away
        while self._get(name) is not None:
            if time.monotonic() > until:
                raise UserError(f"TrainJob {self._namespace}/{name}: an earlier one is not removed; delete it by hand")
            time.sleep(self._waiting.look)

    def _get(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._tried(
                lambda: self._jobs.get_namespaced_custom_object(*self._where, name, **_TIMES)
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise self._refusal("read", name, error) from None
        return found

    def _wait(self, name: str) -> None:
        told = ""
        while True:
            job = self._get(name)
            if job is None:
                raise UserError(f"TrainJob {self._namespace}/{name}: somebody deleted it; run again to go on")
            end = _end(job)
            if end == "":
                self._say(f"TrainJob {self._namespace}/{name} is complete")
                return
            if end is not None:
                raise UserError(
                    f"TrainJob {self._namespace}/{name}: failed ({end}); see its log above, and run again to go on from "
                    "the last checkpoint"
                )
            state = _state(job)
            if state != told:
                self._say(f"TrainJob {self._namespace}/{name} is {state}")
                told = state
            time.sleep(self._waiting.look)

    def _delete(self, name: str) -> None:
        def delete() -> Any:
            return self._jobs.delete_namespaced_custom_object(
                *self._where, name, propagation_policy="Foreground", **_TIMES
            )

        try:
            self._tried(delete)
        except ApiException as error:
            if error.status != 404:
                raise self._refusal("delete", name, error) from None
            return
        self._say(f"TrainJob {self._namespace}/{name} deleted")

    def _tried(self, call: Callable[[], Any]) -> Any:
        """`call` until the API answers it, for as long as it may stay away."""
        until = time.monotonic() + self._waiting.away
        while True:
            try:
                return call()
            except (ApiException, HTTPError) as error:
                answered = isinstance(error, ApiException) and error.status not in _TRANSIENT
                if answered:
                    raise
                if time.monotonic() > until:
                    raise UserError(
                        f"Kubernetes API: no answer for {self._waiting.away:g} s ({one_line(str(error))[:200]}); look whether "
                        f"a TrainJob is left in namespace {self._namespace}, and run again"
                    ) from None
            time.sleep(self._waiting.look)

    def _refusal(self, verb: str, name: str, error: ApiException) -> UserError:
        advice = {
            401: "mount a service account's token",
            403: f"allow the service account to {verb} trainjobs.{GROUP}",
            404: "install Kubeflow Trainer v2, or mend the namespace",
        }.get(error.status, "mend what it says")
        said = one_line(f"{error.reason or ''}: {error.body or ''}")[:300]
        return UserError(f"TrainJob {self._namespace}/{name}: cannot {verb} it ({error.status} {said}); {advice}")

    @contextmanager
    def _log(self, name: str) -> Iterator[None]:
        """Node 0's log, said line by line in the meantime and a moment longer."""
        log = NodeLog(client.CoreV1Api(self._api), self._namespace, name, self._say, self._waiting.look)
        thread = threading.Thread(target=log.follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            log.ended.set()
            thread.join(self._waiting.drain)


_TIMES: Mapping[str, Any] = {"_request_timeout": (CONNECT_SECONDS, REPLY_SECONDS)}


def _conditions(job: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = (job.get("status") or {}).get("conditions") or []
    return [c for c in found if isinstance(c, dict) and c.get("status") == "True"]


def _end(job: Mapping[str, Any]) -> str | None:
    """Empty for a job that is complete, the reason for one that failed, None for one that goes on."""
    for condition in _conditions(job):
        if condition.get("type") == "Complete":
            return ""
        if condition.get("type") == "Failed":
            return one_line(f"{condition.get('reason') or 'no reason'}: {condition.get('message') or ''}")[:300]
    return None


def _state(job: Mapping[str, Any]) -> str:
    """How a job that goes on is doing, for people."""
    return "suspended" if any(c.get("type") == "Suspended" for c in _conditions(job)) else "under way"


@contextmanager
def _termination() -> Iterator[None]:
    """SIGTERM ends the process through `finally`, once; a second one does not cut that short."""

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
