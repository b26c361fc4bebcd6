"""A policy's candidates and the pairs among them, small enough for a test."""

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from taskmem.config import Profile, load_profile
from taskmem.files import sha256_bytes
from taskmem.phase_two.train import Pair
from taskmem.policy.grammar import completion_for
from taskmem.records import Candidate, Context, ContextMemory, Preference, Rollouts, Segment
from taskmem.world.facts import sample_facts
from taskmem.world.render import SIDE, render_segment

SEED = 3
POLICY = "0" * 64
WRITTEN = (
    ("a red box", "in the kitchen"),
    ("a red person", "three lamps lit"),
    ("the door opens", "a red box in the kitchen"),
    ("a red hat", "in the garden"),
    ("a red ball beside a lamp", "the door closes"),
)
"""What was written of five segments: the candidate to prefer, which names red things, and the one to reject."""


def film(segment: Segment) -> NDArray[np.uint8]:
    """The two frames of a segment, rendered from its index."""
    rng = random.Random(segment.index)
    return render_segment(sample_facts(rng), rng, frames=2)


def segment(index: int) -> Segment:
    return Segment(
        stream="stream",
        index=index,
        start_s=index * 10.0,
        end_s=index * 10.0 + 10.0,
        source="stream.mp4",
        clip=f"stream/{index:05d}.mp4",
        fps=0.2,
        width=SIDE,
        height=SIDE,
        sha256=sha256_bytes(str(index)),
    )


def context(index: int) -> Context:
    """A window of up to three segments with a memory of the one before."""
    memories = (ContextMemory(index=index - 1, text="a green cup"),) if index else ()
    return Context(segments=tuple(segment(i) for i in range(max(0, index - 2), index + 1)), memories=memories)


def pairs() -> list[Pair]:
    return [Pair(context(i), completion_for(good), completion_for(bad)) for i, (good, bad) in enumerate(WRITTEN)]


def rollouts(of: Context, memories: Sequence[str]) -> Rollouts:
    return Rollouts(
        context=of.id,
        stream=of.current.stream,
        index=of.current.index,
        memories=of.memories,
        candidates=tuple(
            Candidate(index=i, text=completion_for(m), memory=m, think_tokens=0, memory_tokens=3)
            for i, m in enumerate(memories)
        ),
        policy=POLICY,
        seed=SEED,
    )


def preference(of: Context, chosen: int = 0, rejected: int = 1) -> Preference:
    return Preference(context=of.id, chosen=chosen, rejected=rejected, path_length=1, token_difference=0)


def short_profile(**changes: object) -> Profile:
    """The miniature profile with few steps, two of the five pairs in each but an epoch's last, the vector as trained."""
    profile = load_profile("miniature")
    settings = {"layer": 2, "learning_rate": 0.02, "steps": 4, "batch": 2, "target_norm": None, **changes}
    return profile.model_copy(update={"phase_two": profile.phase_two.model_copy(update=settings)})
