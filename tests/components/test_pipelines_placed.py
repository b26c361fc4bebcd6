"""Every task of the real pipelines carries what the profile asks for its stage, and none carries another's."""

import ast
from pathlib import Path

import pytest
from pipeline_ir import CompiledPipeline, assert_placed

from components.images import UNPLACED, Images
from pipelines.compiling import PIPELINES, compile_all
from taskmem.cluster import STAGES, ClusterSettings, StageName, StageResources
from taskmem.config import Profile, load_profile

COMPONENTS = Path(__file__).parents[2] / "components"
Tasks = dict[str, tuple[StageName, str]]
"""What a task is called on screen: the stage whose resources it gets, the component that it runs."""

_CANDIDATES: Tasks = {
    "rollout_cache": ("rollout_cache", "rollout_cache"),
    "judge_scoring": ("judge_scoring", "judge_scoring"),
}
_ADAPTED: Tasks = {
    "collect": ("feedback_collection", "feedback_collection"),
    "mine": ("preference_mining", "preference_mining"),
    "adapt": ("phase_two_dpo", "phase_two_dpo"),
    "gate": ("streaming_eval", "gate"),
    "promote": ("deployment", "promotion"),
    "lineage_record": ("lineage_record", "lineage_record"),
}
WANTED: dict[str, Tasks] = {
    "phase_one": {
        **{
            f"segments {split}": ("video_segmentation", "video_segmentation")
            for split in ("train", "development", "deployed", "held_out")
        },
        "phase_one_gspo": ("phase_one_gspo", "phase_one_gspo"),
        **_CANDIDATES,
        "deployment": ("deployment", "deployment"),
        "streaming_eval": ("streaming_eval", "streaming_eval"),
    },
    "adaptation": {
        **_CANDIDATES,
        "evaluate policy": ("streaming_eval", "streaming_eval"),
        **_ADAPTED,
        "notify": ("notify", "notify"),
    },
    "end_to_end": {
        "world": ("video_segmentation", "world_render"),
        **{
            f"segments {split}": ("video_segmentation", "video_segmentation")
            for split in ("phase_one", "development", "deployment", "held_out")
        },
        "phase_one_gspo": ("phase_one_gspo", "phase_one_gspo"),
        "development": ("streaming_eval", "streaming_eval"),
        "choose the task": ("feedback_collection", "choose_tasks"),
        "deployment": ("deployment", "deployment"),
        "feedback_collection": ("feedback_collection", "feedback_collection"),
        **{f"evaluate {arm}": ("streaming_eval", "streaming_eval") for arm in ("base", "task_prompt", "phase_one")},
        **_CANDIDATES,
        **_ADAPTED,
        "evaluate": ("streaming_eval", "streaming_eval"),
        "report": ("feedback_collection", "results_report"),
    },
}


def asking(number: int) -> StageResources:
    """What no other stage asks: every field is `number`'s own."""
    return StageResources.model_validate(
        {
            "image": "train" if number % 2 else "data",
            "cpu": str(number + 1),
            "memory": f"{number + 1}Gi",
            "shm": f"{number + 1}Mi",
            "accelerator": {"type": f"maker{number}.test/gpu", "count": number + 1},
            "tolerations": [{"key": f"taint{number}", "value": "yes", "effect": "NoExecute"}],
            "node_selector": {"pool": f"pool{number}"},
            "secrets": [{"variable": f"SECRET_{number}", "secret": f"secret-{number}", "key": "key"}],
            "retry": {"count": number + 1, "seconds": 10 + number, "factor": 2 + number},
            "timeout_seconds": 1000 + number,
            "labels": {"queue": f"queue{number}"},
        }
    )


def distinct() -> Profile:
    """The miniature, but no two stages ask for the same of anything, so that whatever is mixed up shows."""
    stages = {stage: asking(number) for number, stage in enumerate(STAGES)}
    miniature = load_profile("miniature")
    cluster = ClusterSettings(nodes=miniature.cluster.nodes, stages=stages)
    return miniature.model_copy(update={"cluster": cluster, "name": "distinct"})


def images_by_digest() -> Images:
    return Images(data="registry.test/data@sha256:" + "d" * 64, train="registry.test/train@sha256:" + "7" * 64)


PROFILES = {
    "miniature": load_profile("miniature"),
    "qwen3-vl-30b": load_profile("qwen3-vl-30b"),
    "distinct": distinct(),
}
CASES = [(profile, name) for profile in PROFILES for name in WANTED if PROFILES[profile].world or name != "end_to_end"]
each_pipeline = pytest.mark.parametrize(("profile", "name"), CASES, ids=[f"{n}, {p}" for p, n in CASES])
Compiled = dict[tuple[str, str], CompiledPipeline]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Every pipeline under every profile, as `taskmem compile` writes it."""
    documents = {}
    for profile, settings in PROFILES.items():
        for path in compile_all(settings, images_by_digest(), tmp_path_factory.mktemp(profile)):
            documents[profile, path.stem] = CompiledPipeline(path)
    return documents


def test_there_is_a_table_for_every_pipeline(compiled: Compiled) -> None:
    assert set(WANTED) == set(PIPELINES)
    assert set(compiled) == set(CASES)


@each_pipeline
def test_every_task_is_of_its_stage_and_runs_its_component(compiled: Compiled, profile: str, name: str) -> None:
    tasks = compiled[profile, name].tasks()
    assert len({task.name for task in tasks}) == len(tasks)
    arguments = {task.name: list(task.container["args"]) for task in tasks}
    function = {task: a[a.index("--function_to_execute") + 1] for task, a in arguments.items()}
    assert {task.name: (task.stage, function[task.name]) for task in tasks} == WANTED[name]
    for task in tasks:
        assert f"\ndef {function[task.name]}(" in task.container["command"][-1]


@pytest.mark.parametrize("component", sorted({ran for tasks in WANTED.values() for _, ran in tasks.values()}))
def test_wherever_a_component_runs_it_carries_exactly_what_the_profile_asks(compiled: Compiled, component: str) -> None:
    """Image, CPU, memory, accelerator, /dev/shm, tolerations, node, secrets, timeout, retry, labels; under every profile."""
    for profile, name in CASES:
        for task, (stage, ran) in WANTED[name].items():
            if ran == component:
                assert_placed(compiled[profile, name].task(task), stage, PROFILES[profile], images_by_digest())


@each_pipeline
def test_no_task_bears_the_component_or_executor_of_another(compiled: Compiled, profile: str, name: str) -> None:
    assert compiled[profile, name].mixed_up() == []


@each_pipeline
def test_every_container_and_nothing_else_has_an_image_and_it_is_one_of_the_given(
    compiled: Compiled, profile: str, name: str
) -> None:
    pipeline = compiled[profile, name]
    executors = pipeline.spec["deploymentSpec"]["executors"]
    containers = {label: executor["container"] for label, executor in executors.items() if "container" in executor}
    assert set(containers) == {task.executor for task in pipeline.tasks()}
    given = images_by_digest()
    assert {container["image"] for container in containers.values()} == {given.data, given.train}
    assert UNPLACED not in pipeline.text


@pytest.mark.parametrize("field", sorted(set(StageResources.model_fields) - {"image"}))
def test_in_the_distinct_profile_no_two_stages_ask_alike(field: str) -> None:
    assert len({repr(getattr(asking(number), field)) for number in range(len(STAGES))}) == len(STAGES)


def test_every_component_stands_in_a_pipeline() -> None:
    functions = [
        node.name
        for source in sorted(COMPONENTS.glob("*/component.py"))
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    ]
    assert len(functions) == len(set(functions)) > len(STAGES)
    assert set(functions) == {ran for tasks in WANTED.values() for _, ran in tasks.values()}
