"""phase_one_gspo on several nodes: what is put on the shared volume, what comes back, and a job that really trains."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster_stub import COMPLETE, FAILED, SUSPENDED, Cluster, jobs_at, pod, serving, settings

from taskmem.backends import backends_for
from taskmem.cli import shipped_base
from taskmem.cluster import JobSettings
from taskmem.config import Profile, load_profile, override
from taskmem.errors import UserError
from taskmem.phase_one.sizes import TRUE_CONFIG
from taskmem.stages.common import QUESTIONS
from taskmem.stages.nodes import NodeJob, phase_one_on_nodes
from taskmem.stages.segmentation import segmentation
from taskmem.stages.train_policy import phase_one
from taskmem.world.splits import render_split

SEED = 3
SMALL = {
    "world": {"stream_segments": 4, "phase_one": 3, "development": 2},
    "phase_one": {"batch": 4, "mini_batch": 2, "group_size": 4, "off_policy_steps": 2, "on_policy_steps": 2},
}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with serving() as served:
        yield served


def small_profile() -> Profile:
    profile = override(load_profile("miniature"), SMALL, "small")
    return override(profile, {"phase_one": {"validate_every": 1}}, "small").model_copy(update={"cluster": None})


def job_on(mount: Path, nodes: int = 2, **asked: Any) -> JobSettings:
    plain = {"accelerator": None, "shm": None, **asked}
    job = settings(nodes, **plain)
    return job.model_copy(update={"nodes": job.nodes.model_copy(update={"mount": str(mount)})})


def stage(cluster: Cluster, root: Path, said: list[str] | None = None, **changes: Any) -> None:
    """The launching task, on inputs that are files with a word in each."""
    for name in ("segments", "base", "development", "world"):
        (root / "given" / name).mkdir(parents=True, exist_ok=True)
        (root / "given" / name / "file").write_text(name)
    (root / "given" / QUESTIONS).write_text("questions")
    given = [root / "given" / name for name in ("segments", "base", "development", QUESTIONS, "world")]
    wanted = {"profile": small_profile(), "job": job_on(root / "mount"), **changes}
    phase_one_on_nodes(*given, wanted["profile"], SEED, root / "out", wanted["job"], {}, jobs_at(cluster.url, said))


def folder_of(body: dict[str, Any]) -> Path:
    return Path(body["spec"]["trainer"]["args"][-1]).parent


def finish(body: dict[str, Any]) -> None:
    """What the nodes leave."""
    out = folder_of(body) / "out"
    (out / "policy").mkdir(parents=True)
    (out / "policy" / "model.safetensors").write_text("weights")
    for name in ("training.json", "validation.json", "run.json"):
        (out / name).write_text(name)


def test_inputs_go_to_the_shared_volume_and_the_policy_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    seen: dict[str, str] = {}

    def train(body: dict[str, Any]) -> None:
        folder = folder_of(body)
        seen.update({p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()})
        finish(body)

    cluster.on_create = train
    stage(cluster, tmp_path)
    job = NodeJob.model_validate(json.loads(seen.pop("job.json")))
    assert (job.seed, job.world) == (SEED, True)
    assert Profile.model_validate_json(job.profile) == small_profile()
    assert seen.pop("questions") == "questions"
    assert seen == {f"{name}/file": name for name in ("segments", "base", "development", "world")}
    assert (tmp_path / "out" / "policy" / "model.safetensors").read_text() == "weights"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("policy", "training.json", "validation.json", "run.json"),
    }
    assert list((tmp_path / "mount").iterdir()) == []


def test_the_same_training_finds_its_folder_again_after_a_failure(cluster: Cluster, tmp_path: Path) -> None:
    cluster.states = [FAILED]
    with pytest.raises(UserError, match="go on from the last checkpoint"):
        stage(cluster, tmp_path)
    (left,) = (tmp_path / "mount").iterdir()
    (left / "out" / "checkpoints").mkdir(parents=True)
    cluster.states, cluster.on_create = [COMPLETE], finish
    stage(cluster, tmp_path)
    assert {folder_of(body) for body in cluster.created} == {left}


def test_a_policy_that_was_finished_before_the_task_was_lost_is_only_fetched(cluster: Cluster, tmp_path: Path) -> None:
    cluster.states = [FAILED]
    with pytest.raises(UserError):
        stage(cluster, tmp_path)
    finish(cluster.created[0])
    stage(cluster, tmp_path)
    assert len(cluster.created) == 1
    assert (tmp_path / "out" / "policy").exists()


def test_another_image_or_number_of_nodes_is_another_training(cluster: Cluster, tmp_path: Path) -> None:
    cluster.states = [FAILED]
    usual = job_on(tmp_path / "mount")
    for job in (usual, usual.model_copy(update={"image": "registry.test/other:2"}), job_on(tmp_path / "mount", 4)):
        with pytest.raises(UserError):
            stage(cluster, tmp_path, job=job)
    assert len({folder_of(body) for body in cluster.created}) == 3


def test_a_job_that_leaves_no_policy_is_no_success(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="left no policy; do all nodes mount taskmem-training"):
        stage(cluster, tmp_path)


def test_a_model_that_does_not_fit_is_refused_before_anything_is_copied_or_started(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "given" / "base").mkdir(parents=True)
    true = resources.files("taskmem.phase_one").joinpath(TRUE_CONFIG).read_text()
    (tmp_path / "given" / "base" / "config.json").write_text(true)
    job = job_on(tmp_path / "mount", 2, accelerator={"type": "nvidia.com/gpu", "count": 1})
    with pytest.raises(UserError, match=r"what fits: .* 1 x 8 GPUs of 141 GB"):
        stage(cluster, tmp_path, job=job, profile=load_profile("qwen3-vl-30b"))
    assert not (tmp_path / "mount").exists()
    assert not cluster.requests


def test_a_node_that_cannot_read_its_job_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{}")
    command = [sys.executable, "-m", "taskmem.stages.nodes", str(tmp_path / "job.json")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stdout.count("\n") == 1 and "start the stage again" in ended.stdout


class Trainer:
    """What Kubeflow Trainer does with a job, on this machine: one torchrun a node, told of the others as its torch runtime does.

    The first time all nodes are lost as soon as there is a checkpoint, as when others take their places; then they come back.
    """

    def __init__(self, cluster: Cluster, logs: Path) -> None:
        self._cluster = cluster
        self._logs = logs
        self.exits: list[list[int]] = []

    def __call__(self, body: dict[str, Any]) -> None:
        self._cluster.states = [[]]
        threading.Thread(target=self._live, args=(body,), daemon=True).start()

    def _live(self, body: dict[str, Any]) -> None:
        checkpoints = folder_of(body) / "out" / "checkpoints"
        nodes = self._start(body, "before")
        while not any(checkpoints.glob("checkpoint-*/slots.json")) and all(n.poll() is None for n in nodes):
            threading.Event().wait(0.05)
        for node in nodes:
            for process in [*psutil.Process(node.pid).children(recursive=True), node]:
                process.kill()
        self.exits.append([node.wait() for node in nodes])
        self._cluster.states = [SUSPENDED]
        self.exits.append([node.wait() for node in self._start(body, "after")])
        self._cluster.states = [COMPLETE if self.exits[-1] == [0, 0] else FAILED]

    def _start(self, body: dict[str, Any], name: str) -> list[subprocess.Popen[bytes]]:
        trainer = body["spec"]["trainer"]
        assert trainer["command"] == ["torchrun"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        told = {
            "PET_NNODES": str(trainer["numNodes"]),
            "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        started = []
        for rank in range(trainer["numNodes"]):
            with (self._logs / f"{name}-{rank}").open("wb") as log:
                command = [sys.executable, "-m", "torch.distributed.run", *trainer["args"]]
                environment = {**os.environ, **told, "PET_NODE_RANK": str(rank)}
                started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
        self._cluster.pods.append(pod(f"node-{name}", "Succeeded", f"2026-01-01T0{len(self._cluster.pods)}:00:00Z"))
        return started


@pytest.mark.slow
def test_two_nodes_of_a_job_train_the_policy_and_go_on_after_pre_emption(cluster: Cluster, tmp_path: Path) -> None:
    profile = small_profile()
    assert profile.world is not None
    for split in ("phase_one", "development"):
        render_split(tmp_path / "world" / split, split, profile.world, SEED)
        segmentation(tmp_path / "world" / split / "videos", profile, tmp_path / "film" / split)
    inputs = [
        *(tmp_path / "film" / "phase_one", shipped_base(), tmp_path / "film" / "development"),
        tmp_path / "world" / "development" / QUESTIONS,
    ]
    world = tmp_path / "world"
    cluster.on_create = trainer = Trainer(cluster, tmp_path)
    said: list[str] = []
    job = job_on(tmp_path / "mount")
    phase_one_on_nodes(*inputs, world, profile, SEED, tmp_path / "nodes", job, {}, jobs_at(cluster.url, said))
    assert trainer.exits == [[-9, -9], [0, 0]], (tmp_path / "after-0").read_text()[-3000:]
    assert any("suspended" in line for line in said)
    before, after = ((tmp_path / name).read_text() for name in ("before-0", "after-0"))
    # the first step's first update is done once
    assert "::progress 0/4" in before and "::progress 0/4" not in after
    assert "::progress 4/4" in after

    phase_one(*inputs, backends_for(profile, world), profile, SEED, tmp_path / "here")
    mine, wanted = (json.loads((tmp_path / name / "training.json").read_text()) for name in ("nodes", "here"))
    for got, expected in zip(mine, wanted, strict=True):
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-4)
