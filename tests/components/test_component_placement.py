"""Everything that a profile asks of the cluster shows in the compiled pipeline, and nothing else does."""

from pathlib import Path
from typing import Any

import pytest
from pipeline_ir import assert_placed, compiled
from toy_pipelines import every_stage, nested, one_stage, toy

from components.images import UNPLACED, Images, load_images
from taskmem.cluster import STAGES, ClusterSettings, StageName, StageResources
from taskmem.config import Profile, load_profile, override
from taskmem.errors import UserError


def asking(stage: str, **changes: Any) -> Profile:
    """The paper's profile, with one stage that asks for something else."""
    profile = load_profile("qwen3-vl-30b")
    stages: dict = dict(profile.cluster.stages)
    stages[stage] = StageResources.model_validate(stages[stage].model_dump() | changes)
    return profile.model_copy(update={"cluster": ClusterSettings(nodes=profile.cluster.nodes, stages=stages)})


def test_every_stage_carries_exactly_what_the_profile_asks(profile: Profile, images: Images, tmp_path: Path) -> None:
    pipeline = compiled(every_stage(profile, images), tmp_path)
    assert sorted(task.name for task in pipeline.tasks()) == sorted(STAGES)
    for stage in STAGES:
        assert pipeline.task(stage).stage == stage
        assert_placed(pipeline.task(stage), stage, profile, images)


def test_phase_one_of_the_paper_s_profile_asks_for_a_whole_node(images: Images, tmp_path: Path) -> None:
    task = compiled(every_stage(load_profile("qwen3-vl-30b"), images), tmp_path).task("phase_one_gspo")
    assert task.container["image"] == images.train
    resources = task.container["resources"]
    assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert resources["accelerator"]["resourceCount"] == "8"
    assert (resources["resourceCpuLimit"], resources["resourceMemoryLimit"]) == ("64", "1024Gi")
    assert task.kubernetes["emptyDirMounts"] == [
        {"volumeName": "shm", "mountPath": "/dev/shm", "medium": "Memory", "sizeLimit": "64Gi"}
    ]
    assert task.kubernetes["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert task.kubernetes["nodeSelector"] == {"labels": {"nvidia.com/gpu.product": "NVIDIA-H200"}}
    assert task.kubernetes["podMetadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "taskmem-gpu"
    assert task.kubernetes["activeDeadlineSeconds"] == "259200"
    assert task.kubernetes["secretAsEnv"][1]["keyToEnv"] == [
        {"envVar": "AWS_SECRET_ACCESS_KEY", "secretKey": "secret-access-key"}
    ]


def test_what_a_profile_does_not_ask_leaves_no_trace(images: Images, tmp_path: Path) -> None:
    text = compiled(every_stage(load_profile("miniature"), images), tmp_path).text
    for trace in ("accelerator", "emptyDir", "shm", "toleration", "nodeSelector", "secret", "null"):
        assert trace not in text


def test_a_stage_that_is_tried_once_has_no_retry_policy(images: Images, tmp_path: Path) -> None:
    profile = asking("deployment", retry={"count": 0, "seconds": 1, "factor": 1})
    pipeline = compiled(every_stage(profile, images), tmp_path)
    assert "retryPolicy" not in pipeline.task("deployment").task
    assert "retryPolicy" in pipeline.task("phase_two_dpo").task


def test_a_retry_is_still_allowed_after_the_longest_attempts(profile: Profile, images: Images, tmp_path: Path) -> None:
    pipeline = compiled(every_stage(profile, images), tmp_path)
    for stage in STAGES:
        window = int(pipeline.task(stage).task["retryPolicy"]["backoffMaxDuration"].removesuffix("s"))
        asked = profile.cluster.stages[stage]
        assert window > 10 * (asked.retry.count + 1) * asked.timeout_seconds


def test_a_toleration_with_a_value_is_for_that_value_alone(images: Images, tmp_path: Path) -> None:
    profile = asking("deployment", tolerations=[{"key": "pool", "value": "gpu", "effect": "NoExecute"}])
    task = compiled(one_stage("deployment", profile, images), tmp_path).task("deployment")
    assert task.kubernetes["tolerations"] == [
        {"key": "pool", "operator": "Equal", "value": "gpu", "effect": "NoExecute"}
    ]


def test_two_variables_may_read_one_key_of_a_secret(images: Images, tmp_path: Path) -> None:
    profile = asking("deployment", secrets=[{"variable": name, "secret": "s", "key": "k"} for name in ("A", "B")])
    task = compiled(one_stage("deployment", profile, images), tmp_path).task("deployment")
    assert [entry["keyToEnv"][0]["envVar"] for entry in task.kubernetes["secretAsEnv"]] == ["A", "B"]


def test_a_secret_s_value_is_never_in_a_pipeline(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "TASKMEM_JUDGE_API_KEY"):
        monkeypatch.setenv(variable, "the-value-itself")
    text = compiled(every_stage(load_profile("qwen3-vl-30b"), images), tmp_path).text
    assert "TASKMEM_JUDGE_API_KEY" in text
    assert "the-value-itself" not in text


def test_a_profile_s_label_wins_over_the_standard_one(images: Images, tmp_path: Path) -> None:
    profile = asking("deployment", labels={"app.kubernetes.io/name": "ours"})
    task = compiled(one_stage("deployment", profile, images), tmp_path).task("deployment")
    assert task.kubernetes["podMetadata"]["labels"] == {
        "app.kubernetes.io/name": "ours",
        "app.kubernetes.io/component": "deployment",
        "app.kubernetes.io/part-of": "taskmem",
    }


def test_a_task_can_have_another_name_on_screen(images: Images, tmp_path: Path) -> None:
    pipeline = compiled(one_stage("deployment", load_profile("miniature"), images, name="promote"), tmp_path)
    assert pipeline.task("promote").stage == "deployment"


@pytest.mark.parametrize(("pinned", "cached", "caching"), [(1, 1, {"enableCache": True}), (1, 0, {}), (0, 1, {})])
def test_a_result_is_reused_only_if_wanted_and_the_image_is_named_by_digest(
    pinned: int, cached: int, caching: dict, images: Images, tmp_path: Path
) -> None:
    used = images if pinned else load_images(None)
    pipeline = compiled(one_stage("deployment", load_profile("miniature"), used, cached=bool(cached)), tmp_path)
    assert pipeline.task("deployment").task["cachingOptions"] == caching


@pytest.mark.parametrize(
    ("field", "value"), [("cpu", "8Gi"), ("memory", "1.5Gi"), ("retry.factor", 1.5), ("retry.factor", 0)]
)
def test_what_kubeflow_cannot_express_is_refused_when_the_profile_is_read(field: str, value: Any) -> None:
    changed = {"retry": {"factor": value}} if "." in field else {field: value}
    with pytest.raises(UserError, match=f"ours: cluster.stages.deployment.{field}: "):
        override(load_profile("qwen3-vl-30b"), {"cluster": {"stages": {"deployment": changed}}}, "ours")


def test_in_nested_pipelines_and_loops_every_task_keeps_its_own(
    profile: Profile, images: Images, tmp_path: Path
) -> None:
    pipeline = compiled(nested(profile, images), tmp_path)
    placed: dict[str, StageName] = {
        "collect all": "feedback_collection",
        "roll out one": "rollout_cache",
        "mine one": "preference_mining",
        "train one": "phase_two_dpo",
        "train all": "phase_one_gspo",
    }
    assert {task.name: task.stage for task in pipeline.tasks()} == placed
    assert pipeline.mixed_up() == []
    for task in pipeline.tasks():
        assert_placed(task, placed[task.name], profile, images)


def test_a_component_shared_with_a_nested_pipeline_under_one_name_is_found_out(images: Images, tmp_path: Path) -> None:
    pipeline = compiled(nested(load_profile("qwen3-vl-30b"), images, inner=toy), tmp_path)
    assert pipeline.mixed_up()


def test_a_task_that_was_not_placed_has_an_image_that_no_registry_has(tmp_path: Path) -> None:
    assert UNPLACED in compiled(toy, tmp_path).text
