"""A TrainJob from its creation to its removal, through the real Kubernetes client and a server on loopback."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from inspect import getsourcefile
from typing import Any

import pytest
from cluster_stub import (
    COMPLETE,
    DEADLINE,
    FAILED,
    IMAGE,
    NAME,
    NAMESPACE,
    SUSPENDED,
    Cluster,
    body,
    jobs_at,
    pod,
    reached,
    serving,
    settings,
)
from kubeflow.common.types import KubernetesBackendConfig
from kubeflow.trainer import TrainerClient

from taskmem.errors import UserError
from taskmem.phase_one.trainjob import Owner, Waiting

UNDER_WAY: list[dict[str, Any]] = []


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with serving() as served:
        yield served


def failing(cluster: Cluster, **given: Any) -> str:
    with pytest.raises(UserError) as error:
        jobs_at(cluster.url, **given).run(body())
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_job_asks_for_what_its_stage_asks_for_on_every_node() -> None:
    job = settings(nodes=4)
    made = body(job)
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "taskmem-gpu"
    spec = made["spec"]
    assert spec["runtimeRef"]["name"] == "torch-distributed"
    assert spec["activeDeadlineSeconds"] == job.resources.timeout_seconds
    trainer = spec["trainer"]
    assert (trainer["image"], trainer["numNodes"], trainer["numProcPerNode"]) == (IMAGE, 4, 8)
    assert [trainer["command"], trainer["args"][:2]] == [["torchrun"], ["-m", "taskmem.stages.nodes"]]
    amounts = {"cpu": "64", "memory": "1024Gi", "nvidia.com/gpu": "8"}
    assert trainer["resourcesPerNode"] == {"requests": amounts, "limits": amounts}
    from_secrets = {e["name"]: e["valueFrom"]["secretKeyRef"]["name"] for e in trainer["env"] if "valueFrom" in e}
    assert from_secrets == {"AWS_ACCESS_KEY_ID": "taskmem-s3", "AWS_SECRET_ACCESS_KEY": "taskmem-s3"}
    (patch,) = spec["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template = node["template"]["spec"]["template"]
    assert template["metadata"]["labels"] == made["metadata"]["labels"]
    given = template["spec"]
    assert given["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H200"}
    assert given["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}} in given["volumes"]
    assert {"name": "shared", "persistentVolumeClaim": {"claimName": "taskmem-training"}} in given["volumes"]
    assert [m["mountPath"] for m in given["containers"][0]["volumeMounts"]] == ["/mnt/taskmem-training", "/dev/shm"]
    assert given["securityContext"]["runAsNonRoot"]
    assert given["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert given["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


def test_what_a_stage_does_not_ask_for_leaves_no_trace() -> None:
    plain = body(settings(shm=None, accelerator=None, tolerations=[], node_selector={}, secrets=[], labels={}))
    for trace in ("shm", "nvidia", "tolerations", "nodeSelector", "secret", "kueue", "ownerReferences"):
        assert trace not in str(plain)
    assert plain["spec"]["trainer"]["numProcPerNode"] == 1


def test_a_job_is_created_followed_and_deleted(cluster: Cluster) -> None:
    said: list[str] = []
    cluster.states = [UNDER_WAY, UNDER_WAY, COMPLETE]
    jobs_at(cluster.url, said).run(body(owner=Owner("launcher", "uid-1")))
    (created,) = cluster.created
    assert created["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
    assert cluster.deleted == [NAME]
    assert [line.rsplit(" ", 1)[-1] for line in said] == ["created", "way", "complete", "deleted"]


def test_a_queued_and_suspended_job_is_waited_for(cluster: Cluster) -> None:
    said: list[str] = []
    cluster.states = [SUSPENDED, SUSPENDED, UNDER_WAY, SUSPENDED, UNDER_WAY, COMPLETE]
    jobs_at(cluster.url, said).run(body())
    assert [line.split(" is ")[1] for line in said if " is " in line] == [
        *("suspended", "under way", "suspended", "under way", "complete")
    ]


@pytest.mark.parametrize(("state", "reason"), [(FAILED, "JobFailed"), (DEADLINE, "DeadlineExceeded")])
def test_a_job_that_fails_or_runs_out_of_time_says_why_and_is_deleted(
    cluster: Cluster, state: list[dict[str, Any]], reason: str
) -> None:
    cluster.states = [UNDER_WAY, state]
    assert reason in failing(cluster)
    assert cluster.deleted == [NAME]


def test_the_first_node_s_log_is_said_once_through_a_replaced_pod(cluster: Cluster) -> None:
    said: list[str] = []
    cluster.states = [UNDER_WAY] * 30 + [COMPLETE]
    first, second = pod("node-a", "Failed", "2026-01-01T00:00:00Z"), pod("node-b", "Running", "2026-01-01T01:00:00Z")
    cluster.pods = [second, pod("node-c", "Pending", "2026-01-01T02:00:00Z"), first]
    cluster.logs = {
        "node-a": ["2026-01-01T00:00:01.5Z ::progress 1/4", "2026-01-01T00:00:01.50001Z killed"],
        "node-b": ["2026-01-01T01:00:01Z from checkpoint-2", "2026-01-01T01:00:02.000000001Z " + "x" * 200_000],
    }
    jobs_at(cluster.url, said).run(body())
    lines = [line for line in said if "TrainJob" not in line]
    assert lines[:3] == ["::progress 1/4", "killed", "from checkpoint-2"]
    assert len(lines) == 4
    assert 60_000 < len(lines[3]) < 70_000
    (selector,) = cluster.selectors
    assert f"jobset-name={NAME}" in selector and "job-completion-index=0" in selector


def test_what_the_log_still_holds_when_the_job_ends_is_said(cluster: Cluster) -> None:
    said: list[str] = []
    cluster.on_create = lambda body: (
        cluster.pods.append(pod("node-a", "Succeeded", "2026-01-01T00:00:00Z")),
        cluster.logs.update({"node-a": ["2026-01-01T00:00:01Z done"]}),
    )
    jobs_at(cluster.url, said).run(body())
    assert "done" in said


@pytest.mark.parametrize("fault", [0, 429, 500, 503])
def test_an_api_that_stumbles_is_asked_again(cluster: Cluster, fault: int) -> None:
    cluster.states = [UNDER_WAY, COMPLETE]
    cluster.faults = {method: [fault, fault] for method in ("POST", "GET", "DELETE")}
    jobs_at(cluster.url).run(body())
    assert cluster.deleted == [NAME]
    assert cluster.requests["POST"] == cluster.requests["DELETE"] == 3


def test_an_answer_that_was_lost_does_not_make_a_second_job(cluster: Cluster) -> None:
    cluster.jobs[NAME] = body()
    cluster.states = [UNDER_WAY, UNDER_WAY, COMPLETE]
    said: list[str] = []
    jobs_at(cluster.url, said).run(body())
    assert any("runs already" in line for line in said)
    assert cluster.created == []
    assert cluster.deleted == [NAME]


def test_a_job_that_an_earlier_launcher_left_failed_is_replaced(cluster: Cluster) -> None:
    cluster.jobs[NAME] = body()
    cluster.states = [FAILED, COMPLETE]
    jobs_at(cluster.url).run(body())
    assert len(cluster.created) == 1
    assert cluster.deleted == [NAME, NAME]


@pytest.mark.parametrize(
    ("fault", "advice"),
    [(401, "token"), (403, "allow the service account to create"), (404, "install Kubeflow Trainer"), (422, "mend")],
)
def test_a_job_that_is_refused_says_so_in_one_line_and_deletes_nothing(
    cluster: Cluster, fault: int, advice: str
) -> None:
    cluster.faults = {"POST": [fault]}
    message = failing(cluster)
    assert str(fault) in message and advice in message
    assert cluster.requests["DELETE"] == 0


def test_a_wrong_token_is_a_refusal(cluster: Cluster) -> None:
    assert "401" in failing(cluster, token="Bearer wrong")


def test_an_api_that_stays_away_is_given_up_in_time(cluster: Cluster) -> None:
    cluster.states = [UNDER_WAY]
    cluster.on_create = lambda body: cluster.faults.update({m: [503] * 10_000 for m in ("GET", "DELETE")})
    begun = time.monotonic()
    assert "no answer for 0.3 s" in failing(cluster, waiting=Waiting(0.02, 0.3, 0.1))
    assert time.monotonic() - begun < 5


def test_a_job_that_somebody_else_deleted_is_missed(cluster: Cluster) -> None:
    cluster.on_create = lambda body: cluster.jobs.clear()
    assert "somebody deleted it" in failing(cluster)


def launched(cluster: Cluster) -> subprocess.Popen[str]:
    """A launcher in a process of its own, once its job is under way."""
    cluster.states = [UNDER_WAY]
    script = getsourcefile(Cluster) or ""
    process = subprocess.Popen([sys.executable, script, cluster.url], stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while cluster.requests["GET"] < 3 and time.monotonic() < until:
        time.sleep(0.05)
    assert cluster.created
    return process


def test_sigterm_deletes_the_job_and_ends_the_process(cluster: Cluster) -> None:
    process = launched(cluster)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert cluster.deleted == [NAME]
    assert out.splitlines()[-1].endswith("deleted")


def test_a_second_sigterm_does_not_stop_the_removal(cluster: Cluster) -> None:
    process = launched(cluster)
    cluster.faults = {"DELETE": [503] * 10}
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    process.communicate(timeout=60)
    assert cluster.deleted == [NAME]


def test_kubeflow_s_own_client_reads_the_job_that_we_made(cluster: Cluster) -> None:
    cluster.jobs[NAME] = body()
    cluster.pods = [pod("node-a", "Running", "2026-01-01T00:00:00Z")]
    cluster.logs = {"node-a": ["2026-01-01T00:00:01Z hello"]}
    trainer = TrainerClient(KubernetesBackendConfig(namespace=NAMESPACE, client_configuration=reached(cluster.url)))
    job = trainer.get_job(NAME)
    assert (job.name, job.num_nodes, job.runtime.name, job.status) == (NAME, 4, "torch-distributed", "Complete")
    assert [step.name for step in job.steps] == ["node-0"]
