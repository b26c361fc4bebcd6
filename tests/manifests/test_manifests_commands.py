"""The manifests start commands that there are, with options that they have, and alerts name what the services really count."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from manifest_parts import ROOT, Cluster, Document, containers
from prometheus_client import CollectorRegistry
from typer.core import TyperGroup
from typer.exceptions import TyperException

from pipelines.cli import app
from taskmem.agent.metrics import Metrics as AgentMetrics
from taskmem.config import load_profile
from taskmem.gateway.metrics import Metrics as GatewayMetrics
from taskmem.lineage.night import ENDS, Night
from taskmem.stages.notify import outcome, success
from taskmem.vllm_plugin.server import NAME

HERE = Path(__file__).parent


def variables(container: Document) -> dict[str, str]:
    """A container's variables, with something in place of what comes from elsewhere."""
    examples = {"TASKMEM_PROFILE": "miniature", "TASKMEM_DATABASE_URL": "postgresql://user@host/name"}
    return {v["name"]: v.get("value", examples.get(v["name"], "something")) for v in container["env"]}


def expanded(word: str, given: dict[str, str]) -> str:
    """A word with its $(VARIABLES) put in, as Kubernetes does."""
    return re.sub(r"\$\((\w+)\)", lambda found: given[found[1]], word)


def parsed(words: list[str]) -> dict[str, Any]:
    """What the command line makes of these words; an error of code 2 for what it does not take."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("taskmem", list(words))
    while isinstance(command, TyperGroup):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    found: dict[str, Any] = context.params
    return found


@pytest.mark.system
def test_every_service_is_started_with_options_that_its_command_has(
    overlay: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = set()
    for container in (c for workload in overlay.workloads for c in containers(workload)):
        if container.get("command") != ["taskmem"]:
            continue
        with monkeypatch.context() as patched:
            given = variables(container)
            for name, value in given.items():
                patched.setenv(name, value)
            options = parsed([expanded(word, given) for word in container["args"]])
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert options["host"] == "0.0.0.0"
        assert options["port"] == next(iter(ports.values()))
        assert options.get("operations_port") == ports.get("operations")
        started.add(container["args"][1])
    assert started == {"policy", "gateway", "agent"}


@pytest.mark.system
def test_an_option_that_a_command_does_not_have_is_found() -> None:
    words = ["serve", "gateway", "--store=x", "--adapters=y", "--responses=z"]
    assert parsed(words)["store"] == "x"
    with pytest.raises(TyperException, match="--misspelled"):
        parsed([*words, "--misspelled=1"])


def test_the_profile_asks_for_the_policy_under_the_name_that_it_is_served_by() -> None:
    assert load_profile("qwen3-vl-30b").calls.policy.model == NAME


def counted(*registries: CollectorRegistry) -> dict[str, Any]:
    """The metrics of registries as metrics.yaml names them: the labels of each, or that it is a histogram."""
    found: dict[str, Any] = {}
    for registry in registries:
        for family in registry.collect():
            collector = registry._names_to_collectors[family.name]
            name = f"{family.name}_total" if family.type == "counter" else family.name
            found[name] = "histogram" if family.type == "histogram" else list(collector._labelnames)
    return found


def test_the_services_count_what_the_alerts_and_the_dashboard_are_told_of() -> None:
    known = yaml.load((HERE / "metrics.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    gateway = GatewayMetrics()
    assert counted(gateway.registry, gateway.named) == known["gateway"] | known["services"]
    assert counted(AgentMetrics().registry) == known["agent"] | known["services"]


def test_the_nights_tell_what_the_alerts_and_the_dashboard_are_told_of() -> None:
    known = yaml.load((HERE / "metrics.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)["nights"]
    night = Night(outcomes=dict.fromkeys(ENDS, 0), kept_nights=0, unscored=0.0, cost=0.0, budget=1.0)
    # the profile is a label of the group that is pushed
    told = {name: ["profile", *labels] for name, labels in counted(outcome(night), success(0.0)).items()}
    assert told == known


def test_the_commands_of_the_operations_page_are_there() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|  )taskmem ([a-z-]+)(?: ([a-z]+))?", page))
    known: Any = typer.main.get_command(app)
    for first, second in named:
        assert first in known.commands
        if isinstance(known.commands[first], TyperGroup):
            assert second in known.commands[first].commands, first
    assert {first for first, _ in named} == {
        *("audit", "compile", "export", "logs", "registry", "runs", "schedule", "submit", "token"),
    }
