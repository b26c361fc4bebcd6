"""Which judges, answerer and grader a profile uses: the one place that knows there is an embedded world."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from taskmem.agent import Answerer
from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.evaluation.protocols import Evidence, FactChecker, Grader
from taskmem.judge.protocols import HelpfulnessJudge, Judges
from taskmem.records import Question
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

if TYPE_CHECKING:  # the HTTP client takes half a second to import, and the embedded world needs none
    from taskmem.endpoint.client import Endpoint
    from taskmem.endpoint.media import Clips


CALLS = ".calls"
"""Below a stage's output, where roles behind a network keep their answers and their ledger: no environment has this name."""


@dataclass(frozen=True)
class Backends:
    """Everything outside the policy that a stage may ask; `strong(seed)` gives the off-policy history's memories."""

    judges: Judges
    answerer: Answerer
    grader: Grader
    checker: FactChecker
    evidence: Evidence
    strong: Callable[[int], Callable[[str, int], str]]


@dataclass(frozen=True)
class Remote:
    """What the roles behind a network need: the client, and where the clips they are shown lie."""

    endpoint: "Endpoint"
    clips: "Clips"


def open_remote(profile: Profile, calls: Path, segments: Path) -> Remote | None:
    """The client of a profile that asks over HTTP, else None; close its `endpoint` at the end.

    `calls` holds cache and ledger and may outlive many runs, `segments` is the segmentation's folder whose clips are shown.
    Keys come from the environment and mounted files. UserError for a missing key or a folder that cannot be used.
    """
    if profile.world is not None or profile.calls is None:
        return None
    from taskmem.endpoint.client import Endpoint  # noqa: PLC0415 - see above
    from taskmem.endpoint.media import Clips  # noqa: PLC0415

    clips = Clips.below(segments, profile.video.limits)
    return Remote(Endpoint(profile.calls, calls, os.environ), clips)


def answerer_for(profile: Profile, remote: Remote | None = None) -> Answerer:
    """The answerer of a profile, which needs no world's truth: a service has none. UserError as `backends_for`."""
    if profile.world is not None:
        return WorldAnswerer()
    from taskmem.agent.http import HttpAnswerer  # noqa: PLC0415 - see above

    return HttpAnswerer(_given(profile, remote).endpoint)


@contextmanager
def opened_remote(profile: Profile, segments: Path, out: Path) -> Iterator[Remote | None]:
    """`open_remote` for the length of a stage that writes to `out`, with its answers and ledger in `out`/.calls.

    A stage that is run again asks for nothing that was answered. UserError at the end if a role failed in more than the set share
    of its calls.
    """
    remote = open_remote(profile, out / CALLS, segments)
    if remote is None:
        yield None
        return
    with remote.endpoint:
        yield remote
        remote.endpoint.check()


@contextmanager
def opened_backends(profile: Profile, world: Path | None, segments: Path, out: Path) -> Iterator["Backends"]:
    """`backends_for` for the length of a stage that reads `segments` and writes to `out`; UserError as `opened_remote`."""
    with opened_remote(profile, segments, out) as remote:
        yield backends_for(profile, world, remote)


def helpfulness_judge(profile: Profile, remote: Remote | None = None) -> HelpfulnessJudge:
    """The judge of preference mining, which sees memories and questions and never an answer; UserError as `backends_for`."""
    if profile.world is not None:
        return WorldHelpfulness()
    from taskmem.judge.http import HttpHelpfulness  # noqa: PLC0415 - see above

    return HttpHelpfulness(_given(profile, remote).endpoint)


def backends_for(profile: Profile, world: Path | None, remote: Remote | None = None) -> Backends:
    """The back ends of a profile: the world's, for a profile with a world, else those of `remote`.

    `world` is the folder that `taskmem world render` wrote. Raises UserError where neither is there, the folder holds
    no truth, or `calls` names no server for a role.
    """
    if profile.world is None:
        return _remote_backends(profile, _given(profile, remote))
    # all splits, or one of them
    truths = sorted([*world.glob("truth.jsonl"), *world.glob("[!.]*/truth.jsonl")]) if world else []
    if not truths:
        where = f"{world}: no truth.jsonl there" if world else "--world is missing"
        raise UserError(f"{where}; give the folder that `taskmem world render` wrote")
    truth = WorldTruth.read(*truths)
    return Backends(
        judges=world_judges(truth),
        answerer=answerer_for(profile),
        grader=WorldGrader(),
        checker=WorldFactChecker(truth),
        evidence=WorldEvidence(),
        strong=lambda seed: StrongModel(truth, seed).memory,
    )


def _given(profile: Profile, remote: Remote | None) -> Remote:
    if remote is None:
        raise UserError(
            f"profile {profile.name}: has no embedded world and no judge endpoint in use; set `calls`, or use --profile "
            "miniature"
        )
    return remote


def _remote_backends(profile: Profile, remote: Remote) -> Backends:
    from taskmem.evaluation.http import HttpGrader  # noqa: PLC0415 - see above
    from taskmem.judge.http import http_judges  # noqa: PLC0415

    def no_strong_model(_: int) -> Callable[[str, int], str]:
        raise UserError(
            f"profile {profile.name}: has no strong model for an off-policy history; set phase_one.off_policy_steps to 0"
        )

    return Backends(
        judges=http_judges(remote.endpoint, remote.clips),
        answerer=answerer_for(profile, remote),
        grader=HttpGrader(remote.endpoint),
        checker=_NoTruth(),
        evidence=_NoEvidence(),
        strong=no_strong_model,
    )


class _NoTruth:
    """Of recorded video no list of facts exists; implements `FactChecker`."""

    def check(self, stream: str, index: int, memory: str) -> tuple[int, int]:
        """UserError: a count of wrong facts would be made up."""
        raise UserError(
            f"segment {index} of stream {stream}: no ground truth to count facts against; only a world has one"
        )


class _NoEvidence:
    """Of recorded video nobody has marked what answers a question; implements `Evidence`, knowing nothing."""

    def moment(self, question: Question) -> float | None:
        """None."""
        return None

    def phrase(self, question: Question) -> str | None:
        """None."""
        return None

    def said(self, question: Question, memory: str) -> tuple[int, int] | None:
        """None."""
        return None
