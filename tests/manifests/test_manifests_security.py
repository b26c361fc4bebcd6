"""Pod Security "restricted", and what we ask of a pod beyond it."""

import json
import subprocess
from pathlib import Path

import pytest
from manifest_parts import PLACES, Cluster, containers, documents, files, pod, rendered, tool

pytestmark = pytest.mark.system
# the volume types that the restricted standard knows
ALLOWED = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


def test_where_people_are_served_the_restricted_standard_is_enforced(overlay: Cluster) -> None:
    levels = {
        space["metadata"]["name"]: space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
        for space in overlay.of("Namespace")
    }
    (serving,) = {workload["metadata"]["namespace"] for workload in overlay.workloads}
    assert levels.pop(serving) == "restricted"
    # Argo's containers are not ours to restrict
    assert list(levels.values()) == ["baseline"]


def test_every_pod_is_restricted(overlay: Cluster) -> None:
    for workload in overlay.workloads:
        spec = pod(workload)["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & set(spec)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for volume in spec.get("volumes", []):
            assert len(ALLOWED & set(volume)) == 1
        for container in containers(workload):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["runAsNonRoot"] is True
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert "privileged" not in context
            assert all("hostPort" not in port for port in container.get("ports", []))


def test_no_container_writes_anywhere_but_to_its_volumes(overlay: Cluster) -> None:
    for workload in overlay.workloads:
        for container in containers(workload):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            if "taskmem" in container["image"]:
                writable = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
                assert "/tmp" in writable
                home = {variable["name"]: variable.get("value") for variable in container["env"]}["HOME"]
                assert home in writable


def test_no_volume_in_a_node_s_memory_or_disk_is_without_a_limit(overlay: Cluster) -> None:
    for workload in overlay.workloads:
        for volume in pod(workload)["spec"].get("volumes", []):
            if "emptyDir" in volume:
                assert volume["emptyDir"]["sizeLimit"]


def test_every_container_says_what_it_needs_and_whether_it_works(overlay: Cluster) -> None:
    for workload in overlay.workloads:
        for container in containers(workload):
            for side in ("requests", "limits"):
                assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"][side])
            names = {port["name"] for port in container["ports"]}
            assert container["readinessProbe"]["httpGet"]["port"] in names
            assert container["livenessProbe"]["httpGet"]["port"] in names


def test_what_serves_ends_in_order_and_with_time_for_what_is_in_flight(overlay: Cluster) -> None:
    for workload in overlay.workloads:
        spec = pod(workload)["spec"]
        if workload["metadata"]["name"] == "taskmem-pushgateway":
            continue
        assert spec["terminationGracePeriodSeconds"] >= 700
        assert len(spec["topologySpreadConstraints"]) == 2
        for container in spec["containers"]:
            assert container["lifecycle"]["preStop"]["exec"]["command"]
        # a sidecar starts before and ends after the container that needs it
        assert all(container["restartPolicy"] == "Always" for container in spec.get("initContainers", []))


def test_a_role_names_what_it_may_and_no_more(overlay: Cluster) -> None:
    rights = set()
    for role in overlay.of("Role"):
        for rule in role["rules"]:
            assert "*" not in {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}
            names = tuple(rule.get("resourceNames", ()))
            for group in rule["apiGroups"]:
                rights |= {(group, kind, verb, names) for kind in rule["resources"] for verb in rule["verbs"]}
    kinds = {(group, kind) for group, kind, _, _ in rights}
    trainjobs = {verb for group, kind, verb, _ in rights if (group, kind) == ("trainer.kubeflow.org", "trainjobs")}
    assert trainjobs == {"create", "get", "list", "watch", "delete"}
    assert ("", "pods", "list", ()) in rights
    assert ("", "pods/log", "get", ()) in rights
    assert kinds == {
        *(("pipelines.kubeflow.org", kind) for kind in ("pipelines", "pipelines/versions", "experiments", "jobs")),
        *(("trainer.kubeflow.org", "trainjobs"), ("argoproj.io", "workflowtaskresults")),
        *(("", kind) for kind in ("pods", "pods/log", "configmaps", "secrets")),
    }
    # nobody may read a secret or a ConfigMap but by its name, or change anything but TrainJobs and Argo's results
    assert all(names for _, kind, _, names in rights if kind in ("secrets", "configmaps"))
    assert {verb for group, _, verb, _ in rights if group == ""} <= {"get", "list", "watch"}


def test_a_policy_scanner_finds_nothing_that_is_not_explained(tmp_path: Path) -> None:
    for place in PLACES:
        (tmp_path / f"{place.replace('/', '-')}.yaml").write_text(rendered(place), encoding="utf-8")
    command = [tool("checkov"), "--skip-download", "--framework", "kubernetes", "--compact", "--output", "json"]
    done = subprocess.run([*command, "--directory", str(tmp_path)], capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    assert report["results"]["parsing_errors"] == []
    assert report["results"]["failed_checks"] == []
    assert done.returncode == 0
    assert report["summary"]["passed"] > 600
    skipped = [
        (check["check_id"], check["check_result"]["suppress_comment"]) for check in report["results"]["skipped_checks"]
    ]
    assert {check for check, _ in skipped} == {"CKV_K8S_35", "CKV_K8S_40"}
    assert all(len(reason) > 20 for _, reason in skipped)


def test_no_secret_stands_in_a_manifest() -> None:
    for path in files():
        for document in documents(path.read_text(encoding="utf-8")):
            assert document["kind"] != "Secret", path
