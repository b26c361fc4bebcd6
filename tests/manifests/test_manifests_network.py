"""Who may talk to whom: nothing but what is named, and what is named is there."""

from pathlib import Path

import pytest
import yaml
from manifest_parts import Cluster, Document, ports

from components.images import load_images
from pipelines.compiling import compile_all
from taskmem.config import load_profile

pytestmark = pytest.mark.system
NAMESPACE = "kubernetes.io/metadata.name"
# what runs in clusters that are not ours to make
OTHERS = {"kube-system", "monitoring", "ingress-nginx", "judges"}
STAGE = {"app.kubernetes.io/name": "taskmem", "app.kubernetes.io/part-of": "taskmem"}
NODE = {"app.kubernetes.io/part-of": "taskmem", "app.kubernetes.io/component": "phase_one_gspo"}


def namespace(document: Document) -> str:
    found: str = document["metadata"]["namespace"]
    return found


def name(document: Document) -> str:
    found: str = document["metadata"]["name"]
    return found


def serving(overlay: Cluster) -> str:
    (found,) = {namespace(workload) for workload in overlay.workloads}
    return found


def peers(overlay: Cluster, policy: Document, peer: Document) -> set[str]:
    """Who a peer is: our workloads by name, others by their namespace, addresses as they are."""
    if "ipBlock" in peer:
        return {peer["ipBlock"]["cidr"]}
    place = peer.get("namespaceSelector", {}).get("matchLabels", {}).get(NAMESPACE, namespace(policy))
    if place in OTHERS:
        return {place}
    chosen = {name(workload) for workload in overlay.chosen(peer.get("podSelector", {}), place)}
    if place != serving(overlay):
        # the stages' pods are Kubeflow's to make
        assert peer["podSelector"]["matchLabels"].items() <= STAGE.items()
        chosen.add("stages")
    return chosen


def flows(overlay: Cluster, direction: str) -> set[tuple[str, str, int]]:
    """(caller, called, port) of everything that the policies let in ("ingress") or out ("egress")."""
    found = set()
    for policy in overlay.of("NetworkPolicy"):
        if name(policy) == "taskmem-nodes":
            continue  # no ports: see the test of it
        own = overlay.chosen(policy["spec"]["podSelector"], namespace(policy))
        selected = {name(workload): ports(workload) for workload in own} or {"stages": {}}
        for rule in policy["spec"].get(direction, []):
            for peer in rule["to" if direction == "egress" else "from"]:
                for other in peers(overlay, policy, peer):
                    for me, mine in selected.items():
                        theirs = {n: p for w in overlay.workloads if name(w) == other for n, p in ports(w).items()}
                        served = theirs if direction == "egress" else mine
                        for port in rule["ports"]:
                            number = served.get(port["port"]) if isinstance(port["port"], str) else port["port"]
                            if number:
                                found.add((me, other, number) if direction == "egress" else (other, me, number))
    return found


def test_what_is_not_named_is_denied(overlay: Cluster) -> None:
    (deny,) = [policy for policy in overlay.of("NetworkPolicy") if name(policy) == "default-deny"]
    assert namespace(deny) == serving(overlay)
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_what_comes_in_is_this_and_nothing_else(overlay: Cluster) -> None:
    callers = {
        "taskmem-policy": {
            8100: {"taskmem-agent", "ingress-nginx"},
            # environments' names are not for callers
            8101: {"monitoring"},
            8000: {"stages", "monitoring"},
        },
        "taskmem-agent": {8200: {"ingress-nginx", "monitoring"}},
        "taskmem-pushgateway": {9091: {"stages", "monitoring"}},
    }
    wanted = {(c, called, port) for called, open_ in callers.items() for port, who in open_.items() for c in who}
    assert flows(overlay, "ingress") == wanted


def test_between_ours_what_may_go_out_may_come_in_and_the_other_way_round(overlay: Cluster) -> None:
    ours = {name(workload) for workload in overlay.workloads} | {"stages"}
    out = {flow for flow in flows(overlay, "egress") if flow[1] in ours}
    into = {flow for flow in flows(overlay, "ingress") if flow[0] in ours}
    assert out == into
    assert len(out) == 3


def test_what_goes_out_is_names_store_database_judge_and_gateway(overlay: Cluster) -> None:
    out = flows(overlay, "egress")
    world = "0.0.0.0/0"
    (store,) = {port for me, other, port in out if (me, other) == ("taskmem-policy", world)}
    assert store in (443, 9000)
    assert {flow[1:] for flow in out if flow[0] == "taskmem-policy"} == {
        *(("kube-system", 53), (world, store), ("::/0", store)),
    }
    assert {flow[1:] for flow in out if flow[0] == "taskmem-agent"} == {
        *(("kube-system", 53), (world, store), ("::/0", store), (world, 5432), ("::/0", 5432)),
        *(("taskmem-policy", 8100), ("judges", 8000)),
    }
    assert [flow for flow in out if flow[0] == "taskmem-pushgateway"] == []


def test_nobody_reaches_the_node_s_metadata_service(overlay: Cluster) -> None:
    blocks = [
        peer["ipBlock"]
        for policy in overlay.of("NetworkPolicy")
        for rule in policy["spec"].get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert blocks
    for block in blocks:
        wanted = "169.254.0.0/16" if "." in block["cidr"] else "fd00:ec2::254/128"
        assert wanted in block["except"]


def test_every_policy_is_about_pods_that_there_are(overlay: Cluster) -> None:
    for policy in overlay.of("NetworkPolicy"):
        selector = policy["spec"]["podSelector"]
        if namespace(policy) == serving(overlay):
            assert overlay.chosen(selector, namespace(policy))
        else:
            assert selector["matchLabels"].items() <= (STAGE | NODE).items()


def test_the_nodes_of_a_training_reach_each_other_on_every_port_and_nobody_else(overlay: Cluster) -> None:
    (policy,) = [policy for policy in overlay.of("NetworkPolicy") if name(policy) == "taskmem-nodes"]
    peer = {"podSelector": {"matchLabels": NODE}}
    assert policy["spec"]["podSelector"] == peer["podSelector"]
    assert policy["spec"]["ingress"] == [{"from": [peer]}]
    assert policy["spec"]["egress"] == [{"to": [peer]}]


def test_the_stages_have_the_labels_that_the_policies_know_them_by(tmp_path: Path) -> None:
    compile_all(load_profile("qwen3-vl-30b"), load_images(None), tmp_path)
    _, platform = yaml.load_all((tmp_path / "adaptation.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    assert executors
    for executor in executors:
        assert executor["podMetadata"]["labels"].items() >= STAGE.items()
    text = (tmp_path / "phase_one.yaml").read_text(encoding="utf-8")
    _, platform = yaml.load_all(text, Loader=yaml.CSafeLoader)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    labels = [executor["podMetadata"]["labels"] for executor in executors]
    assert len([found for found in labels if found.items() >= NODE.items()]) == 1
