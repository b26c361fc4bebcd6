"""Which judges, answerer and grader a profile uses: the one place that knows there is an embedded world."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from taskmem.agent import Answerer
from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.evaluation.protocols import Evidence, FactChecker, Grader
from taskmem.judge.protocols import HelpfulnessJudge, Judges
from taskmem.world.evidence import WorldEvidence
from taskmem.world.judges import (
    StrongModel,
    WorldAnswerer,
    WorldFactChecker,
    WorldGrader,
    WorldHelpfulness,
    WorldTruth,
    world_judges,
)


@dataclass(frozen=True)
class Backends:
    """Everything outside the policy that a stage may ask; `strong(seed)` gives the off-policy history's memories."""

    judges: Judges
    answerer: Answerer
    grader: Grader
    checker: FactChecker
    evidence: Evidence
    strong: Callable[[int], Callable[[str, int], str]]


def helpfulness_judge(profile: Profile) -> HelpfulnessJudge:
    """The judge of preference mining, which sees memories and questions and never an answer; UserError as `backends_for`."""
    if profile.world is None:
        raise _no_world(profile)
    return WorldHelpfulness()


def _no_world(profile: Profile) -> UserError:
    return UserError(
        f"profile {profile.name}: has no embedded world and no judge endpoint yet; use --profile miniature"
    )


def backends_for(profile: Profile, world: Path | None) -> Backends:
    """The back ends of a profile. `world` is the folder that `taskmem world render` wrote, for a profile with a world.

    Raises UserError where the profile has no world, or the folder holds no truth.
    """
    if profile.world is None:
        raise _no_world(profile)
    # all splits, or one of them
    truths = sorted([*world.glob("truth.jsonl"), *world.glob("[!.]*/truth.jsonl")]) if world else []
    if not truths:
        where = f"{world}: no truth.jsonl there" if world else "--world is missing"
        raise UserError(f"{where}; give the folder that `taskmem world render` wrote")
    truth = WorldTruth.read(*truths)
    return Backends(
        judges=world_judges(truth),
        answerer=WorldAnswerer(),
        grader=WorldGrader(),
        checker=WorldFactChecker(truth),
        evidence=WorldEvidence(),
        strong=lambda seed: StrongModel(truth, seed).memory,
    )
