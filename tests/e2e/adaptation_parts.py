"""Nights of a small deployment: five environments in two shards, through Kubeflow's local runner."""

import io
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from components.images import Images
from pipelines.adaptation import adaptation
from pipelines.compiling import travelling
from pipelines.local import Finished, run_pipeline
from pipelines.local.attempt import Attempts
from pipelines.parts import Placement
from taskmem.backends import backends_for
from taskmem.cli import shipped_base
from taskmem.config import Profile, load_profile
from taskmem.feedback import EventLog
from taskmem.files import sha256_bytes
from taskmem.lineage.outcome import OUTCOMES, Outcome
from taskmem.loop.display import StageDisplay
from taskmem.records import FeedbackEvent, Question, dump_record, read_records, write_records
from taskmem.stages.segmentation import segmentation
from taskmem.stages.train_policy import phase_one
from taskmem.store import Store, open_store
from taskmem.world.splits import render_split

PROFILE = """
name: nightly
extends: miniature
deviations:
  - reason: "Fewer streams to learn from; the gate's own stay as many as in the miniature profile, and so do its bounds."
    settings:
      world: {phase_one: 16, deployment: 8}
  - reason: "Fewer than half of the steps of Phase One: a policy that is good enough to be adapted, in a quarter of a minute."
    settings:
      phase_one: {off_policy_steps: 10, on_policy_steps: 10, validate_every: 20}
  - reason: "A third of the steps of Phase Two at three times the rate, so that a night takes a minute."
    settings:
      phase_two: {steps: 16, learning_rate: 9.0e-3}
"""
# with seeds 0 to 3 alike the gate lets the task's challenger pass; with this one it has most room to its bounds
SEED = 3
TASK, OTHER_TASK = "object", "room"
ENVIRONMENTS = ("good", "worse", "judge-down", "corrupt", "quiet")
# a rate that throws the vector far beyond the policy's own activations
RUINED = {"phase_two": {"learning_rate": 0.3, "steps": 4}}
SHARDS: tuple[dict[str, Any], ...] = (
    {"name": "one", "environments": [{"environment": name} for name in ("corrupt", "quiet", "good")]},
    {"name": "two", "environments": [{"environment": "judge-down"}, {"environment": "worse", "settings": RUINED}]},
)
IMAGES = Images(data=f"localhost/taskmem/data@sha256:{'d' * 64}", train=f"localhost/taskmem/train@sha256:{'7' * 64}")


@dataclass(frozen=True)
class Night:
    """A finished run: what was said of each stage, what became of every environment, what was made, and the store after it.

    `files` has the bytes of what the stages wrote, by stage, output and path: the next run removes some of it.
    """

    said: dict[str, str]
    outcomes: dict[str, Outcome]
    files: dict[str, bytes]
    objects: dict[str, bytes]

    def made(self, stage: str, output: str) -> dict[str, bytes]:
        """The files of one output of a stage."""
        return below(self.files, f"{stage}:{output}/")


@dataclass(frozen=True)
class Deployment:
    """What all nights share: a trained policy, footage, questions and the event logs."""

    root: Path
    profile: Profile

    @property
    def policy(self) -> Path:
        return self.root / "phase_one" / "policy"

    @property
    def events(self) -> Path:
        return self.root / "events"

    @property
    def store(self) -> Store:
        return open_store(str(self.root / "store"))

    def asked(self, kind: str, numbers: slice) -> list[Question]:
        """Questions of one type about the deployment's streams, in the order they were asked."""
        questions = read_records(self.root / "world" / "deployment" / "questions.jsonl", Question)
        of_kind = [question for question in questions if question.type == kind]
        return sorted(of_kind, key=lambda question: (question.asked_at_s, question.id))[numbers]

    def ask(self, environment: str, questions: Sequence[Question]) -> None:
        """Questions that people of an environment ask."""
        with EventLog(self.events / f"{environment}.jsonl") as log:
            for question in questions:
                log.append(event(environment, question))

    def night(
        self,
        out: Path,
        shards: Sequence[dict[str, Any]] = SHARDS,
        *,
        images: Images = IMAGES,
        attempts: Attempts | None = None,
    ) -> Night:
        """Run the pipeline into `out`, as processes or as said."""
        folders = {
            "events": self.events,
            "segments": self.root / "film" / "deployment",
            "policy": self.policy,
            "gate_segments": self.root / "film" / "development",
            "gate_questions": self.root / "gate",
            "world": self.root / "world" / "deployment",
            "store": self.root / "store",
        }
        arguments = {name: str(folder) for name, folder in folders.items()}
        settings = {"shards": list(shards), "profile": travelling(self.profile), "seed": SEED}
        shown = io.StringIO()
        display = StageDisplay(Console(file=shown, width=80))
        pipeline = adaptation(Placement(self.profile, images, content_keyed=True))
        finished = run_pipeline(pipeline, {**arguments, **settings}, out, display, attempts=attempts)
        record = Path(finished.stages["lineage_record"].outputs["record"].path)
        return Night(
            dict(re.findall(r"^  (\S.*?) +(done|unchanged|failed)\b", shown.getvalue(), re.MULTILINE)),
            {outcome.environment: outcome for outcome in read_records(record / OUTCOMES, Outcome)},
            _files(finished),
            {key: self.store.get(key).data for key in self.store.list("")},
        )


def below(files: dict[str, bytes], folder: str) -> dict[str, bytes]:
    """The files below a folder, named from there."""
    return {name.removeprefix(folder): data for name, data in files.items() if name.startswith(folder)}


def _files(finished: Finished) -> dict[str, bytes]:
    files = {}
    for stage, result in finished.stages.items():
        for output, value in result.outputs.items():
            root = Path(value.path)
            found = [root] if root.is_file() else [path for path in root.rglob("*") if path.is_file()]
            for path in found:
                inner = path.relative_to(root).as_posix() if path != root else ""
                files[f"{stage}:{output}/{inner}"] = path.read_bytes()
    return files


def event(environment: str, question: Question) -> FeedbackEvent:
    """A question that was not answered."""
    return FeedbackEvent(
        id=question.id,
        environment=environment,
        source=sha256_bytes(f"user of {question.stream}"),
        time=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=question.asked_at_s),
        question=question.id,
        stream=question.stream,
        asked_at_s=question.asked_at_s,
        type=question.type,
        text=question.text,
        options=question.options,
        answer=None,
        outcome="unknown",
        consent=True,
    )


def trained(root: Path) -> Deployment:
    """Render the world, cut it and train its policy; no feedback yet."""
    torch.set_num_threads(1)
    (root / "profile.yaml").write_text(PROFILE)
    profile = load_profile(str(root / "profile.yaml"))
    world, film = root / "world", root / "film"
    assert profile.world is not None
    for split in ("phase_one", "deployment", "development"):
        render_split(world / split, split, profile.world, SEED)
        segmentation(world / split / "videos", profile, film / split)
    ends = backends_for(profile, world)
    held = (film / "development", world / "development" / "questions.jsonl")
    phase_one(film / "phase_one", shipped_base(), *held, ends, profile, SEED, root / "phase_one")
    _ask_the_gate(world / "development", root / "gate")
    return Deployment(root, profile)


def _ask_the_gate(source: Path, out: Path) -> None:
    """The task's questions as gold ones of every environment; those of other types show what an adapter costs elsewhere."""
    questions = read_records(source / "questions.jsonl", Question)
    gold = [
        question.model_copy(update={"id": f"{environment}.{question.id}", "environment": environment})
        for environment in ENVIRONMENTS
        for question in questions
        if question.type == TASK
    ]
    write_records(out / "questions.jsonl", [*(q for q in questions if q.type != TASK), *gold])
    shutil.copyfile(source / "truth.jsonl", out / "truth.jsonl")


def first_feedback(site: Deployment) -> None:
    """What the five environments have in their logs before the first night."""
    asked = site.asked(TASK, slice(0, 5))
    for environment in ("good", "worse"):
        site.ask(environment, asked)
    weather = {"type": "weather", "text": "will it rain?", "options": ()}
    site.ask("judge-down", [question.model_copy(update=weather) for question in asked])
    own, stolen = ([dump_record(event(name, question)) for question in asked] for name in ("corrupt", "good"))
    lines = ["not JSON at all", own[0][: len(own[0]) // 2], own[1].replace("true", '"maybe"'), "\0\ufffd", *stolen]
    (site.events / "corrupt.jsonl").write_text("\n".join([*lines, own[2][:-20]]))
