"""The deployment over HTTP: real vLLM, gateway and agent write, answer and keep what one process does."""

import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from taskmem.backends import backends_for
from taskmem.cli import shipped_base
from taskmem.config import Profile, load_profile, override
from taskmem.errors import UserError
from taskmem.gateway.tokens import create_token
from taskmem.policy.transformers_policy import load_checkpoint, policy_digest, policy_reference
from taskmem.records import Memory, Question, Response, read_records, write_json, write_records
from taskmem.registry import Provenance, fetch, publish
from taskmem.stages.deploy import deployment
from taskmem.stages.segmentation import segmentation
from taskmem.stages.services import Ports, Services, Site
from taskmem.steer import SteerConfig, read_adapter
from taskmem.store import open_store
from taskmem.world.splits import render_split

pytestmark = pytest.mark.serving

SERVED_BY = Path(sys.executable).parents[1]
WORLD = {"world": {"stream_segments": 5, "phase_one": 1, "deployment": 3, "development": 1, "held_out": 1}}
VLLM = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "32"]
LOCAL = {"environment": str(SERVED_BY), "vllm": VLLM, "start_seconds": 300.0}
SERVING = {"serving": {"local": LOCAL, "running": None}}


@dataclass(frozen=True)
class Film:
    """A rendered deployment split, segmented."""

    profile: Profile
    root: Path

    @property
    def questions(self) -> Path:
        return self.root / "world/deployment/questions.jsonl"

    def served(self, serving: dict) -> Profile:
        return override(self.profile, serving, "the test")

    def deploy(self, out: Path, profile: Profile, questions: Path | None = None, adapter: Path | None = None) -> Path:
        backends = backends_for(profile, self.root / "world")
        asked = questions or self.questions
        deployment(self.root / "film", shipped_base(), asked, backends, profile, 0, out, adapter=adapter)
        return out


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Film:
    root = tmp_path_factory.mktemp("film")
    profile = override(load_profile("miniature"), WORLD, "the test")
    assert profile.world is not None
    render_split(root / "world/deployment", "deployment", profile.world, 0)
    segmentation(root / "world/deployment/videos", profile, root / "film")
    return Film(profile, root)


@pytest.fixture(scope="module")
def here(film: Film, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The deployment in one process."""
    return film.deploy(tmp_path_factory.mktemp("here"), film.profile)


@pytest.fixture(scope="module")
def served(film: Film, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same over HTTP, by services that the stage starts."""
    return film.deploy(tmp_path_factory.mktemp("served"), film.served(SERVING))


def written(folder: Path) -> dict[str, bytes]:
    names = ["memories.jsonl", "responses.jsonl", "summary.json"]
    names += sorted(path.relative_to(folder).as_posix() for path in (folder / "events").glob("*.jsonl"))
    return {name: (folder / name).read_bytes() for name in names}


def test_a_deployment_over_http_writes_the_very_files_that_one_process_writes(here: Path, served: Path) -> None:
    assert written(served) == written(here)
    assert len(written(here)) > 5
    memories = read_records(served / "memories.jsonl", Memory)
    assert len(memories) == 15
    assert sum(memory.text is not None for memory in memories) > 10

    log = read_records(served / "services/responses/responses-agent.jsonl", Response)
    asked = {(line.environment, line.question) for line in read_records(served / "responses.jsonl", Response)}
    assert {(line.environment, line.question) for line in log if line.question} == asked
    said = "".join(path.read_text(errors="replace") for path in (served / "services/logs").iterdir())
    assert "tm_" not in said
    assert not any(memory.text in said for memory in memories if memory.text)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A version of environment door that pushes in one direction."""
    digest = policy_digest(shipped_base())
    model, _ = load_checkpoint(shipped_base())
    steered = get_peft_model(model, SteerConfig(layer=1))
    for name, parameter in steered.named_parameters():
        if "steer_vector" in name:
            parameter.data.normal_(std=0.25, generator=torch.Generator().manual_seed(0))
    steered.peft_config["default"].base_model_name_or_path = policy_reference(digest)
    steered.save_pretrained(tmp_path / "made", save_embedding_layers=False)
    write_json(tmp_path / "made/training.json", {})
    fields = {"parent": None, "policy": digest, "pairs": "0" * 64, "feedback": "0" * 64, "feedback_count": 0}
    provenance = Provenance(**fields, judges=(), commit="unknown", image="local", seed=0)
    registry = open_store(str(tmp_path / "registry"))
    publish(registry, "door", tmp_path / "made", provenance, read_adapter)
    fetch(registry, "door", "v1", tmp_path / "door@v1")
    return tmp_path / "door@v1"


def test_an_adapter_that_is_given_is_the_champion_that_writes(
    film: Film, here: Path, tmp_path: Path, adapter: Path
) -> None:
    door = tmp_path / "door.jsonl"
    write_records(door, [q for q in read_records(film.questions, Question) if q.environment == "door"])
    steered = film.deploy(tmp_path / "steered", film.profile, door, adapter)
    served = film.deploy(tmp_path / "served", film.served(SERVING), door, adapter)
    assert written(served) == written(steered)
    assert {memory.adapter for memory in read_records(served / "memories.jsonl", Memory)} == {"door@v1"}
    texts = [[memory.text for memory in read_records(f / "memories.jsonl", Memory)] for f in (steered, here)]
    assert texts[0] != texts[1]


def test_an_agent_that_is_served_already_is_used_and_a_repeated_stage_finds_what_it_said(
    film: Film, here: Path, served: Path, tmp_path: Path
) -> None:
    store, tokens = str(tmp_path / "store"), tmp_path / "tokens.json"
    environments = sorted({question.environment for question in read_records(film.questions, Question)})
    now = datetime(2026, 1, 1, tzinfo=UTC)
    tokens.write_text(json.dumps({name: create_token(open_store(store), name, "test", now) for name in environments}))
    site = Site(
        policy=served / "services/policy",
        python=SERVED_BY,
        store=store,
        folder=tmp_path / "site",
        profile=film.profile,
        seed=0,
        ports=Ports.free(),
        vllm=tuple(VLLM),
    )
    with Services(site) as services:
        running = {"serving": {"local": None, "running": {"url": services.agent_url, "tokens": str(tokens)}}}
        assert written(film.deploy(tmp_path / "served", film.served(running))) == written(here)
        assert written(film.deploy(tmp_path / "again", film.served(running))) == written(here)


def test_an_agent_that_is_not_there_is_named(film: Film, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    running = {"serving": {"local": None, "running": {"url": "http://127.0.0.1:9", "tokens": str(tokens)}}}
    with pytest.raises(UserError, match=r"tokens.json: cannot be read"):
        film.deploy(tmp_path / "out", film.served(running))
    tokens.write_text(json.dumps({"door": "tm_" + "A" * 43}))
    with pytest.raises(UserError, match=r"no token of figure, lamps, object, room; make it with"):
        film.deploy(tmp_path / "out", film.served(running))
