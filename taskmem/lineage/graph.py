"""The stages of one environment as DVC knows them: dvc.yaml, and dvc.lock where the shared inputs are known by digest alone."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml
from ruamel.yaml import YAML

from taskmem.feedback.kept import EVENTS

PARAMS, PIPELINE, LOCK = "params.yaml", "dvc.yaml", "dvc.lock"
SINCE = "since.json"
CHAMPION = "champion"
SHARED = ("segments", "policy", "rollouts", "judgements", "gate_segments", "gate_questions", CHAMPION)
"""What all environments of a run use, each a folder below shared/."""
_SHARED = "../../shared/"


@dataclass(frozen=True)
class Stage:
    """A stage of an environment: `inputs` lie beside it, `shared` below shared/; `settings` are sections of the profile.

    `command` has DVC's ${...} for what params.yaml holds.
    """

    name: str
    command: str
    inputs: tuple[str, ...]
    shared: tuple[str, ...]
    params: tuple[str, ...]
    out: str

    def described(self, shared: bool) -> dict[str, Any]:
        """The stage's entry in dvc.yaml, with or without the inputs that all environments share."""
        above = [f"{_SHARED}{kind}" for kind in self.shared] if shared else []
        return {"cmd": self.command, "deps": [*self.inputs, *above], "params": list(self.params), "outs": [self.out]}


STAGES = (
    Stage(
        name="collect",
        command=f"taskmem collect {EVENTS} --out feedback",
        inputs=(EVENTS,),
        shared=(),
        params=("environment", "profile.mining.recent_questions", "profile.mining.questions_per_source"),
        out="feedback",
    ),
    Stage(
        name="mine",
        command=f"taskmem mine {_SHARED}judgements --rollouts {_SHARED}rollouts --segments {_SHARED}segments"
        " --questions feedback --environment ${environment} --out preferences --seed ${seed}",
        inputs=("feedback",),
        shared=("judgements", "rollouts", "segments"),
        params=("seed", "environment", "profile.policy.window", "profile.mining"),
        out="preferences",
    ),
    Stage(
        name="phase_two",
        command=f"taskmem phase-two preferences --policy {_SHARED}policy --rollouts {_SHARED}rollouts"
        f" --segments {_SHARED}segments --out . --name adapter --seed ${{seed}}",
        inputs=("preferences",),
        shared=("policy", "rollouts", "segments"),
        params=("seed", "profile.video.limits", "profile.policy", "profile.phase_two"),
        out="adapter",
    ),
    Stage(
        name="gate",
        command=f"taskmem gate adapter --policy {_SHARED}policy --champion {_SHARED}champion"
        f" --segments {_SHARED}gate_segments --questions {_SHARED}gate_questions/questions.jsonl --feedback feedback"
        " --environment ${environment} --out verdict --seed ${seed}",
        inputs=("adapter", "feedback"),
        shared=("policy", "champion", "gate_segments", "gate_questions"),
        params=(
            *("seed", "environment", "profile.video.limits", "profile.policy"),
            *("profile.mining", "profile.evaluation", "profile.gate"),
        ),
        out="verdict",
    ),
)
OUTS = tuple(stage.out for stage in STAGES)


@dataclass(frozen=True)
class Variant:
    """How one environment's stages differ from another's.

    since: its feedback was collected from a watermark on. drawn: its pairs were drawn at random, which no command does, so they
    are data and no stage's output. held: its champion had an adapter, and was evaluated in the gate. world: its judges know
    the rendered truth.
    """

    since: bool = False
    drawn: bool = False
    held: bool = False
    world: bool = False

    def stages(self, made: Iterable[str]) -> list[Stage]:
        """The stages whose outputs are among `made`, in their order."""
        there = set(made)
        stages = [self._stage(stage) for stage in STAGES if stage.out in there]
        return [stage for stage in stages if not (self.drawn and stage.name == "mine")]

    def _stage(self, stage: Stage) -> Stage:
        command, inputs, shared = f"{stage.command} --profile {PARAMS}", stage.inputs, stage.shared
        if stage.name == "collect" and self.since:
            command, inputs = f"{command} --since {SINCE}", (*inputs, SINCE)
        if stage.name == "gate" and self.world:
            command = f"{command} --world {_SHARED}gate_questions"
        if stage.name == "gate" and self.held:
            command = command.replace(f"{_SHARED}{CHAMPION}", CHAMPION)
            inputs, shared = (*inputs, CHAMPION), tuple(kind for kind in shared if kind != CHAMPION)
        return replace(stage, command=command, inputs=inputs, shared=shared)


def pipeline(stages: Sequence[Stage], shared: bool = True) -> str:
    """The text of dvc.yaml."""
    return to_yaml({"stages": {stage.name: stage.described(shared) for stage in stages}})


def completed_lock(lock: str, stages: Sequence[Stage], shared: Mapping[str, str]) -> str:
    """`lock`, which DVC wrote for `pipeline(stages, shared=False)`, as it were with the shared inputs.

    `shared` has the text of each one's .dvc file. So an input that a run before this one recorded need not be there again.
    """
    # DVC's own way of writing it: whoever repeats a stage with the same result changes no byte
    form = YAML()
    document = form.load(lock)
    for stage in stages:
        entry = document["stages"][stage.name]
        above = [{"path": f"{_SHARED}{kind}", **_content(shared[kind])} for kind in stage.shared]
        deps = sorted([*entry.get("deps", ()), *above], key=lambda dep: str(dep["path"]))
        order = ("cmd", "deps", "params", "outs")
        whole = {**entry, "deps": deps}
        document["stages"][stage.name] = {name: whole[name] for name in order if name in whole}
    text = io.StringIO()
    form.dump(document, text)
    return text.getvalue()


def _content(text: str) -> dict[str, Any]:
    (out,) = yaml.safe_load(text)["outs"]
    return {name: out[name] for name in ("hash", "md5", "size", "nfiles") if name in out}


def to_yaml(value: Any) -> str:
    """A document, its keys in the order given and no line folded."""
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10_000))
