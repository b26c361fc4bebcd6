"""A deployment whose recent questions are partly a poisoner's: its log, its pairs, its adapter, and who is named for them.

The log is made of a measured run's own deployment questions. Several users ask about the task; one source asks about another
type in the same environment, which is all that a poisoner can do: answers never reach mining.
"""

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taskmem.backends import backends_for
from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.evaluation.metrics import Graded
from taskmem.feedback import log_path, read_collection
from taskmem.files import sha256_bytes
from taskmem.loop.tasks import ADAPTER, choose_tasks
from taskmem.phase_two.frozen import FrozenPolicy
from taskmem.phase_two.influence import leading
from taskmem.phase_two.train import INFLUENCE
from taskmem.records import FeedbackEvent, Preference, Question, read_json, read_records, write_records
from taskmem.stages.adapt import phase_two
from taskmem.stages.collect import collect_environment
from taskmem.stages.common import PREFERENCES, QUESTIONS, SUMMARY, read_graded
from taskmem.stages.deploy import FIRST_DAY
from taskmem.stages.evaluate import streaming_eval
from taskmem.stages.mining import preference_mining

POISONER = sha256_bytes("poisoner")


@dataclass(frozen=True)
class Run:
    """A finished run of the loop, read only: its folder, its task, and the type that a poisoner asks about."""

    folder: Path
    task: str
    other: str

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def policy(self) -> Path:
        """Its Phase One policy."""
        return self.folder / "phase_one" / "policy"


def measured_runs(folder: Path) -> list[Run]:
    """The finished runs of bench-learning; UserError if there are none."""
    done = sorted(path.parent for path in folder.glob("*/results.json"))
    if not done:
        raise UserError(f"{folder}: no finished runs there; run make bench-learning first, or give --runs")
    # the other type is the one that the loop's own control is adapted to
    others = [choose_tasks(read_json(path / "development" / SUMMARY)["by_type"]) for path in done]
    return [Run(path, task, other) for path, (task, other) in zip(done, others, strict=True)]


@dataclass(frozen=True)
class Crowd:
    """Who asks: so many recent questions, those that are not the poisoner's in turn from so many users."""

    questions: int
    users: int


def recent_events(run: Run, crowd: Crowd, poisoned: int, seed: int) -> list[FeedbackEvent]:
    """The log of an environment in which `poisoned` of the crowd's questions are one source's and about the other type.

    The honest ones are those of a log with more poison, and further ones. UserError if the run's deployment has too few users or
    questions.
    """
    asked = read_records(run.folder / "world" / "deployment" / QUESTIONS, Question)
    rng = random.Random(f"poison-{seed}")
    streams = sorted({q.stream for q in asked})
    each = -(-crowd.questions // crowd.users)
    own = {stream: [q for q in asked if q.stream == stream and q.type == run.task] for stream in streams}
    other = [q for q in asked if q.type == run.other]
    if len(streams) < crowd.users or min(map(len, own.values())) < each or len(other) < crowd.questions:
        raise UserError(f"{run.folder}: too few questions in its deployment for {crowd}; measure longer runs")
    users = rng.sample(streams, crowd.users)
    turns = zip(*(rng.sample(own[user], each) for user in users), strict=True)
    honest = [q for turn in turns for q in turn][: crowd.questions - poisoned]
    bad = rng.sample(other, crowd.questions)[:poisoned]
    events = [_event(q, run.task, sha256_bytes(f"user of {q.stream}")) for q in honest]
    events += [_event(q, run.task, POISONER) for q in bad]
    return rng.sample(events, len(events))


def _event(question: Question, environment: str, source: str) -> FeedbackEvent:
    return FeedbackEvent(
        id=question.id,
        environment=environment,
        source=source,
        time=FIRST_DAY,
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


class Night:
    """One adaptation of a run's environment with a poisoned log, below the folder `out`: mined once, trained with any cap."""

    def __init__(self, run: Run, crowd: Crowd, poisoned: int, profile: Profile, seed: int, out: Path) -> None:
        self._run, self._profile, self._seed, self.out = run, profile, seed, out
        shutil.rmtree(out, ignore_errors=True)
        self._backends = backends_for(profile, run.folder / "world")
        log = log_path(out / "events", run.task)
        write_records(log, recent_events(run, crowd, poisoned, seed))
        collect_environment(log.parent, run.task, None, profile, out / "feedback")
        self.sources = read_collection(out / "feedback").sources[run.task]
        preference_mining(
            run.folder / "rollouts",
            run.folder / "judgements",
            run.folder / "segments" / "deployment",
            out / "feedback",
            run.task,
            self._backends.judges.helpfulness,
            profile,
            seed,
            out / "preferences",
        )
        self.pairs = read_records(out / "preferences" / PREFERENCES, Preference)

    def graded(self, name: str, profile: Profile, cache: Path) -> list[Graded]:
        """Train the adapter `name` with the settings of `profile`, and evaluate it on the held-out streams."""
        folder, run = self.out / name, self._run
        phase_two(
            self.out / "preferences",
            run.folder / "rollouts",
            run.folder / "segments" / "deployment",
            FrozenPolicy(run.policy),
            ADAPTER,
            profile,
            self._seed,
            folder,
            cache=cache,
        )
        streaming_eval(
            run.folder / "segments" / "held_out",
            run.folder / "world" / "held_out" / QUESTIONS,
            run.policy,
            self._backends,
            profile,
            self._seed,
            folder / "arm",
            adapter=folder / ADAPTER,
        )
        return read_graded(folder / "arm")

    def named(self, name: str) -> list["Named"]:
        """What an adapter's influence.json says of each source, the one with the largest part in the training first."""
        recorded = read_json(self.out / name / ADAPTER / INFLUENCE)["sources"]
        asked = asked_by(self.sources)
        return [
            Named(source, asked[source], part, of["norm"], of["norm"] / asked[source], of["agreement"])
            for source, part in leading(recorded, len(recorded))
            for of in [recorded[source]]
        ]


@dataclass(frozen=True)
class Named:
    """One source: its questions; and of influence.json its part in the training, norm, norm per question, and agreement.

    Part and norm grow with what a source asks, so a busy honest one is first by them too. The agreement alone says which way a
    source pulls.
    """

    source: str
    questions: float
    part: float
    norm: float
    norm_per_question: float
    agreement: float


def asked_by(sources: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """How many questions each source asked; one that several sources asked counts for each in equal parts."""
    names = sorted({name for of in sources.values() for name in of})
    return {name: sum((name in of) / len(of) for of in sources.values()) for name in names}
