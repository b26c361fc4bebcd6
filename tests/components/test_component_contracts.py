"""Every component: one folder, one call into taskmem.entry with its own inputs and outputs, its metrics recorded, no logic."""

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from kfp.dsl import HTML, Dataset, Markdown, Metrics, Model, PipelineTaskFinalStatus
from kfp.dsl.python_component import PythonComponent
from kfp.dsl.types.type_annotations import InputAnnotation, OutputAnnotation

from taskmem import entry
from taskmem.cluster import STAGES

ROOT = Path(__file__).parents[2]
COMPONENTS = ROOT / "components"
FOLDERS = sorted((*STAGES, "world_render"))
SAID = {"failed": 2.0, "unscored": 3.0, "environments": 4.0}
"""What a stage returns here: numbers to be recorded."""


def source(folder: str) -> ast.Module:
    return ast.parse((COMPONENTS / folder / "component.py").read_text(encoding="utf-8"))


def functions(folder: str) -> list[ast.FunctionDef]:
    return [node for node in source(folder).body if isinstance(node, ast.FunctionDef)]


EACH = [(folder, function.name) for folder in FOLDERS for function in functions(folder)]
ENTRIES = {name: inspect.signature(getattr(entry, name)) for _, name in EACH}
each_folder = pytest.mark.parametrize("folder", FOLDERS)
each_component = pytest.mark.parametrize(("folder", "name"), EACH, ids=[name for _, name in EACH])


def node_of(folder: str, name: str) -> ast.FunctionDef:
    (found,) = [function for function in functions(folder) if function.name == name]
    return found


def component_of(folder: str, name: str) -> PythonComponent:
    component = getattr(importlib.import_module(f"components.{folder}.component"), name)
    assert isinstance(component, PythonComponent)
    return component


def parameters(folder: str, name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(component_of(folder, name).python_func).parameters


def artifact_types(annotation: Any, direction: type) -> list[type]:
    """The type, in a list or not, of an artifact parameter of that direction; none for any other parameter."""
    if direction not in getattr(annotation, "__metadata__", ()):
        return []
    kind = get_args(annotation)[0]
    return list(get_args(kind)) if get_origin(kind) is list else [kind]


def words(folder: str, name: str) -> Iterator[str]:
    """Every text in a component's body but its docstring."""
    for statement in node_of(folder, name).body[1:]:
        for node in ast.walk(statement):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def given_to(folder: str, name: str, *, optional: bool) -> dict[str, Any]:
    """An argument of its own for every parameter; those with a default only if `optional`."""
    arguments: dict[str, Any] = {}
    for key, parameter in parameters(folder, name).items():
        if parameter.default is not inspect.Parameter.empty and not optional:
            continue
        made = artifact_types(parameter.annotation, OutputAnnotation)
        taken = artifact_types(parameter.annotation, InputAnnotation)
        if made:
            arguments[key] = made[0](name=key, uri=f"/{key}")
        elif not taken:
            item = {"name": f"the {key}"}
            ended = PipelineTaskFinalStatus("the state", "the job", "the task", None, None)
            kinds = {str: f"the {key}", int: 7, dict: item, list: [item], PipelineTaskFinalStatus: ended}
            arguments[key] = kinds[parameter.annotation]
        elif get_origin(get_args(parameter.annotation)[0]) is list:
            arguments[key] = [taken[0](name=key, uri=f"/{key}/{n}", metadata={"arm": f"{key} {n}"}) for n in range(2)]
        else:
            arguments[key] = taken[0](name=key, uri=f"/{key}", metadata={"arm": key})
    return arguments


def passed_on(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same as an entry function takes them: artifacts as paths."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        return getattr(value, "path", value)

    return {key: plain(value) for key, value in arguments.items()}


# where an entry function takes several artifacts of a component as one mapping, or of a status what it says
GATHERED: dict[tuple[str, str], Callable[[dict[str, Any]], dict[str, Any]]] = {
    ("world_render", "splits"): lambda at: {
        split: at[split] for split in ("phase_one", "deployment", "development", "held_out")
    },
    ("lineage_record", "used"): lambda at: {
        name: at[name] if isinstance(at[name], list) else [at[name]]
        for name, parameter in parameters("lineage_record", "lineage_record").items()
        if artifact_types(parameter.annotation, InputAnnotation) and name not in ("events", "outcomes")
    },
    ("notify", "state"): lambda at: at["status"].state,
    ("results_report", "arms"): lambda at: {
        **{name: at[name] for name in ("base_arm", "prompted_arm", "policy_arm")},
        **{f"adapted_arms {n}": path for n, path in enumerate(at["adapted_arms"])},
    },
}


def call(
    monkeypatch: pytest.MonkeyPatch, folder: str, name: str, arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], Any]:
    """Run a component's body: what its entry function was called with, by the names of its parameters, and what came back."""
    called: list[dict[str, Any]] = []

    def recorded(*positional: Any, **named: Any) -> Any:
        called.append(dict(ENTRIES[name].bind(*positional, **named).arguments))
        return dict(SAID)

    monkeypatch.setattr(entry, name, recorded)
    returned = component_of(folder, name).python_func(**arguments)
    (bound,) = called
    return bound, returned


def test_there_is_one_folder_for_each_stage_and_one_for_the_world() -> None:
    assert sorted(path.parent.name for path in COMPONENTS.rglob("component.py")) == FOLDERS
    assert len(FOLDERS) == 12


@each_folder
def test_a_folder_has_a_package_a_component_and_its_metadata(folder: str) -> None:
    files = {path.name for path in (COMPONENTS / folder).iterdir() if path.is_file()}
    assert files >= {"__init__.py", "component.py", "metadata.yaml"}
    assert ast.get_docstring(ast.parse((COMPONENTS / folder / "__init__.py").read_text(encoding="utf-8")))
    assert folder in [function.name for function in functions(folder)]


@each_folder
def test_the_metadata_is_as_kubeflow_s_catalogue_wants_it(folder: str) -> None:
    metadata = yaml.safe_load((COMPONENTS / folder / "metadata.yaml").read_text(encoding="utf-8"))
    assert set(metadata) - {"links"} == {"name", "stability", "dependencies", "tags", "lastVerified", "ci"}
    assert metadata["name"] == folder
    assert metadata["stability"] in ("experimental", "alpha", "beta", "stable")
    assert {"name": "Pipelines", "version": ">=2.17.0"} in metadata["dependencies"]["kubeflow"]
    assert isinstance(metadata["lastVerified"], datetime)
    assert metadata["lastVerified"] <= datetime.now(UTC)
    assert metadata["tags"]
    assert all(isinstance(tag, str) for tag in metadata["tags"])
    assert metadata["ci"] == {"skip_dependency_probe": True}
    for link in metadata.get("links", {}).values():
        assert link.startswith("https://") or (COMPONENTS / folder / link).is_file()


@each_folder
def test_a_module_holds_documented_components_and_nothing_else(folder: str) -> None:
    module = source(folder)
    assert ast.get_docstring(module)
    docstring, *rest = module.body
    assert isinstance(docstring, ast.Expr)
    imported = {node.module for node in rest if isinstance(node, ast.ImportFrom)}
    assert imported <= {"typing", "kfp.dsl", "components.base"}
    for node in rest:
        assert isinstance(node, (ast.ImportFrom, ast.FunctionDef)), ast.unparse(node)
    for function in functions(folder):
        assert [ast.unparse(decorator) for decorator in function.decorator_list] == ["component"]
        assert ast.get_docstring(function)


@each_component
def test_a_body_imports_one_name_from_the_entries_and_nothing_else(folder: str, name: str) -> None:
    function = node_of(folder, name)
    imports = [node for node in ast.walk(function) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [ast.unparse(node) for node in imports] == [f"from taskmem.entry import {name} as stage"]
    assert function.body[1] is imports[0]
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    assert sum(ast.unparse(call.func) == "stage" for call in calls) == 1


@each_component
def test_a_body_has_no_logic_of_its_own(folder: str, name: str) -> None:
    branching = (ast.If, ast.While, ast.Try, ast.With, ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.Raise, ast.BinOp)
    for statement in node_of(folder, name).body:
        assert not [node for node in ast.walk(statement) if isinstance(node, branching)], ast.unparse(statement)


@each_component
def test_a_component_knows_no_path_but_those_of_its_artifacts(folder: str, name: str) -> None:
    assert [word for word in words(folder, name) if not word.isidentifier()] == []
    texts = {key for key, parameter in parameters(folder, name).items() if parameter.annotation is str}
    # a subfolder of an artifact, a URL, JSON, and a name
    texts -= {"folder", "parts", "store", "lineage", "remote", "pushgateway", "profile", "task", "run", "job"}
    assert texts == set()


@each_component
def test_what_a_component_takes_and_makes_is_typed(folder: str, name: str) -> None:
    for key, parameter in parameters(folder, name).items():
        made = artifact_types(parameter.annotation, OutputAnnotation)
        taken = artifact_types(parameter.annotation, InputAnnotation)
        assert set(made) <= {Dataset, Model, Metrics, HTML, Markdown}, key
        assert set(taken) <= {Dataset, Model}, key
        assert made or taken or parameter.annotation in (str, int, dict, list, PipelineTaskFinalStatus), key
        assert parameter.default is inspect.Parameter.empty or (taken and parameter.default is None), key
    assert component_of(folder, name).component_spec.outputs


@pytest.mark.parametrize("optional", [True, False], ids=["all given", "only what it needs"])
@each_component
def test_every_input_and_output_reaches_its_own_parameter_of_the_entry(
    monkeypatch: pytest.MonkeyPatch, folder: str, name: str, optional: bool
) -> None:
    arguments = given_to(folder, name, optional=optional)
    bound, _ = call(monkeypatch, folder, name, arguments)
    at = passed_on(arguments)
    wanted = {
        key: GATHERED[name, key](at) if (name, key) in GATHERED else at.get(key) for key in ENTRIES[name].parameters
    }
    assert bound == wanted


@each_component
def test_the_entry_allows_none_exactly_for_what_need_not_be_given(folder: str, name: str) -> None:
    optional = {
        key for key, parameter in parameters(folder, name).items() if parameter.default is not inspect.Parameter.empty
    }
    taken = ENTRIES[name].parameters
    assert {key for key, parameter in taken.items() if type(None) in get_args(parameter.annotation)} == optional


@each_component
def test_the_numbers_of_the_entry_become_metrics(monkeypatch: pytest.MonkeyPatch, folder: str, name: str) -> None:
    arguments = given_to(folder, name, optional=True)
    _, returned = call(monkeypatch, folder, name, arguments)
    numbers = ENTRIES[name].return_annotation == entry.Numbers
    metrics = [value for value in arguments.values() if isinstance(value, Metrics)]
    assert [dict(metric.metadata) for metric in metrics] == ([SAID] if numbers else [])
    # what is no number is a parameter of the pipeline
    assert returned == (SAID if name == "choose_tasks" else None)


@each_component
def test_what_is_made_in_parts_says_how_many_of_them_failed(
    monkeypatch: pytest.MonkeyPatch, folder: str, name: str
) -> None:
    arguments = given_to(folder, name, optional=True)
    call(monkeypatch, folder, name, arguments)
    outputs = [
        value
        for key, value in arguments.items()
        if artifact_types(parameters(folder, name)[key].annotation, OutputAnnotation) and not isinstance(value, Metrics)
    ]
    # the environments of a shard, and candidates; an evaluation is of one arm, and fails as a whole
    sharded = "shard" in arguments and name != "streaming_eval"
    failed = SAID["failed"] if sharded else SAID["unscored"] if name == "judge_scoring" else None
    assert [value.metadata.get("failed") for value in outputs] == [failed] * len(outputs)


def test_an_evaluation_bears_the_name_of_its_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = given_to("streaming_eval", "streaming_eval", optional=False)
    call(monkeypatch, "streaming_eval", "streaming_eval", arguments)
    assert arguments["evaluation"].metadata == {"arm": "the shard"}
