"""The numbers of a night, and how they get from its last stage to the exit handler, which can take no task's output."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from taskmem.config import Profile
from taskmem.endpoint.ledger import LEDGER, read_ledger
from taskmem.endpoint.purse import NOTHING
from taskmem.lineage.outcome import Outcome
from taskmem.records import Index, Record, read_json
from taskmem.registry import kept_in_a_row
from taskmem.registry.objects import parse, put_content, stored, to_bytes
from taskmem.settings import NonNegative, Positive, Share
from taskmem.store import Store

FOLDER = "nights"
End = Literal["promoted", "kept", "skipped", "failed"]
ENDS: tuple[End, ...] = get_args(End)
JUDGED = "summary.json"
"""What judge_scoring leaves beside its judgements."""
ASKING = ("judgements", "preferences", "verdicts", "champion")
"""The artifacts of the stages that ask judges, answerer and grader: below them lie the ledgers of their calls."""


class Night(Record):
    """What became of a run's environments, and what judging them took.

    `kept_nights` is the shortest row of challengers without a promotion, up to this night's, of the environments that the gate
    held one of; 0 after a promotion, null where it held none. `unscored` is the share of the candidates that a judge failed on.
    `cost` is in the currency of the profile's `budget`, null where that has no bound in money.
    """

    outcomes: dict[End, Index]
    kept_nights: Index | None = None
    unscored: Share | None = None
    cost: NonNegative | None = None
    budget: Positive | None = None


def night_of(
    outcomes: Sequence[Outcome], registry: Store, artifacts: Mapping[str, Sequence[Path]], profile: Profile
) -> Night:
    """The numbers of a night whose environments ended in `outcomes`; `artifacts` are lineage_record's, by name.

    UserError if the registry, the judgements' summary or a ledger is damaged.
    """
    held = {outcome.environment for outcome in outcomes if outcome.status in ("promoted", "kept")}
    (judgements,) = artifacts["judgements"]
    judged = read_json(judgements / JUDGED)
    return Night(
        outcomes={end: sum(outcome.status == end for outcome in outcomes) for end in ENDS},
        kept_nights=min((kept_in_a_row(registry, environment) for environment in held), default=None),
        unscored=judged["unscored"] / max(1, judged["candidates"]),
        cost=_cost([path for name in ASKING for path in artifacts[name]]),
        budget=profile.calls.budget.money if profile.calls else None,
    )


def failed_night(environments: Sequence[str]) -> Night:
    """A night that ended before its numbers were known: nothing came of any environment."""
    return Night(outcomes={**dict.fromkeys(ENDS, 0), "failed": len(set(environments))})


def hand_over(store: Store, run: str, night: Night) -> None:
    """Leave the numbers of the run `run` in the store; done twice it is as done once."""
    put_content(store, _key(run), to_bytes(night))


def handed_over(store: Store, run: str) -> Night | None:
    """The numbers that were left for the run, None if there are none; UserError if they are damaged."""
    object_ = stored(store, _key(run))
    return None if object_ is None else parse(object_.data, Night, _key(run))


def forget(store: Store, run: str) -> None:
    """Remove what was left for the run."""
    store.delete(_key(run))


def _key(run: str) -> str:
    return f"{FOLDER}/{run}"


def _cost(folders: Sequence[Path]) -> float:
    charges = [
        call.charge
        for folder in folders
        for ledger in sorted(folder.rglob(LEDGER))
        for call in read_ledger(ledger.parent)
    ]
    return sum(charges, NOTHING).money
