"""Streams, judges and runs small enough for a test. As a script it is a run of Phase One that is killed on the way."""

import os
import random
import signal
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from taskmem.config import Profile, load_profile
from taskmem.files import sha256_bytes
from taskmem.judge.protocols import Fidelity, JudgeError, Judges
from taskmem.phase_one.train import PhaseOneInputs, train_phase_one
from taskmem.policy.transformers_policy import TransformersPolicy
from taskmem.records import Context, Judge, Question, Segment
from taskmem.world.facts import sample_facts
from taskmem.world.render import SIDE, render_segment

SEED = 1


def film(segment: Segment) -> NDArray[np.uint8]:
    """The two frames of a segment, rendered from its stream and index."""
    rng = random.Random(f"{segment.stream}-{segment.index}")
    return render_segment(sample_facts(rng), rng, frames=2)


def segment(index: int, stream: str = "stream") -> Segment:
    return Segment(
        stream=stream,
        index=index,
        start_s=index * 10.0,
        end_s=index * 10.0 + 10.0,
        source=f"{stream}.mp4",
        clip=f"{stream}/{index:05d}.mp4",
        fps=0.2,
        width=SIDE,
        height=SIDE,
        sha256=sha256_bytes(f"{stream}-{index}"),
    )


def stream(name: str, length: int) -> list[Segment]:
    return [segment(index, name) for index in range(length)]


def context(*indices: int, name: str = "stream") -> Context:
    return Context(segments=tuple(segment(index, name) for index in indices))


def identity(role: str, model: str = "test") -> Judge:
    return Judge.model_validate({"role": role, "model": model, "prompt_sha256": "0" * 64})


class Fidelities:
    """Faithful unless the memory says "wrong"; fails on memories that say `fails_on`."""

    def __init__(self, fails_on: str | None = None, model: str = "test") -> None:
        self.identity = identity("fidelity", model)
        self._fails_on = fails_on

    def fidelity(self, context: Context, memory: str) -> Fidelity:
        if self._fails_on is not None and self._fails_on in memory:
            raise JudgeError("no reply")
        return Fidelity(faithful="wrong" not in memory, coherent=True)


class Redundancies:
    """Non-redundant unless the memory stands among the preceding ones."""

    identity = identity("redundancy")

    def non_redundant(self, context: Context, memory: str) -> bool:
        return memory not in [m.text for m in context.memories]


class Richnesses:
    """Richer: longer. Ties share their mean rank; remembers what it was asked to rank, or always fails."""

    identity = identity("richness")

    def __init__(self, fails: bool = False) -> None:
        self._fails = fails
        self.ranked: list[list[str]] = []

    def rank(self, context: Context, memories: Sequence[str]) -> list[float]:
        self.ranked.append(list(memories))
        if self._fails:
            raise JudgeError("no reply")
        longer = [sum(len(other) > len(memory) for other in memories) for memory in memories]
        return [1 + n + (longer.count(n) - 1) / 2 for n in longer]


class NoHelpfulness:
    """Phase One compares nothing."""

    identity = identity("helpfulness")

    def compare(self, context: Context, questions: Sequence[Question], first: str, second: str) -> Any:
        raise NotImplementedError


def judges_of(fails_on: str | None = None, richness: Richnesses | None = None, model: str = "test") -> Judges:
    return Judges(Fidelities(fails_on, model), Redundancies(), richness or Richnesses(), NoHelpfulness())


def strong(name: str, index: int) -> str:
    return f"segment {index} of {name}"


def boxes_seen(policy: TransformersPolicy) -> float:
    """A validation score: the share of a policy's memories that mention a box."""
    written = policy.write([context(0, name="held"), context(3, name="held")], 16, seed=1)
    return sum("box" in (c.memory or "") for group in written for c in group) / 32


def inputs(**changes: Any) -> PhaseOneInputs:
    given = {
        "segments": [*stream("north", 4), *stream("south", 5)],
        "frames_of": film,
        "judges": judges_of(),
        "strong": strong,
        "validate": boxes_seen,
    }
    return PhaseOneInputs(**{**given, **changes})


def short_profile(**changes: Any) -> Profile:
    """The miniature profile with four steps of two optimiser updates each: two off-policy, two on-policy."""
    profile = load_profile("miniature")
    phase = profile.phase_one.model_copy(
        update={
            "group_size": 3,
            "batch": 2,
            "mini_batch": 1,
            "off_policy_steps": 2,
            "on_policy_steps": 2,
            "warmup_steps": 2,
            "learning_rate": 1e-3,
            "validate_every": 1,
            **changes,
        }
    )
    policy = profile.policy.model_copy(update={"max_completion_tokens": 16})
    return profile.model_copy(update={"policy": policy, "phase_one": phase})


def killed_run(base: Path, out: Path, last_update: int) -> None:
    """Train, and die without warning after an optimiser update."""
    torch.set_num_threads(1)

    updates = count(1)

    def die(done: int, total: int) -> None:
        if next(updates) == last_update:
            os.kill(os.getpid(), signal.SIGKILL)

    train_phase_one(base, inputs(), short_profile(), SEED, out, die)


if __name__ == "__main__":
    killed_run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
