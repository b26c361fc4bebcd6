"""What is known to go wrong with kfp 2.17 goes wrong in none of our pipelines; each trap is shown on one that falls into it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from ir_traps import (
    Compiled,
    cached,
    cached_by_tag,
    compiled,
    conditions,
    importers_in_nested,
    installing,
    loops,
    nested_without_parameter,
    not_python,
    outer_outputs_in_loops,
    run_placeholders,
)
from local_parts import Run, run
from pushed import Listener, parsed
from trapped_parts import TAGGED, around, artifacts_alone, optional, parsing, quoted, straight, trapped

from components.images import UNPLACED, Images, load_images
from pipelines.adaptation import adaptation
from pipelines.compiling import PIPELINES, compile_all, travelling
from pipelines.parts import Placement
from taskmem import entry
from taskmem.cli import shipped_base
from taskmem.config import load_profile, override, profile_names
from taskmem.feedback import EventLog, FeedbackParts
from taskmem.files import sha256_bytes
from taskmem.lineage.outcome import OUTCOMES, Outcome
from taskmem.records import FeedbackEvent, Memory, read_records
from taskmem.store import LocalStore, Store, open_store

PINNED = Images(data="registry.test/data@sha256:" + "d" * 64, train="registry.test/train@sha256:" + "7" * 64)
ITEMS = [{"name": "a"}, {"name": "b"}]
SETTINGS = {
    "shop": {"mining": {"recent_questions": 8}, "adaptation": {"new_questions": 7}},
    "home": {"adaptation": {"new_questions": 9}},
}
SHARDS = [
    {"name": "a", "environments": [{"environment": "shop", "settings": SETTINGS["shop"]}, {"environment": "cafe"}]},
    {"name": "b", "environments": [{"environment": "home", "settings": SETTINGS["home"]}]},
]
ASKED = {"shop": 3, "cafe": 4, "home": 5}
# cafe, in the same shard as shop, has the profile's own 5
REASONS = {
    "shop": "too little feedback: 3 questions in all, needs 7;",
    "cafe": "too little feedback: 4 questions in all, needs 5;",
    "home": "too little feedback: 5 questions in all, needs 9;",
}
GROUP = "/metrics/job/taskmem_adaptation/of/{of}/profile/miniature"
ENDED = {f"taskmem_adaptation_environments[{end}]": 0.0 for end in ("promoted", "kept", "skipped", "failed")}
JUDGED = {"taskmem_judge_unscored_share": 0.0, "taskmem_calls_cost": 0.0}
NEVER_REUSED: dict[str, set[str]] = {
    "phase_one": set(),
    "adaptation": {"collect", "gate", "promote", "lineage_record", "notify"},
    # its store is its own: no watermark is read, and nobody else moves a champion
    "end_to_end": {"promote", "lineage_record"},
}
GUARDS: dict[Callable[[Compiled], list[str]], list[str]] = {
    outer_outputs_in_loops: ["root/for-loop-1: pipelinechannel--word-Output"],
    nested_without_parameter: ["comp-artifacts-only"],
    conditions: ["root/condition-2"],
    run_placeholders: ["{{$.pipeline_job_create_time_utc}}"],
    installing: ["exec-installs"],
    importers_in_nested: ["comp-importing/importer"],
    not_python: ["exec-shell"],
    cached_by_tag: [TAGGED, UNPLACED],
}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    """Every pipeline under every profile, with images by digest and by tag."""
    return {
        f"{path.stem}, {profile}, {kind}": Compiled(path)
        for profile in profile_names()
        for kind, images in (("pinned", PINNED), ("by tag", load_images(None)))
        for path in compile_all(load_profile(profile), images, tmp_path_factory.mktemp("ir"))
    }


def events(folder: Path, environment: str, asked: int) -> None:
    """The log of an environment: so many questions, and one without consent."""
    with EventLog(folder / f"{environment}.jsonl") as log:
        for number in range(asked + 1):
            log.append(
                FeedbackEvent(
                    id=f"e{number}",
                    environment=environment,
                    source=sha256_bytes("somebody"),
                    time=datetime(2026, 1, 1, tzinfo=UTC),
                    question=f"q{number}",
                    stream="s",
                    asked_at_s=float(number),
                    type="door",
                    text=f"question {number}?",
                    answer=None,
                    outcome="unknown",
                    consent=number < asked,
                )
            )


@dataclass(frozen=True)
class Nights:
    """A night that went well and one that failed, what a Pushgateway was told of either, and the store after both."""

    finished: Run
    failed: Run
    told: dict[str, str]
    told_of_failed: dict[str, str]
    store: Store


@pytest.fixture(scope="module")
def gateway() -> Iterator[Listener]:
    with Listener().running() as listener:
        yield listener


@pytest.fixture(scope="module")
def night(nights: Nights) -> Run:
    """A night on logs."""
    return nights.finished


def ship(folder: Path, environment: str) -> None:
    """The log of an environment as parts in an object store, the first one twice."""
    parts = FeedbackParts(LocalStore(folder / "store"), environment)
    said = read_records(folder / "events" / f"{environment}.jsonl", FeedbackEvent)
    for batch in (said[:2], said[:2], said[2:]):
        parts.append(batch)


def run_nights(folder: Path, feedback: str, gateway: Listener) -> Nights:
    """The real nightly pipeline on this machine: two shards, three environments, two with settings of their own."""
    sizes = {"stream_segments": 2, "phase_one": 1, "deployment": 1, "development": 1, "held_out": 1}
    small = {"world": sizes, "cluster": {"feedback": feedback}}
    profile = override(load_profile("miniature"), small, "the test")
    settings = travelling(profile)
    world, film = folder / "world", folder / "film"
    entry.world_render(settings, 0, {split: str(world / split) for split in ("deployment", "development")})
    for split in ("deployment", "development"):
        entry.video_segmentation(str(world / split), "videos", settings, str(film / split))
    for environment, asked in ASKED.items():
        events(folder / "events", environment, asked)
        ship(folder, environment)
    arguments: dict[str, Any] = {
        "events": str(folder / ("events" if feedback == "logs" else "store")),
        "segments": str(film / "deployment"),
        "policy": str(shipped_base()),
        "gate_segments": str(film / "development"),
        "gate_questions": str(world / "development"),
        "store": str(folder / "store"),
        "profile": settings,
        "world": str(world / "deployment"),
        "pushgateway": gateway.url,
    }
    pipeline = adaptation(Placement(profile, PINNED))
    finished = run(pipeline, folder / "run", shards=SHARDS, **arguments)
    told = dict(gateway.groups)
    gateway.groups.clear()
    (folder / "nothing").mkdir()
    failed = run(pipeline, folder / "failed", shards=SHARDS, **{**arguments, "segments": str(folder / "nothing")})
    return Nights(finished, failed, told, dict(gateway.groups), open_store(arguments["store"]))


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory, gateway: Listener) -> Nights:
    return run_nights(tmp_path_factory.mktemp("night"), "logs", gateway)


def outcomes(night: Run, stage: str, output: str) -> dict[str, Outcome]:
    """What a stage of the night says of every environment it knows."""
    assert night.finished is not None, night.error
    folder = Path(night.finished.stages[stage].outputs[output].path)
    return {outcome.environment: outcome for outcome in read_records(folder / OUTCOMES, Outcome)}


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.__name__)
def test_none_of_our_pipelines_falls_into_it(ours: dict[str, Compiled], guard: Callable[[Compiled], list[str]]) -> None:
    assert {name: found for name, pipeline in ours.items() if (found := guard(pipeline))} == {}


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.__name__)
def test_a_pipeline_that_falls_into_it_is_found_out(tmp_path: Path, guard: Callable[[Compiled], list[str]]) -> None:
    assert guard(compiled(trapped, tmp_path)) == GUARDS[guard]


def test_there_are_loops_and_nested_pipelines_that_could_have_fallen_into_it(ours: dict[str, Compiled]) -> None:
    for name, pipeline in ours.items():
        looping = not name.startswith("phase_one")
        assert bool(loops(pipeline)) == looping, name
        assert (len(pipeline.graphs()) > 2) == looping, name


def test_in_a_loop_an_earlier_output_is_silently_replaced_by_the_item(out: Path) -> None:
    result = run(straight, out, items=ITEMS)
    assert result.finished is not None
    assert result.finished.outputs["Output"] == ["{'name': 'a'} a", "{'name': 'b'} b"]


def test_in_a_loop_of_a_nested_pipeline_it_arrives_as_it_is_with_each_item_s_own(out: Path) -> None:
    result = run(around, out, items=ITEMS)
    assert result.finished is not None
    assert result.finished.outputs["Output"] == ["earlier a", "earlier b"]


def test_two_environments_with_different_parameters_get_their_own(night: Run) -> None:
    for stage, output in (
        ("collect", "feedback"),
        ("mine", "preferences"),
        ("adapt", "adapters"),
        ("gate", "verdicts"),
        ("promote", "outcomes"),
    ):
        assert list(outcomes(night, f"{stage}/a", output)) == ["shop", "cafe"]
        assert list(outcomes(night, f"{stage}/b", output)) == ["home"]
        for shard in "ab":
            for environment, outcome in outcomes(night, f"{stage}/{shard}", output).items():
                assert (outcome.status, outcome.stage) == ("skipped", "feedback_collection")
                assert outcome.reason.startswith(REASONS[environment])
                assert outcome.reason.endswith(f"{environment}.jsonl:{ASKED[environment] + 1}: no consent")


def test_the_record_of_the_night_has_every_environment_once_with_its_own_reason(night: Run) -> None:
    recorded = outcomes(night, "lineage_record", "record")
    assert sorted(recorded) == sorted(ASKED)
    for environment, outcome in recorded.items():
        assert outcome.reason.startswith(REASONS[environment])


def test_what_became_of_the_night_is_told_with_the_time_and_nothing_stays_in_the_store(nights: Nights) -> None:
    outcome, success = (nights.told[GROUP.format(of=of)] for of in ("night", "success"))
    assert parsed(outcome) == {**ENDED, "taskmem_adaptation_environments[skipped]": 3.0, **JUDGED}
    assert abs(time.time() - parsed(success)["taskmem_adaptation_last_success_timestamp_seconds"]) < 600
    assert list(nights.store.list("nights/")) == []


def test_a_night_that_fails_is_told_too_and_takes_away_no_success(nights: Nights) -> None:
    assert nights.failed.finished is None
    assert "rollout_cache: " in str(nights.failed.error)
    assert nights.failed.said["notify"] == "done"
    assert set(nights.told_of_failed) == {GROUP.format(of="night")}
    told = parsed(nights.told_of_failed[GROUP.format(of="night")])
    assert told == {**ENDED, "taskmem_adaptation_environments[failed]": 3.0}


@pytest.mark.slow
def test_a_night_on_parts_ends_as_one_on_logs(night: Run, gateway: Listener, tmp_path: Path) -> None:
    other = run_nights(tmp_path, "parts", gateway).finished
    ours, theirs = (outcomes(each, "lineage_record", "record") for each in (other, night))
    assert [(o.environment, o.stage, o.status) for o in ours.values()] == [
        (o.environment, o.stage, o.status) for o in theirs.values()
    ]
    for environment, outcome in ours.items():
        assert outcome.reason.startswith(REASONS[environment])
        assert "feedback/" in outcome.reason


def test_an_evaluation_that_is_given_neither_adapter_nor_feedback_is_the_policy_s_own(night: Run) -> None:
    assert night.finished is not None
    evaluation = night.finished.stages["evaluate policy"].outputs["evaluation"]
    assert evaluation.metadata == {"arm": "policy"}
    memories = read_records(Path(evaluation.path) / "memories.jsonl", Memory)
    assert [memory.adapter for memory in memories] == ["none", "none"]


def test_an_optional_artifact_that_is_not_given_is_none(out: Path) -> None:
    result = run(optional, out)
    assert result.finished is not None
    assert result.finished.outputs["Output"] == ["with: given", "without: None"]


def test_whole_numbers_in_a_dict_arrive_as_floats_and_a_shard_restores_them(out: Path) -> None:
    settings = {"mining": {"recent_questions": 10}, "phase_two": {"learning_rate": 0.5, "steps": 48}}
    result = run(parsing, out, shard={"name": "s", "environments": [{"environment": "e", "settings": settings}]})
    assert result.finished is not None
    assert result.finished.outputs["Output"] == {
        "came": {"recent_questions": "float 10.0", "learning_rate": "float 0.5", "steps": "float 48.0"},
        "restored": {"recent_questions": "int 10", "learning_rate": "float 0.5", "steps": "int 48"},
    }


def test_a_nested_pipeline_that_takes_no_parameter_cannot_run(out: Path) -> None:
    error = run(artifacts_alone, out).error
    assert "Parent pipeline input argument 'given' not found" in str(error)


def test_a_condition_on_a_text_with_a_quote_is_silently_false(out: Path) -> None:
    result = run(quoted, out, text="it's")
    assert result.error is None
    assert result.said == {"always": "done"}


@pytest.mark.parametrize("name", PIPELINES)
def test_where_artifacts_are_known_by_content_all_is_reused_but_what_reads_or_moves_the_store(
    tmp_path: Path, name: str
) -> None:
    put = Placement(load_profile("miniature"), PINNED, content_keyed=True)
    pipeline = compiled(PIPELINES[name](put), tmp_path)
    tasks = {t["taskInfo"]["name"] for _, t in pipeline.tasks() if "container" in (pipeline.executor(t) or {})}
    reused = cached(pipeline)
    assert {image for _, image in reused} == {PINNED.data, PINNED.train}
    assert tasks - {task for task, _ in reused} == NEVER_REUSED[name]


@pytest.mark.parametrize("name", PIPELINES)
def test_with_images_by_tag_nothing_is_reused_even_there(tmp_path: Path, name: str) -> None:
    put = Placement(load_profile("miniature"), load_images(None), content_keyed=True)
    assert cached(compiled(PIPELINES[name](put), tmp_path)) == []


def test_on_a_cluster_which_knows_artifacts_by_name_nothing_is_reused(ours: dict[str, Compiled]) -> None:
    assert len(ours) == 10
    assert {name: found for name, pipeline in ours.items() if (found := cached(pipeline))} == {}
