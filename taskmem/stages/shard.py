"""A shard of environments: one job adapts many, and what goes wrong in one never stops the others.

Every stage of a shard writes `out`/<name>/ for each environment and `out`/outcomes.jsonl with what became of it. An environment
that was skipped or failed is carried through the stages after it untouched, so that the last outcomes name every one with its
reason.
"""

import shutil
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from taskmem.config import Profile, override
from taskmem.errors import UserError
from taskmem.lineage.outcome import OUTCOMES, Outcome
from taskmem.progress import Note, Progress, silent
from taskmem.records import Name, one_line, read_records, write_records
from taskmem.settings import Settings

PER_ENVIRONMENT = frozenset({"mining", "phase_two", "evaluation", "adaptation"})
"""Sections of the profile that an environment may have its own of: not what all of them share, nor the gate."""


class EnvironmentSpec(Settings):
    """One environment of a shard. `adapter` names what is made for it, its folder in every stage; by default the environment.

    `settings` lie over the profile's, for this environment alone. A `control` is trained and evaluated, never promoted.
    """

    environment: Name
    adapter: Name | None = None
    pairs: Literal["mined", "random"] = "mined"
    control: bool = False
    settings: dict[str, Any] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder of this environment in every stage."""
        return self.adapter or self.environment

    def profile(self, shared: Profile) -> Profile:
        """`shared` with this environment's settings; UserError if they touch what all environments share."""
        if foreign := sorted(set(self.settings) - PER_ENVIRONMENT):
            raise UserError(
                f"environment {self.environment}: settings of {', '.join(foreign)} are shared by all environments; "
                f"its own may be of {', '.join(sorted(PER_ENVIRONMENT))}"
            )
        return override(shared, self.settings, f"environment {self.environment}")


class Shard(Settings):
    """A name and the environments that one job handles."""

    name: Name
    environments: Annotated[list[EnvironmentSpec], Field(default_factory=list)]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [spec.name for spec in self.environments]
        if OUTCOMES in names:
            raise ValueError(f"no environment can be called {OUTCOMES}")
        if len(set(names)) != len(names):
            raise ValueError("an environment stands twice in the shard; give each adapter a name of its own")
        return self

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> "Shard":
        """A shard from a pipeline's parameter, where every number has become a float."""
        try:
            return cls.model_validate(_integers(value))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "the shard"
            raise UserError(f"shard: {field}: {first['msg']}; see the pipeline's parameter `shards`") from None

    @property
    def only(self) -> EnvironmentSpec | None:
        """The environment of a shard of one, None of an empty one; UserError if there are several."""
        if len(self.environments) > 1:
            raise UserError(f"shard {self.name}: has {len(self.environments)} environments where one is evaluated")
        return self.environments[0] if self.environments else None


class SkipError(Exception):
    """Raised by an environment's work where there is nothing to do; the message is the reason."""


Work = Callable[[EnvironmentSpec, Profile, Path], Outcome | None]


def log(line: str) -> None:
    """A line on the standard error, where a stage's log takes it from."""
    print(line, file=sys.stderr, flush=True)


def run_shard(
    stage: str,
    shard: Shard,
    profile: Profile,
    before: Path | None,
    out: Path,
    work: Work,
    progress: Progress = silent,
    note: Note = log,
) -> list[Outcome]:
    """Do `work` for every environment that is ready after the stage that wrote `before`; write and return the outcomes.

    `work` gets the environment, its own profile and its folder below `out`. What it raises becomes the environment's
    outcome: SkipError skipped, anything else failed; its folder is then removed and `note` is told why.
    """
    earlier = read_records(before / OUTCOMES, Outcome) if before else []
    outcomes = []
    for number, spec in enumerate(shard.environments):
        known = _earlier(earlier, spec)
        if known is not None and known.status != "ready":
            outcomes.append(known)
        elif before is not None and known is None:
            outcomes.append(_outcome(spec, stage, "failed", f"{before}: nothing is known of this environment there"))
        else:
            outcomes.append(_guarded(stage, spec, profile, out / spec.name, work, note))
        progress(number + 1, len(shard.environments))
    write_records(out / OUTCOMES, outcomes)
    return outcomes


def ready(folder: Path, spec: EnvironmentSpec) -> Path:
    """The folder of an environment in a finished stage; UserError with the reason if it did not get there."""
    outcome = _earlier(read_records(folder / OUTCOMES, Outcome), spec)
    if outcome is None or outcome.status not in ("ready", "kept", "promoted"):
        why = f"{outcome.status} in {outcome.stage}: {outcome.reason}" if outcome else "it is not there"
        raise UserError(f"{folder}: nothing for {spec.name} ({why})")
    return folder / spec.name


def _earlier(outcomes: list[Outcome], spec: EnvironmentSpec) -> Outcome | None:
    return next((o for o in outcomes if (o.environment, o.name) == (spec.environment, spec.name)), None)


def _guarded(stage: str, spec: EnvironmentSpec, profile: Profile, folder: Path, work: Work, note: Note) -> Outcome:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return work(spec, spec.profile(profile), folder) or _outcome(spec, stage, "ready", "")
    except SkipError as reason:
        outcome = _outcome(spec, stage, "skipped", str(reason))
    except UserError as error:
        outcome = _outcome(spec, stage, "failed", str(error))
    except Exception as error:
        traceback.print_exc()
        outcome = _outcome(
            spec, stage, "failed", f"{type(error).__name__}: {error}; the traceback is in the stage's log"
        )
    shutil.rmtree(folder, ignore_errors=True)
    note(f"{outcome.name}: {outcome.status}: {outcome.reason}")
    return outcome


def _outcome(spec: EnvironmentSpec, stage: str, status: Literal["ready", "skipped", "failed"], reason: str) -> Outcome:
    return Outcome(environment=spec.environment, name=spec.name, stage=stage, status=status, reason=one_line(reason))


def _integers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _integers(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_integers(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
