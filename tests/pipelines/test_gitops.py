"""`taskmem schedule --gitops`: files that a cluster can follow, and a Job that says what the command line would."""

import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cluster_parts import PARAMETERS, Cluster, Said

IMAGE = "registry.test/taskmem/data@sha256:" + "d" * 64
CRON = "0 0 2 * * *"


def write(cluster: Cluster, out: Path, *words: str, image: str = IMAGE, **changes: Any) -> Said:
    images = cluster.folder / "images.json"
    images.write_text(json.dumps({"data": image, "train": image}))
    where = ("--gitops", out, "--namespace", "team", "--images", images)
    return cluster.schedule(*where, *words, **changes)


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader))


@pytest.fixture
def out(cluster: Cluster) -> Path:
    assert write(cluster, cluster.folder / "gitops").code == 0
    assert cluster.stub.asked == []
    return cluster.folder / "gitops"


def test_both_files_are_written_the_same_each_time_and_nothing_besides(cluster: Cluster, out: Path) -> None:
    again = cluster.folder / "again"
    assert write(cluster, again).out == f"{again / 'pipeline.yaml'}\n{again / 'ensure.yaml'}\n"
    assert sorted(path.name for path in again.iterdir()) == ["ensure.yaml", "pipeline.yaml"]
    for name in ("pipeline.yaml", "ensure.yaml"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_the_pipeline_and_the_version_that_the_job_names_are_resources(cluster: Cluster, out: Path) -> None:
    pipeline, version = documents(out / "pipeline.yaml")
    assert (pipeline["kind"], version["kind"]) == ("Pipeline", "PipelineVersion")
    assert {one["apiVersion"] for one in (pipeline, version)} == {"pipelines.kubeflow.org/v2beta1"}
    assert {one["metadata"]["namespace"] for one in (pipeline, version)} == {"team"}
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"] == "taskmem-adaptation"
    assert version["spec"]["displayName"] == version["metadata"]["name"]
    spec, platform = documents(cluster.ir)
    assert version["spec"]["pipelineSpec"] == spec
    assert version["spec"]["platformSpec"] == platform
    *_, job = documents(out / "ensure.yaml")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["args"][:2] == ["schedule", f"taskmem-adaptation@{version['metadata']['name']}"]


def test_the_job_and_its_parameters_are_valid_kubernetes(out: Path) -> None:
    for document in documents(out / "ensure.yaml"):
        kubernetes_validate.validate(document, "1.31", strict=True)


def test_the_job_runs_restricted_with_one_token_for_kubeflow_alone(out: Path) -> None:
    *_, job = documents(out / "ensure.yaml")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == IMAGE
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    (token,) = next(v["projected"]["sources"] for v in pod["volumes"] if v["name"] == "token")
    assert token["serviceAccountToken"]["audience"] == "pipelines.kubeflow.org"
    (mount,) = [m["mountPath"] for m in container["volumeMounts"] if m["name"] == "token"]
    variables = {v["name"]: v["value"] for v in container["env"]}
    assert variables["KF_PIPELINES_SA_TOKEN_PATH"] == f"{mount}/token"


def test_what_the_job_says_schedules_the_version_as_the_command_line_does(cluster: Cluster, out: Path) -> None:
    """The Job's own words, run here against a server that has its version."""
    cluster.schedule("--namespace", "team")
    config, job = documents(out / "ensure.yaml")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    given = cluster.folder / "mounted.json"
    given.write_text(config["data"]["parameters.json"])
    assert json.loads(given.read_text()) == PARAMETERS
    words = [str(given) if word == "/etc/taskmem/parameters.json" else word for word in container["args"]]
    said = cluster.taskmem(*words)
    assert said.code == 0, said.error
    assert said.out.startswith(f"nightly: unchanged, '{CRON}', ")


def test_another_wish_is_another_job_for_a_job_cannot_be_changed(cluster: Cluster, out: Path) -> None:
    names = {documents(out / "ensure.yaml")[1]["metadata"]["name"]}
    for number, (words, changes) in enumerate(
        ((("--cron", "0 0 3 * * *"), {}), ((), {"seed": 4}), (("--name", "weekly" * 20), {}))
    ):
        assert write(cluster, cluster.folder / str(number), *words, **changes).code == 0
        names.add(documents(cluster.folder / str(number) / "ensure.yaml")[1]["metadata"]["name"])
    assert len(names) == 4
    assert all(len(name) <= 63 for name in names)


def test_an_image_by_tag_a_missing_namespace_and_a_registered_name_are_one_line(cluster: Cluster) -> None:
    folder = cluster.folder / "gitops"
    said = write(cluster, folder, image="registry.test/taskmem/data:1")
    assert (said.code, said.error.count("\n")) == (2, 1)
    assert "an image by tag, and what that names may change; give it by digest" in said.error
    assert "needs --namespace" in cluster.schedule("--gitops", folder).error
    assert "--gitops needs a file" in cluster.taskmem("schedule", "a@v1", "--gitops", folder).error
    assert not folder.exists()
