"""lineage_record: what a run was made of and what became of it, in a record, and in the lineage repository if there is one."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.lineage.layout import Member
from taskmem.lineage.night import hand_over, night_of
from taskmem.lineage.outcome import Outcome
from taskmem.lineage.record import write_lineage
from taskmem.lineage.repository import record_run
from taskmem.lineage.run import Run
from taskmem.progress import Note, unheard
from taskmem.store import open_store

WORK = ".lineage"


@dataclass(frozen=True)
class Places:
    """URLs: the object store of the registry, the lineage's git repository and its DVC remote; "" for no such.

    `run` is the run that has an exit handler, to which the night's numbers go by way of the store; "" for none.
    """

    store: str
    lineage: str
    remote: str
    run: str = ""


class Spec(Protocol):
    """An environment as the pipeline was told of it."""

    @property
    def environment(self) -> str:
        """Whose feedback was used."""

    @property
    def name(self) -> str:
        """What the adapter is called, and its folder in every stage."""

    @property
    def pairs(self) -> str:
        """Where its pairs come from: mined or random."""

    def profile(self, shared: Profile) -> Profile:
        """Its own settings; UserError if it may not have them."""


def record_stage(
    artifacts: Mapping[str, Sequence[Path]],
    outcomes: Sequence[Outcome],
    specs: Iterable[Spec],
    profile: Profile,
    image: str,
    seed: int,
    where: Places,
    out: Path,
    summary: Path,
    note: Note = unheard,
) -> None:
    """Write the record to `out` and the table to `summary`; without `where.lineage` this is all.

    Then the run is recorded in the lineage repository, with a folder beside `out` for temporary files. `note` is told the
    steps and the commit. UserError as `write_lineage` and `record_run`.
    """
    if where.run:
        # before what can fail: a night whose record cannot be written has moved its champions all the same
        registry = open_store(where.store)
        hand_over(registry, where.run, night_of(outcomes, registry, artifacts, profile))
    write_lineage(artifacts, outcomes, profile, image, seed, out, summary)
    if not where.lineage:
        return
    run = Run(out, artifacts, members(specs, profile))
    store = open_store(where.store)
    commit = record_run(run, where.lineage, where.remote, store, out.with_name(WORK), note=note)
    note(f"run {run.id} is commit {commit}")


def members(specs: Iterable[Spec], shared: Profile) -> dict[str, Member]:
    """The environments of a run by adapter, each with its own settings; those whose settings were refused never ran."""
    found = {}
    for spec in specs:
        with suppress(UserError):
            own = spec.profile(shared)
            found[spec.name] = Member(spec.environment, spec.name, own, drawn=spec.pairs == "random")
    return found
