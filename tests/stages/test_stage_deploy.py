"""The deployment of the shipped policy on a few rendered streams, and the collection of its feedback."""

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from taskmem.backends import Backends, backends_for
from taskmem.cli import shipped_base
from taskmem.config import Profile, load_profile, override
from taskmem.errors import UserError
from taskmem.evaluation.streaming import ask, feedback_and_rest
from taskmem.feedback import EventLog, read_collection, read_watermark
from taskmem.files import sha256_bytes, sha256_file
from taskmem.policy.stream import by_stream, watch
from taskmem.policy.transformers_policy import load_checkpoint, policy_digest, policy_reference
from taskmem.records import FeedbackEvent, Memory, Question, Response, Segment, read_json, read_records
from taskmem.stages.collect import collect_environment, feedback_collection
from taskmem.stages.common import footage
from taskmem.stages.deploy import deployment
from taskmem.stages.policies import load_policy
from taskmem.stages.segmentation import segmentation
from taskmem.steer import SteerConfig
from taskmem.world.checkpoint import build_model, build_processor, build_tokenizer
from taskmem.world.splits import render_split

PROFILE = """
name: deployed
extends: miniature
deviations:
  - reason: "Two streams of four segments, so that a test takes seconds."
    settings:
      world: {stream_segments: 4, phase_one: 1, deployment: 2, development: 1, held_out: 1}
  - reason: "Fewer questions of an environment are feedback than there are."
    settings:
      evaluation: {feedback_questions: 3}
"""


@dataclass(frozen=True)
class Site:
    """Everything a deployment needs, rendered once, and the folder of one that has finished."""

    profile: Profile
    film: Path
    questions: Path
    backends: Backends
    out: Path

    def deploy(self, out: Path, policy: Path | None = None, adapter: Path | None = None) -> Path:
        policy = policy or shipped_base()
        deployment(self.film, policy, self.questions, self.backends, self.profile, 0, out, adapter=adapter)
        return out


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("site")
    (root / "profile.yaml").write_text(PROFILE)
    profile = load_profile(str(root / "profile.yaml"))
    assert profile.world is not None
    render_split(root / "world/deployment", "deployment", profile.world, 0)
    segmentation(root / "world/deployment/videos", profile, root / "film")
    questions = root / "world/deployment/questions.jsonl"
    site = Site(profile, root / "film", questions, backends_for(profile, root / "world"), root / "out")
    site.deploy(site.out)
    return site


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def events_of(out: Path) -> list[FeedbackEvent]:
    return [event for path in sorted((out / "events").glob("*.jsonl")) for event in read_records(path, FeedbackEvent)]


def test_every_segment_is_remembered_as_by_one_who_watches_the_streams(site: Site) -> None:
    film = footage(site.film, site.profile)
    policy = load_policy(shipped_base(), site.profile, film.frames_of)
    expected, _ = watch(policy, by_stream(film.segments), site.profile.policy.window, 0)
    assert read_records(site.out / "memories.jsonl", Memory) == expected


def test_the_first_questions_of_each_environment_are_asked_and_no_other(site: Site) -> None:
    asked, _ = feedback_and_rest(read_records(site.questions, Question), site.profile.evaluation)
    assert Counter(q.environment for q in asked).most_common(1)[0][1] == 3
    for path in (site.out / "events").glob("*.jsonl"):
        expected = [q.id for q in asked if q.environment == path.stem]
        assert [event.question for event in read_records(path, FeedbackEvent)] == expected
    assert {event.environment for event in events_of(site.out)} == {q.environment for q in asked}


def test_each_environment_has_a_log_of_its_own(site: Site) -> None:
    logs = {path.stem: read_records(path, FeedbackEvent) for path in (site.out / "events").glob("*.jsonl")}
    assert len(logs) > 1
    assert all({event.environment for event in events} == {name} for name, events in logs.items())


def test_an_answer_is_the_answerer_s_and_its_outcome_the_grader_s(site: Site) -> None:
    asked, _ = feedback_and_rest(read_records(site.questions, Question), site.profile.evaluation)
    memories = read_records(site.out / "memories.jsonl", Memory)
    expected = {q.id: answer for q, answer in ask(asked, memories, site.backends.answerer)}
    truth = {q.id: q.answer for q in asked}
    for event in events_of(site.out):
        right = event.answer is not None and event.answer == truth[event.question]
        assert event.answer == expected[event.question]
        assert event.outcome == ("correct" if right else "incorrect")
        assert event.correction == (None if right else truth[event.question])


def test_an_event_names_memories_that_had_ended_when_the_question_was_asked(site: Site) -> None:
    ended = {f"{m.stream}:{m.index}": m.end_s for m in read_records(site.out / "memories.jsonl", Memory) if m.text}
    events = events_of(site.out)
    assert any(event.memories for event in events)
    assert all(ended[memory] <= event.asked_at_s for event in events for memory in event.memories)
    assert all(memory.startswith(f"{event.stream}:") for event in events for memory in event.memories)


def test_every_answer_is_in_the_response_log_without_a_word_of_it(site: Site) -> None:
    responses = read_records(site.out / "responses.jsonl", Response)
    events = events_of(site.out)
    assert {r.question: (r.stream, r.environment, r.memories) for r in responses} == {
        e.question: (e.stream, e.environment, e.memories) for e in events
    }
    assert len({r.id for r in responses}) == len(responses)
    assert {(r.policy, r.adapter, r.adapter_digest, r.image) for r in responses} == {
        (policy_digest(shipped_base()), "none", None, "local")
    }
    written = (site.out / "responses.jsonl").read_text()
    assert not any(e.text in written for e in events)


def test_the_summary_counts_what_the_files_hold(site: Site) -> None:
    memories, events = read_records(site.out / "memories.jsonl", Memory), events_of(site.out)
    assert read_json(site.out / "summary.json") == {
        "segments": len(read_records(site.film / "segments.jsonl", Segment)),
        "format_rate": sum(m.text is not None for m in memories) / len(memories),
        "asked": len(events),
        "answered": sum(event.answer is not None for event in events),
        "correct": sum(event.outcome == "correct" for event in events),
    }


def test_nothing_else_is_left_behind(site: Site) -> None:
    logs = {f"events/{event.environment}.jsonl" for event in events_of(site.out)}
    assert set(files(site.out)) == {"memories.jsonl", "responses.jsonl", "summary.json", *logs}


def test_what_a_killed_attempt_left_is_not_taken_for_feedback_of_this_one(tmp_path: Path, site: Site) -> None:
    foreign = events_of(site.out)[0].model_copy(update={"answer": "what another policy said"})
    with EventLog(tmp_path / "events" / f"{foreign.environment}.jsonl") as log:
        log.append(foreign)
    with EventLog(tmp_path / "events" / "gone.jsonl") as log:
        log.append(foreign.model_copy(update={"environment": "gone"}))
    assert files(site.deploy(tmp_path)) == files(site.out)


DEPLOY_AND_DIE = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from taskmem.backends import backends_for
from taskmem.cli import shipped_base
from taskmem.config import load_profile
from taskmem.stages.deploy import deployment

class Killer:
    graded = 0

    def correct(self, question, answer):
        self.graded += 1
        if self.graded == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return True

root, out = Path(sys.argv[1]), Path(sys.argv[2])
profile = load_profile(str(root / "profile.yaml"))
ends = replace(backends_for(profile, root / "world"), grader=Killer())
deployment(root / "film", shipped_base(), root / "world/deployment/questions.jsonl", ends, profile, 0, out)
"""


def test_killed_while_it_asks_it_ends_in_the_same_bytes_when_run_again(tmp_path: Path, site: Site) -> None:
    command = [sys.executable, "-c", DEPLOY_AND_DIE, str(site.film.parent), str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert 0 < len(events_of(tmp_path)) < len(events_of(site.out))
    assert not (tmp_path / "summary.json").exists()
    assert files(site.deploy(tmp_path)) == files(site.out)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, site: Site) -> Path:
    """An adapter of the shipped policy that pushes hard in one direction."""
    folder = tmp_path_factory.mktemp("adapters") / "door@v3"
    model, _ = load_checkpoint(shipped_base())
    steered = get_peft_model(model, SteerConfig(layer=1))
    for name, parameter in steered.named_parameters():
        if "steer_vector" in name:
            parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    steered.peft_config["default"].base_model_name_or_path = policy_reference(policy_digest(shipped_base()))
    steered.save_pretrained(folder, save_embedding_layers=False)
    return folder


def test_with_an_adapter_it_is_the_steered_policy_that_is_deployed(tmp_path: Path, site: Site, adapter: Path) -> None:
    site.deploy(tmp_path, adapter=adapter)
    steered = read_records(tmp_path / "memories.jsonl", Memory)
    assert {m.adapter for m in steered} == {e.adapter for e in events_of(tmp_path)} == {"door@v3"}
    assert {m.adapter for m in read_records(site.out / "memories.jsonl", Memory)} == {"none"}
    served = {(r.adapter, r.adapter_digest) for r in read_records(tmp_path / "responses.jsonl", Response)}
    assert served == {("door@v3", sha256_file(adapter / "adapter_model.safetensors"))}
    assert [m.text for m in steered] != [m.text for m in read_records(site.out / "memories.jsonl", Memory)]


def test_a_policy_that_writes_not_one_well_formed_memory_is_not_deployed(tmp_path: Path, site: Site) -> None:
    processor = build_processor(build_tokenizer())
    build_model(processor.tokenizer, seed=0).save_pretrained(tmp_path / "untrained")
    processor.save_pretrained(tmp_path / "untrained")
    with pytest.raises(UserError, match=r"untrained: not one of 8 memories is well formed; deploy another policy$"):
        site.deploy(tmp_path / "out", policy=tmp_path / "untrained")
    assert {m.text for m in read_records(tmp_path / "out" / "memories.jsonl", Memory)} == {None}
    assert not (tmp_path / "out" / "summary.json").exists()


def test_a_summary_of_an_earlier_deployment_does_not_outlive_one_that_failed(tmp_path: Path, site: Site) -> None:
    shutil.copytree(site.out, tmp_path / "out")
    with pytest.raises(UserError, match="no policy checkpoint"):
        site.deploy(tmp_path / "out", policy=tmp_path)
    assert not (tmp_path / "out" / "summary.json").exists()


def test_all_environments_are_collected_from_the_folder(tmp_path: Path, site: Site) -> None:
    # in two short streams two people ask everything
    uncapped = override(site.profile, {"mining": {"questions_per_source": None}}, "uncapped")
    feedback_collection(site.out / "events", None, uncapped, tmp_path)
    collection = read_collection(tmp_path)
    recent = site.profile.mining.recent_questions
    for environment, questions in collection.questions.items():
        log = read_records(site.out / "events" / f"{environment}.jsonl", FeedbackEvent)
        assert [q.id for q in questions] == [event.question for event in log[-recent:]]
    assert collection.events == read_json(site.out / "summary.json")["asked"]


def test_a_folder_is_collected_from_the_start_only(tmp_path: Path, site: Site) -> None:
    feedback_collection(site.out / "events", None, site.profile, tmp_path)
    since = read_watermark(tmp_path / "watermark.json")
    with pytest.raises(UserError, match="events: several environments have no one watermark; "):
        feedback_collection(site.out / "events", since, site.profile, tmp_path)


def event(number: int, environment: str) -> FeedbackEvent:
    return FeedbackEvent(
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
        consent=True,
    )


def append(events: Path, environment: str, *added: FeedbackEvent) -> None:
    with EventLog(events / f"{environment}.jsonl") as log:
        for one in added:
            log.append(one)


def test_one_environment_is_collected_from_its_own_log_alone(tmp_path: Path, site: Site) -> None:
    append(tmp_path / "events", "door", event(1, "door"), event(2, "room"), event(3, "door"))
    append(tmp_path / "events", "room", event(4, "room"))
    collection = collect_environment(tmp_path / "events", "door", None, site.profile, tmp_path / "out")
    assert {e: [q.id for q in qs] for e, qs in collection.questions.items()} == {"door": ["q1", "q3"]}
    assert [r.file for r in collection.refused] == ["door.jsonl:2"]
    assert read_collection(tmp_path / "out") == collection
    assert json.loads((tmp_path / "out" / "sources.json").read_text()).keys() == {"door"}


def test_an_environment_s_watermark_is_where_its_next_collection_begins(tmp_path: Path, site: Site) -> None:
    append(tmp_path, "door", event(1, "door"))
    first = collect_environment(tmp_path, "door", None, site.profile, tmp_path / "out")
    append(tmp_path, "door", event(2, "door"))
    second = collect_environment(tmp_path, "door", first.watermark, site.profile, tmp_path / "out")
    assert [q.id for q in second.questions["door"]] == ["q1", "q2"]
    assert [q.id for q in second.new("door")] == ["q2"]


@pytest.mark.parametrize("name", ["../door", "", ".door"])
def test_an_environment_of_an_unsafe_name_is_not_collected(tmp_path: Path, site: Site, name: str) -> None:
    append(tmp_path / "events", "door", event(1, "door"))
    with pytest.raises(UserError, match="not a safe name"):
        collect_environment(tmp_path / "events" / "x", name, None, site.profile, tmp_path / "out")


def test_an_environment_without_a_log_is_the_users_mistake(tmp_path: Path, site: Site) -> None:
    with pytest.raises(UserError, match=r"door\.jsonl: the event log cannot be read"):
        collect_environment(tmp_path, "door", None, site.profile, tmp_path / "out")
