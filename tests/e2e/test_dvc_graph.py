"""dvc.yaml against what it describes: the pipeline's graph, and what each stage really reads."""

import contextlib
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from dvc.dependency.param import ParamsDependency
from dvc.utils.hydra import apply_overrides
from dvc_project import ROOT, Project, environment_of_dvc, params
from kfp import compiler

from components.images import Images
from pipelines.cli import app
from pipelines.end_to_end import end_to_end
from pipelines.parts import Placement
from taskmem import cluster, config
from taskmem.config import Profile, load_profile
from taskmem.settings import Settings

# what the pipeline calls a stage, and what dvc.yaml does
STAGES = {
    "world": "world",
    **{f"segments {split}": f"segment@{split}" for split in ("phase_one", "deployment", "development", "held_out")},
    "phase_one_gspo": "phase_one",
    "deployment": "deployment",
    "rollout_cache": "rollouts",
    "judge_scoring": "score",
    "collect": "collect",
    "mine": "mine",
    "adapt": "phase_two",
    "development": "evaluate@champion",
    "evaluate base": "evaluate@base",
    "evaluate phase_one": "evaluate@phase_one",
    "evaluate": "evaluate_phase_two",
    "gate": "gate",
}
# the environment is a parameter; the prompted arm is the demonstration's; promotion and record belong to registry and lineage
LEFT_OUT = {"choose the task", "feedback_collection", "evaluate task_prompt", "promote", "report", "lineage_record"}
ONLY_HERE = {"results"}
BASE = ("importer", "artifact")
OUTPUTS = {
    "data/phase_one/policy": "policy",
    "data/deployment/events": "events",
    "data/rollouts": "rollouts",
    "data/judgements": "judgements",
    "data/feedback": "feedback",
    "data/preferences": "preferences",
    "data/adapter": "adapters",
    "data/evaluation": "evaluation",
}
CODE = {"taskmem", "requirements.lock"}
Edge = tuple[str, str, str]
"""Who makes it, what, and who takes it."""
Document = dict[str, Any]


@dataclass(frozen=True)
class Scope:
    """One graph of the IR, and the task of the graph around it that it is the inside of."""

    spec: Document
    component: Document
    around: "Scope | None" = None
    task: Document | None = None

    def edges(self) -> Iterator[Edge]:
        for task in self.component["dag"]["tasks"].values():
            inner = self.spec["components"][task["componentRef"]["name"]]
            if "dag" in inner:
                yield from Scope(self.spec, inner, self, task).edges()
                continue
            for given in task.get("inputs", {}).get("artifacts", {}).values():
                yield (*self._source(given), task["taskInfo"]["name"])

    def names(self) -> Iterator[str]:
        """The tasks that run something, here and inside."""
        for task in self.component["dag"]["tasks"].values():
            inner = self.spec["components"][task["componentRef"]["name"]]
            if "dag" in inner:
                yield from Scope(self.spec, inner, self, task).names()
            elif task["taskInfo"]["name"] != BASE[0]:
                yield task["taskInfo"]["name"]

    def _source(self, given: Document) -> tuple[str, str]:
        if "componentInputArtifact" in given:
            assert self.around is not None
            assert self.task is not None
            return self.around._source(self.task["inputs"]["artifacts"][given["componentInputArtifact"]])
        made = given["taskOutputArtifact"]
        task = self.component["dag"]["tasks"][made["producerTask"]]
        inner = self.spec["components"][task["componentRef"]["name"]]
        if "dag" not in inner:
            return task["taskInfo"]["name"], made["outputArtifactKey"]
        (selector,) = inner["dag"]["outputs"]["artifacts"][made["outputArtifactKey"]]["artifactSelectors"]
        inside = {"producerTask": selector["producerSubtask"], "outputArtifactKey": selector["outputArtifactKey"]}
        return Scope(self.spec, inner, self, task)._source({"taskOutputArtifact": inside})


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Scope:
    """The compiled end_to_end pipeline."""
    path = tmp_path_factory.mktemp("ir") / "end_to_end.yaml"
    images = Images(data=f"localhost/data@sha256:{'d' * 64}", train=f"localhost/train@sha256:{'7' * 64}")
    compiler.Compiler().compile(end_to_end(Placement(load_profile("miniature"), images)), str(path))
    spec = next(yaml.safe_load_all(path.read_text()))
    return Scope(spec, spec["root"])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, profile: Path) -> Project:
    """A clone in which nothing has run."""
    variables = environment_of_dvc(tmp_path_factory.mktemp("aside"))
    return Project.clone(tmp_path_factory.mktemp("dvc") / "clone", str(profile), variables)


def files(stage: Any) -> set[str]:
    """The paths that a stage depends on."""
    return {dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency)}


def declared(stage: Any) -> set[str]:
    """The parameters that a stage depends on."""
    return {name for dep in stage.deps if isinstance(dep, ParamsDependency) for name in dep.params}


def output(path: str) -> str:
    """What the pipeline calls what lies at a path."""
    kind, split = path.split("/")[1:3] if path.count("/") > 1 else (path.split("/")[1], "")
    if kind in ("world", "segments"):
        return split if kind == "world" else "segments"
    return next(name for place, name in OUTPUTS.items() if path == place or path.startswith(f"{place}/"))


def taken(project: Project) -> Iterator[Edge]:
    """The edges of dvc.yaml."""
    stages = project.stages()
    makers = {out.def_path: name for name, stage in stages.items() for out in stage.outs}
    for name, stage in stages.items():
        for path in files(stage) - CODE if name not in ONLY_HERE else ():
            if path == "taskmem/world/base":
                yield (*BASE, name)
                continue
            (maker,) = {maker for out, maker in makers.items() if path == out or path.startswith(f"{out}/")}
            yield maker, output(path), name


def test_every_stage_of_the_pipeline_is_here_or_left_out_on_purpose(pipeline: Scope, project: Project) -> None:
    assert set(pipeline.names()) == set(STAGES) | LEFT_OUT
    assert set(project.stages()) == set(STAGES.values()) | ONLY_HERE


def test_every_stage_takes_what_it_takes_in_the_pipeline(pipeline: Scope, project: Project) -> None:
    named = {**STAGES, BASE[0]: BASE[0]}
    theirs = {(named[maker], what, STAGES[taker]) for maker, what, taker in pipeline.edges() if taker in STAGES}
    assert set(taken(project)) == theirs


def test_the_parameters_are_the_shipped_miniature_s() -> None:
    ours, shipped = load_profile(str(ROOT / "params.yaml")), load_profile("miniature")
    assert ours.model_copy(update={"name": shipped.name}) == shipped
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    # all of them: what is not there could not be tried with -S
    assert document == params(shipped)
    assert document["seed"] == 0


def test_an_experiment_rewrites_no_line_but_the_one_it_sets(tmp_path: Path) -> None:
    before = (ROOT / "params.yaml").read_text().splitlines()
    (tmp_path / "params.yaml").write_text("\n".join(before) + "\n")
    apply_overrides(tmp_path / "params.yaml", ["profile.phase_two.steps=20"])
    after = (tmp_path / "params.yaml").read_text().splitlines()
    assert [(old, new) for old, new in zip(before, after, strict=True) if old != new] == [
        ("    steps: 48", "    steps: 20")
    ]


def sections(kind: type[Settings], path: str) -> Iterator[tuple[type[Settings], str]]:
    """Every group of settings in a profile, and where it stands in params.yaml."""
    yield kind, path
    for name, field in kind.model_fields.items():
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, Settings):
                yield from sections(inner, f"{path}.{name}")


@contextlib.contextmanager
def noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Which single settings are read, other than by the profile's own checks."""
    places, read = dict(sections(Profile, "profile")), set()
    checks = (config.__file__, cluster.__file__)

    def get(settings: Settings, name: str) -> Any:
        value = object.__getattribute__(settings, name)
        kind = type(settings)
        single = kind in places and name in kind.model_fields and not isinstance(value, Settings)
        if single and sys._getframe(1).f_code.co_filename not in checks:
            read.add(f"{places[kind]}.{name}")
        return value

    with monkeypatch.context() as patch:
        patch.setattr(Settings, "__getattribute__", get, raising=False)
        yield read


@pytest.fixture(scope="module")
def used(project: Project, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Run every stage where nothing but what it depends on is there; the settings each read."""
    patch, alone = pytest.MonkeyPatch(), tmp_path_factory.mktemp("alone")
    read = {}
    for name, stage in project.stages().items():
        here = alone / name
        for path in (*files(stage), "params.yaml"):
            (here / path).parent.mkdir(parents=True, exist_ok=True)
            # the whole of taskmem/ may be there already
            if not (here / path).exists():
                (here / path).symlink_to(project.root / path)
        with patch.context() as moved, noted(patch) as settings:
            moved.chdir(here)
            app(shlex.split(stage.cmd)[1:], standalone_mode=False)
        read[name] = set(settings)
        for out in stage.outs:
            (project.root / out.def_path).parent.mkdir(parents=True, exist_ok=True)
            (here / out.def_path).replace(project.root / out.def_path)
    return read


def covered(setting: str, names: set[str]) -> bool:
    return any(setting == name or setting.startswith(f"{name}.") for name in names)


def test_every_stage_runs_where_only_what_it_depends_on_is_there(project: Project, used: dict[str, set[str]]) -> None:
    assert list(used) == list(project.stages())
    outs = [project.root / out.def_path for stage in project.stages().values() for out in stage.outs]
    assert all(any(out.iterdir()) for out in outs)


def test_every_setting_that_a_stage_reads_is_among_its_parameters(project: Project, used: dict[str, set[str]]) -> None:
    for name, stage in project.stages().items():
        assert {setting for setting in used[name] if not covered(setting, declared(stage))} == set(), name


def test_no_stage_has_a_parameter_that_it_does_not_use(project: Project, used: dict[str, set[str]]) -> None:
    for name, stage in project.stages().items():
        settings = declared(stage) - {"seed", "environment"}
        assert {known for known in settings if not any(covered(s, {known}) for s in used[name])} == set(), name


def test_settings_that_several_stages_share_are_parameters_one_by_one(project: Project) -> None:
    named = {name for stage in project.stages().values() for name in declared(stage)}
    assert named.isdisjoint({"profile", "profile.mining", "profile.evaluation"})


def test_seed_and_environment_are_parameters_of_the_stages_that_are_told_them(project: Project) -> None:
    for name, stage in project.stages().items():
        told = set(shlex.split(stage.cmd))
        assert ("seed" in declared(stage)) == ("--seed" in told), name
        assert ("environment" in declared(stage)) == ("object" in stage.cmd), name
