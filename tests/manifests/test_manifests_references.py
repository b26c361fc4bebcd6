"""What one manifest names, another one has."""

import re

import pytest
from manifest_parts import MANIFESTS, ROOT, Cluster, Document, containers, documents, files, pod, ports, rendered

from components.images import REGISTRY
from components.placement import USER
from taskmem.config import load_profile
from taskmem.gateway.settings import GatewaySettings
from taskmem.service.running import LAST_SECONDS

pytestmark = pytest.mark.system


def namespace(document: Document) -> str:
    found: str = document["metadata"]["namespace"]
    return found


def references(workload: Document, kind: str) -> set[tuple[str, str]]:
    """(name, key) of every ConfigMap ("configMapKeyRef") or Secret ("secretKeyRef") that a workload's variables come from."""
    variables = [variable for c in containers(workload) for variable in c.get("env", [])]
    found = [variable["valueFrom"][kind] for variable in variables if kind in variable.get("valueFrom", {})]
    return {(reference["name"], reference["key"]) for reference in found}


def test_there_are_the_workloads_that_are_looked_at(overlay: Cluster) -> None:
    names = {workload["metadata"]["name"] for workload in overlay.workloads}
    assert names == {"taskmem-policy", "taskmem-agent", "taskmem-pushgateway"}


def test_every_namespace_is_there(overlay: Cluster) -> None:
    made = {document["metadata"]["name"] for document in overlay.of("Namespace")}
    assert {document["metadata"].get("namespace") for document in overlay.documents} - {None} == made


def test_nothing_is_there_twice(overlay: Cluster) -> None:
    keys = [Cluster.key(document) for document in overlay.documents]
    assert sorted(set(keys)) == sorted(keys)


def test_a_service_reaches_pods_on_ports_that_they_have(overlay: Cluster) -> None:
    seen = 0
    for service in overlay.of("Service"):
        if service["spec"].get("type") == "ExternalName":
            continue
        (workload,) = overlay.chosen({"matchLabels": service["spec"]["selector"]}, namespace(service))
        for port in service["spec"]["ports"]:
            assert ports(workload)[port["targetPort"]] == port["port"]
            seen += 1
    assert seen >= 6


def test_a_workload_s_selector_takes_its_own_pods(overlay: Cluster) -> None:
    for workload in overlay.workloads:
        assert overlay.chosen(workload["spec"]["selector"], namespace(workload)) == [workload]


def test_a_stateful_set_has_its_service(overlay: Cluster) -> None:
    for workload in overlay.of("StatefulSet"):
        assert overlay.has("Service", workload["spec"]["serviceName"], namespace(workload))


def test_an_autoscaler_has_something_to_scale_which_leaves_it_the_say(overlay: Cluster) -> None:
    scaled = overlay.of("HorizontalPodAutoscaler")
    assert len(scaled) == 2
    for scaler in scaled:
        target = scaler["spec"]["scaleTargetRef"]
        (workload,) = [w for w in overlay.of(target["kind"]) if w["metadata"]["name"] == target["name"]]
        assert workload["apiVersion"] == target["apiVersion"]
        assert namespace(workload) == namespace(scaler)
        assert "replicas" not in workload["spec"]


def test_a_disruption_budget_protects_one_workload_and_lets_a_node_be_emptied(overlay: Cluster) -> None:
    budgets = overlay.of("PodDisruptionBudget")
    assert len(budgets) == 2
    for budget in budgets:
        assert len(overlay.chosen(budget["spec"]["selector"], namespace(budget))) == 1
        assert budget["spec"]["maxUnavailable"] == 1


def test_every_account_is_there_and_one_alone_has_a_token_for_kubernetes(overlay: Cluster) -> None:
    for workload in overlay.workloads:
        spec = pod(workload)["spec"]
        assert overlay.has("ServiceAccount", spec["serviceAccountName"], namespace(workload))
        assert spec["automountServiceAccountToken"] is False
    tokens = {
        account["metadata"]["name"]: account["automountServiceAccountToken"] for account in overlay.of("ServiceAccount")
    }
    assert len(tokens) == 5
    assert [name for name, mounted in tokens.items() if mounted] == ["taskmem-pipelines"]


def test_a_binding_binds_a_role_and_accounts_that_are_there(overlay: Cluster) -> None:
    assert overlay.of("ClusterRole", "ClusterRoleBinding") == []
    for binding in overlay.of("RoleBinding"):
        assert overlay.has("Role", binding["roleRef"]["name"], namespace(binding))
        for subject in binding["subjects"]:
            assert overlay.has(subject["kind"], subject["name"], subject["namespace"])
            assert subject["namespace"] == namespace(binding)


def test_every_setting_is_in_its_config_map(overlay: Cluster) -> None:
    maps = {document["metadata"]["name"]: document["data"] for document in overlay.of("ConfigMap")}
    used = {reference for workload in overlay.workloads for reference in references(workload, "configMapKeyRef")}
    for name, key in used:
        assert maps[name][key]
    (settings,) = [data for name, data in maps.items() if name.startswith("taskmem-settings")]
    assert {key for _, key in used} == set(settings)
    assert load_profile(settings["profile"])


def test_every_secret_is_one_that_the_operations_page_tells_how_to_make(overlay: Cluster) -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    wanted = {reference for workload in overlay.workloads for reference in references(workload, "secretKeyRef")}
    assert wanted
    for name, key in wanted:
        assert re.search(rf"create secret generic {name}\b[^\n]*--from-(literal|file)={key}=", page), (name, key)
    assert overlay.of("Secret") == []


def test_every_variable_of_the_words_is_set(overlay: Cluster) -> None:
    for workload in overlay.workloads:
        for container in containers(workload):
            words = " ".join([*container.get("command", []), *container.get("args", [])])
            assert set(re.findall(r"\$\((\w+)\)", words)) <= {variable["name"] for variable in container.get("env", [])}


def test_every_mount_has_its_volume_and_every_claim_is_there(overlay: Cluster) -> None:
    for workload in overlay.workloads:
        volumes = {volume["name"]: volume for volume in pod(workload)["spec"].get("volumes", [])}
        claimed = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])}
        mounted = {mount["name"] for container in containers(workload) for mount in container["volumeMounts"]}
        assert mounted == set(volumes) | claimed
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert overlay.has("PersistentVolumeClaim", claim["claimName"], namespace(workload))


def test_gateway_and_vllm_see_the_same_adapters_under_the_same_name(overlay: Cluster) -> None:
    (policy,) = [w for w in overlay.workloads if w["metadata"]["name"] == "taskmem-policy"]
    mounts = {c["name"]: {m["name"]: m["mountPath"] for m in c["volumeMounts"]} for c in containers(policy)}
    assert mounts["vllm"]["adapters"] == mounts["gateway"]["adapters"]
    assert f"--adapters={mounts['gateway']['adapters']}" in pod(policy)["spec"]["containers"][0]["args"]


def test_the_image_that_a_response_log_names_is_the_one_that_runs(overlay: Cluster) -> None:
    told = [
        (container["image"], variable["value"])
        for workload in overlay.workloads
        for container in containers(workload)
        for variable in container.get("env", [])
        if variable["name"] == "TASKMEM_IMAGE"
    ]
    assert len(told) == 2
    assert all(image == said for image, said in told)


def test_every_image_is_named_by_digest(overlay: Cluster) -> None:
    images = [container["image"] for workload in overlay.workloads for container in containers(workload)]
    assert len(images) == 4
    for image in images:
        assert re.fullmatch(r"[a-z0-9./-]+@sha256:[0-9a-f]{64}", image)


def test_our_images_are_named_in_one_place_and_as_the_pipelines_name_theirs() -> None:
    (named,) = documents((MANIFESTS / "images" / "kustomization.yaml").read_text(encoding="utf-8"))
    assert [image["name"] for image in named["images"]] == [f"{REGISTRY}/serve", "quay.io/prometheus/pushgateway"]
    for path in files():
        if path.parent.name != "images":
            assert "sha256:" not in path.read_text(encoding="utf-8"), path


def test_a_pod_is_added_before_a_gateway_has_no_place_left(overlay: Cluster) -> None:
    (scaler,) = [s for s in overlay.of("HorizontalPodAutoscaler") if s["metadata"]["name"] == "taskmem-policy"]
    targets = {
        metric["pods"]["metric"]["name"]: int(metric["pods"]["target"]["averageValue"])
        for metric in scaler["spec"]["metrics"]
    }
    settings = GatewaySettings()
    assert 0 < targets["taskmem_gateway_in_flight"] < settings.in_flight
    assert 0 < targets["taskmem_gateway_waiting"] < settings.waiting


def test_a_pod_that_stops_may_take_as_long_as_the_longest_reply(overlay: Cluster) -> None:
    longest = {
        "taskmem-policy": GatewaySettings().reply_seconds,
        "taskmem-agent": load_profile("qwen3-vl-30b").calls.policy.reply_seconds,
    }
    for workload in overlay.workloads:
        if seconds := longest.get(workload["metadata"]["name"]):
            assert pod(workload)["spec"]["terminationGracePeriodSeconds"] >= seconds + 10 + LAST_SECONDS


def test_ours_run_as_the_user_that_the_images_are_built_for(overlay: Cluster) -> None:
    for workload in overlay.workloads:
        context = pod(workload)["spec"]["securityContext"]
        if any("taskmem" in container["image"] for container in containers(workload)):
            assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (USER, USER, USER)


def test_the_queues_of_the_profile_s_stages_are_there_with_their_quotas(overlay: Cluster) -> None:
    stages = load_profile("qwen3-vl-30b").cluster.stages.values()
    wanted = {stage.labels["kueue.x-k8s.io/queue-name"] for stage in stages}
    queues = {queue["metadata"]["name"]: queue for queue in overlay.of("LocalQueue")}
    cluster = Cluster(documents(rendered("cluster")))
    assert set(queues) == wanted
    for queue in queues.values():
        (quota,) = [d for d in cluster.of("ClusterQueue") if d["metadata"]["name"] == queue["spec"]["clusterQueue"]]
        (allowed,) = quota["spec"]["namespaceSelector"]["matchExpressions"]
        assert namespace(queue) in allowed["values"]
        for group in quota["spec"]["resourceGroups"]:
            for flavor in group["flavors"]:
                assert cluster.has("ResourceFlavor", flavor["name"], "")
                assert [resource["name"] for resource in flavor["resources"]] == group["coveredResources"]


def test_the_priority_that_pods_ask_for_is_among_what_the_administrator_applies(overlay: Cluster) -> None:
    cluster = Cluster(documents(rendered("cluster")))
    named = {pod(w)["spec"]["priorityClassName"] for w in overlay.workloads if "priorityClassName" in pod(w)["spec"]}
    assert named == {"taskmem-serving"}
    assert all(cluster.has("PriorityClass", name, "") for name in named)


def test_what_the_profile_asks_by_name_answers_in_the_pipelines_namespace(overlay: Cluster) -> None:
    calls = load_profile("qwen3-vl-30b").calls
    hosts = {str(role.base_url).split("//")[1].split(":")[0] for role in (calls.policy, *calls.roles.values())}
    pipelines = {namespace(queue) for queue in overlay.of("LocalQueue")}
    for host in hosts:
        for place in pipelines:
            assert overlay.has("Service", host, place)


def test_the_policy_of_the_pipelines_is_the_one_that_is_served(overlay: Cluster) -> None:
    outside = [service for service in overlay.of("Service") if service["spec"].get("type") == "ExternalName"]
    (alias,) = [service for service in outside if service["metadata"]["name"] == "taskmem-policy"]
    name, place, *_ = alias["spec"]["externalName"].split(".")
    assert overlay.has("Service", name, place)


def test_an_ingress_opens_v1_alone_on_ports_that_are_there(overlay: Cluster) -> None:
    for ingress in overlay.of("Ingress"):
        hosts = {host for tls in ingress["spec"]["tls"] for host in tls["hosts"]}
        for rule in ingress["spec"]["rules"]:
            assert rule["host"] in hosts
            for path in rule["http"]["paths"]:
                assert (path["path"], path["pathType"]) == ("/v1", "Prefix")
                wanted = path["backend"]["service"]
                (service,) = [s for s in overlay.of("Service") if s["metadata"]["name"] == wanted["name"]]
                assert wanted["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}


def test_a_service_monitor_scrapes_one_service_on_a_port_that_it_has(overlay: Cluster) -> None:
    monitors = overlay.of("ServiceMonitor")
    assert len(monitors) == 4
    for monitor in monitors:
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        own = [service for service in overlay.of("Service") if namespace(service) == namespace(monitor)]
        (service,) = [s for s in own if wanted <= s["metadata"].get("labels", {}).items()]
        for endpoint in monitor["spec"]["endpoints"]:
            assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
        # the alerts know a service by its job
        assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == service["metadata"]["name"]
