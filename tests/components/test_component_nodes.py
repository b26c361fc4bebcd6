"""Phase One on more than one node: its task starts the nodes, and tells them what the profile asks for each."""

import json
from pathlib import Path

import pytest
from pipeline_ir import CompiledPipeline, wanted_kubernetes

from components.images import Images
from pipelines.compiling import compile_one
from taskmem.cluster import JobSettings
from taskmem.config import Profile, load_profile, override


def on(nodes: int, name: str = "qwen3-vl-30b") -> Profile:
    return override(load_profile(name), {"cluster": {"nodes": {"count": nodes}}}, "test")


def pipeline(profile: Profile, images: Images, out: Path, name: str = "phase_one") -> CompiledPipeline:
    return CompiledPipeline(compile_one(name, profile, images, out))


@pytest.mark.parametrize(("profile", "name"), [("qwen3-vl-30b", "phase_one"), ("miniature", "end_to_end")])
def test_the_task_that_starts_nodes_asks_for_no_accelerator_and_mounts_the_volume(
    images: Images, tmp_path: Path, profile: str, name: str
) -> None:
    settings = on(4, profile)
    task = pipeline(settings, images, tmp_path, name).task("phase_one_gspo")
    cluster = settings.cluster
    assert cluster is not None
    kubernetes = dict(task.kubernetes)
    (mount,) = kubernetes.pop("pvcMount")
    assert (mount["constant"], mount["mountPath"]) == ("taskmem-training", "/mnt/taskmem-training")
    assert kubernetes == wanted_kubernetes("phase_one_gspo", cluster.pod("phase_one_gspo"))
    assert "accelerator" not in task.container["resources"]
    assert (task.container["resources"]["resourceCpuLimit"], task.container["resources"]["resourceMemoryLimit"]) == (
        *("2", "8Gi"),
    )
    # the nodes may queue as long as they may run
    assert int(task.kubernetes["activeDeadlineSeconds"]) == 2 * cluster.stages["phase_one_gspo"].timeout_seconds
    assert task.container["image"] == images.train


def test_the_task_is_told_what_each_node_gets(images: Images, tmp_path: Path) -> None:
    profile = on(4)
    task = pipeline(profile, images, tmp_path).task("phase_one_gspo")
    job = JobSettings.model_validate_json(task.task["inputs"]["parameters"]["job"]["runtimeValue"]["constant"])
    assert profile.cluster is not None
    assert job == JobSettings(
        image=images.train, nodes=profile.cluster.nodes, resources=profile.cluster.stages["phase_one_gspo"]
    )
    assert json.loads(job.model_dump_json())["nodes"]["count"] == 4


def test_on_one_node_nothing_of_this_shows(images: Images, tmp_path: Path) -> None:
    task = pipeline(on(1), images, tmp_path).task("phase_one_gspo")
    assert task.task["inputs"]["parameters"]["job"] == {"runtimeValue": {"constant": ""}}
    assert "pvcMount" not in task.kubernetes
    assert task.container["resources"]["accelerator"]["resourceCount"] == "8"


def test_no_other_task_is_changed_by_the_number_of_nodes(images: Images, tmp_path: Path) -> None:
    one, four = (pipeline(on(nodes), images, tmp_path / str(nodes)) for nodes in (1, 4))
    for task in one.tasks():
        if task.stage != "phase_one_gspo":
            assert task == four.task(task.name)
