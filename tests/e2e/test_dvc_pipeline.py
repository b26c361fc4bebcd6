"""dvc.yaml as a DVC user meets it: repro, status, one changed event, experiments, metrics and plots."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc_project import LOCK, ROOT, Project, environment_of_dvc, ran, read
from small_loop import COMMAND, Run, environment
from warm_commands import warm_commands

from taskmem.backends import backends_for
from taskmem.config import load_profile
from taskmem.lineage.outcome import OUTCOMES
from taskmem.records import FeedbackEvent, read_records, write_records
from taskmem.stages.gating import GateInputs, gate_shard
from taskmem.stages.shard import EnvironmentSpec, Shard

ENVIRONMENT = "object"
TYPES = ("door", "figure", "lamps", "object", "room")
ARMS = ("base", "phase_one", "phase_two")
MEASURES = ("accuracy", "coverage", "precision")
UP_TO_DATE = "Data and pipelines are up to date.\n"
# with two steps of a small profile these may come out as before, and DVC then lets their consumers be
MAY_BE_EQUAL = {"results"}
LOOPS = {
    "data/world": "world",
    "data/segments": "segments",
    "data/phase_one": "phase_one",
    "data/deployment": "deployment",
    "data/rollouts": "rollouts",
    "data/judgements": "judgements",
    "data/preferences": "preferences/phase_two",
    "data/adapter": "adapters/phase_two/adapter",
    "data/evaluation/champion": "development",
    "data/evaluation/base": "arms/base",
    "data/evaluation/phase_one": "arms/phase_one",
    "data/evaluation/phase_two": "arms/phase_two",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, profile: Path) -> Iterator[Project]:
    """A clone after its first `dvc repro`, whose dvc.lock is committed."""
    variables = environment_of_dvc(tmp_path_factory.mktemp("aside"))
    with tempfile.TemporaryDirectory() as short, warm_commands(Path(short), variables) as warm:
        cloned = Project.clone(tmp_path_factory.mktemp("dvc") / "clone", str(profile), warm)
        assert set(cloned.repro()) == set(cloned.stages())
        assert cloned.git("status", "--porcelain") == f"?? {LOCK}\n"
        cloned.commit()
        yield cloned


@pytest.fixture
def changed(project: Project, tmp_path: Path) -> Project:
    """A copy that a test may change."""
    return project.copy(tmp_path / "copy")


def log(project: Project, environment: str) -> Path:
    return project.root / "data" / "deployment" / "events" / f"{environment}.jsonl"


def withdraw(path: Path) -> None:
    """One person takes their consent back: one changed event of a log."""
    first, *others = read_records(path, FeedbackEvent)
    path.unlink()
    write_records(path, [first.model_copy(update={"consent": False}), *others])


def test_after_repro_status_is_clean_and_git_has_nothing_to_say(project: Project) -> None:
    assert project.dvc("status") == UP_TO_DATE
    assert project.json("status") == {}
    assert project.git("status", "--porcelain") == ""


def test_repro_again_does_nothing(project: Project) -> None:
    before = (project.root / LOCK).read_bytes()
    assert project.repro() == []
    assert (project.root / LOCK).read_bytes() == before


def test_it_makes_what_the_loop_makes_byte_for_byte(project: Project, finished: Run) -> None:
    for ours, theirs in LOOPS.items():
        made = read(project.root / ours)
        assert made, ours
        assert made == read(finished.out / theirs), ours
    questions = f"questions/{ENVIRONMENT}.jsonl"
    assert read(project.root / "data/feedback")[questions] == read(finished.out / "feedback")[questions]


def test_the_verdict_is_that_of_the_pipeline_s_gate(project: Project, tmp_path: Path, profile: Path) -> None:
    data = project.root / "data"
    shard = Shard(name="one", environments=[EnvironmentSpec(environment=ENVIRONMENT, adapter="adapter")])
    ready = {"environment": ENVIRONMENT, "name": "adapter", "stage": "phase_two_dpo", "status": "ready", "reason": ""}
    for kind, folder in (("adapters", "adapter"), ("feedback", "feedback")):
        shutil.copytree(data / folder, tmp_path / kind / "adapter")
        (tmp_path / kind / OUTCOMES).write_text(json.dumps(ready) + "\n")
    inputs = GateInputs(
        adapters=tmp_path / "adapters",
        policy=data / "phase_one" / "policy",
        evaluation=data / "evaluation" / "champion",
        segments=data / "segments" / "development",
        questions=data / "world" / "development" / "questions.jsonl",
        feedback=tmp_path / "feedback",
    )
    settings = load_profile(str(profile))
    ends = backends_for(settings, data / "world" / "development")
    gate_shard(shard, inputs, str(tmp_path / "store"), ends, settings, 0, tmp_path / "verdicts")
    theirs = read(tmp_path / "verdicts" / "adapter")
    del theirs["held.json"]  # about the store, of which the command knows nothing
    assert read(data / "verdict") == theirs


def test_one_changed_feedback_event_reruns_exactly_what_stands_on_it(changed: Project) -> None:
    withdraw(log(changed, "door"))
    changed.dvc("commit", "--force", "deployment")
    # another environment's event is none of this one's
    assert changed.repro() == []
    withdraw(log(changed, ENVIRONMENT))
    changed.dvc("commit", "--force", "deployment")
    assert set(changed.json("status")) == {"collect"}
    assert {*changed.repro(), *MAY_BE_EQUAL} == changed.downstream("collect")
    assert changed.dvc("status") == UP_TO_DATE


def test_an_event_that_was_edited_and_not_committed_is_put_back_as_it_was(changed: Project) -> None:
    was = log(changed, ENVIRONMENT).read_bytes()
    withdraw(log(changed, ENVIRONMENT))
    # DVC has what the deployment wrote, and need not run it
    assert changed.repro() == []
    assert log(changed, ENVIRONMENT).read_bytes() == was


@pytest.fixture(scope="module")
def tried(project: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, list[str]]:
    """A copy after an experiment, and the stages that ran for it."""
    copy = project.copy(tmp_path_factory.mktemp("tried") / "copy")
    # 1e-05, as DVC writes it, is no number to every reader of YAML
    settings = ("environment=door", "profile.phase_two.steps=3", "profile.phase_two.learning_rate=1e-5")
    options = [word for setting in settings for word in ("-S", setting)]
    return copy, ran(copy.dvc("exp", "run", "--name", "doors", *options))


def test_an_experiment_reruns_what_uses_its_settings(tried: tuple[Project, list[str]]) -> None:
    project, did = tried
    assert set(did) == project.downstream("collect")
    training = json.loads((project.root / "data/adapter/training.json").read_text())
    assert [step["step"] for step in training["steps"]] == [1, 2, 3]
    assert project.dvc("status") == UP_TO_DATE
    assert project.git("status", "--porcelain").split() == ["M", LOCK, "M", "params.yaml"]


def test_params_diff_and_exp_show_say_what_it_changed(tried: tuple[Project, list[str]]) -> None:
    project, _ = tried
    differences = project.json("params", "diff")["params.yaml"]
    assert {name: (told["old"], told["new"]) for name, told in differences.items()} == {
        "environment": (ENVIRONMENT, "door"),
        "profile.phase_two.learning_rate": (0.003, 1e-5),
        "profile.phase_two.steps": (2, 3),
    }
    (_, baseline) = project.json("exp", "show")
    (experiment,) = baseline["experiments"]
    (revision,) = experiment["revs"]
    settings = revision["data"]["params"]["params.yaml"]["data"]
    tried_with = (settings["environment"], settings["profile"]["phase_two"]["steps"])
    assert (experiment["name"], *tried_with) == ("doors", "door", 3)


def test_metrics_are_the_evaluations_own_numbers(tried: tuple[Project, list[str]]) -> None:
    project, _ = tried
    shown = {path: told["data"] for path, told in project.json("metrics", "show")[""]["data"].items()}
    for arm in ARMS:
        summary = json.loads((project.root / f"data/evaluation/{arm}/summary.json").read_text())
        overall, on_task = ({m: part[m] for m in MEASURES} for part in (summary["overall"], summary["by_type"]["door"]))
        rates = {rate: summary[rate] for rate in ("format_rate", "wrong_fact_rate")}
        assert shown[f"data/results/{arm}.json"] == {**overall, "on_task": on_task, **rates}
    verdict = json.loads((project.root / "data/verdict/verdict.json").read_text())
    gate = shown["data/results/gate.json"]
    assert (gate["promote"], gate["ties"]) == (verdict["promote"], verdict["win_test"]["ties"])


def test_metrics_diff_compares_two_states(tried: tuple[Project, list[str]]) -> None:
    project, _ = tried
    differences = project.json("metrics", "diff")["data/results/base.json"]
    # the base is as good as before; its questions about doors are others than those about objects
    assert {name.split(".")[0] for name in differences} == {"on_task"}


def test_plots_name_their_axes_and_lay_two_states_side_by_side(tried: tuple[Project, list[str]]) -> None:
    project, _ = tried
    assert "file://" in project.dvc("plots", "diff")
    page = (project.root / "data" / "plots" / "index.html").read_text()
    told = project.json("plots", "diff", "HEAD", "workspace")["data"]
    drawn = {name: plots[0]["content"] for name, plots in told.items()}
    axes = {name: (plot["encoding"]["x"]["title"], plot["encoding"]["y"]["title"]) for name, plot in drawn.items()}
    assert axes == {
        "Phase One, reward": ("step", "reward"),
        "Phase Two, loss": ("step", "loss"),
        "Phase Two, win rate": ("step", "win rate"),
        "Accuracy by question type": ("accuracy", "question type"),
    }
    for name, plot in drawn.items():
        fields = {plot["encoding"][axis]["field"] for axis in "xy"}
        assert all(fields <= set(point) for point in plot["data"]["values"]), name
        assert plot["title"]["text"] in page
    steps = sorted((point["rev"], point["step"]) for point in drawn["Phase Two, loss"]["data"]["values"])
    assert steps == [("HEAD", 1), ("HEAD", 2), ("workspace", 1), ("workspace", 2), ("workspace", 3)]
    bars = drawn["Accuracy by question type"]["data"]["values"]
    assert {(bar["filename"], bar["type"]) for bar in bars} == {(f"{arm}.json", kind) for arm in ARMS for kind in TYPES}


@pytest.mark.parametrize("name", ["taskmem/profiles/miniature.yaml", "requirements.lock"])
def test_another_shipped_profile_and_other_code_make_every_stage_stale(changed: Project, name: str) -> None:
    with (changed.root / name).open("a") as file:
        file.write("# another\n")
    assert set(changed.json("status")) == set(changed.stages())


def test_what_python_leaves_beside_the_code_makes_none_stale(changed: Project) -> None:
    compiled = changed.root / "taskmem" / "__pycache__" / "cli.cpython-311.pyc"
    compiled.parent.mkdir()
    compiled.touch()
    assert changed.dvc("status") == UP_TO_DATE


@pytest.mark.slow
def test_the_miniature_s_adapter_verdict_and_accuracies_are_the_demo_s(tmp_path: Path) -> None:
    project = Project.clone(tmp_path / "clone", "miniature", environment_of_dvc(tmp_path / "aside"))
    # as it is shipped, to the byte
    shutil.copyfile(ROOT / "params.yaml", project.root / "params.yaml")
    assert set(project.repro()) == set(project.stages())
    demonstrated(project, tmp_path / "demo", "miniature")


def demonstrated(project: Project, demo: Path, profile: str) -> None:
    """The demo with this profile has the numbers and the bytes of the project."""
    done = subprocess.run(
        [COMMAND, "demo", "--seed", "0", "--profile", profile, "--out", demo], env=environment(), check=False
    )
    assert done.returncode == 0
    results = json.loads((demo / "results.json").read_text())
    assert results["task"] == ENVIRONMENT
    for arm in ARMS:
        metrics = json.loads((project.root / f"data/results/{arm}.json").read_text())
        for part, measured in (("overall", metrics), ("on_task", metrics["on_task"])):
            assert {m: measured[m] for m in MEASURES} == {m: results["arms"][arm][part][m] for m in MEASURES}
    for ours in ("data/adapter/adapter_model.safetensors", "data/verdict/verdict.json"):
        made = (project.root / ours).read_bytes()
        assert made in {path.read_bytes() for path in demo.rglob(Path(ours).name)}, ours
