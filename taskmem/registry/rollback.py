"""Back to an earlier champion, or to no adapter."""

from collections.abc import Sequence
from datetime import datetime

from taskmem.errors import UserError
from taskmem.registry.champion import ChampionMovedError, Pointer, next_entry, promotions
from taskmem.registry.log import Present, Promotion
from taskmem.registry.objects import checked_version
from taskmem.registry.versions import read_files, read_manifest
from taskmem.store import Conflict, Store

NO_ADAPTER = "none"
ATTEMPTS = 100  # each of them is lost to somebody who moved the champion


def rollback(
    store: Store, environment: str, by: str, time: datetime, to: str | None = None, reason: str | None = None
) -> Pointer:
    """Make an earlier champion the champion again: the version `to`, "none" for no adapter, or the one before this one.

    Rolling back again without `to` leads further back, to no adapter in the end. An environment that is there already stays as
    it is, so that of several who do the same at once one moves the champion and all get its pointer. "none" needs nothing but the
    log's last entry. ChampionMovedError if the champion that was to be left has been replaced by a third one meanwhile;
    UserError if there is nothing to go back to, `to` has never been champion, or it is not whole.
    """
    chain, goal = promotions(environment), None
    if to is not None:
        goal = None if to == NO_ADAPTER else checked_version(to)
    left: Pointer | None = None
    for _ in range(ATTEMPTS):
        present = chain.present(store)
        now = present.pointer
        if now is None:
            raise UserError(f"environment {environment}: has never had a champion; there is nothing to roll back")
        if left is None:
            left = now
            goal = _before(now, list(chain.log(store, present).values())) if to is None else goal
        if now.version == goal:
            return now
        if to is None and now.version != left.version:
            raise ChampionMovedError(environment, left, now, "look at its log and roll back again if you still want to")
        try:
            return chain.move(store, present, _entry(store, present, environment, goal, by, time, reason))
        except Conflict:
            continue
    raise UserError(f"environment {environment}: its champion moved {ATTEMPTS} times meanwhile; roll back again")


def _entry(
    store: Store,
    present: Present[Promotion, Pointer],
    environment: str,
    goal: str | None,
    by: str,
    time: datetime,
    reason: str | None,
) -> Promotion:
    if goal is None:
        nothing = {"version": None, "policy": None, "verdict": None, "manifest": None}
        return next_entry(present, environment, "retire", by, time, reason, **nothing)
    log = promotions(environment).log(store, present).values()
    known = next((entry for entry in reversed(log) if entry.version == goal), None)
    if known is None:
        raise UserError(f"{environment}@{goal}: has never been champion; promote it on a verdict instead")
    read_files(store, read_manifest(store, environment, goal, known.manifest))
    evidence = {"policy": known.policy, "verdict": known.verdict, "manifest": known.manifest}
    return next_entry(present, environment, "rollback", by, time, reason, version=goal, **evidence)


def _before(now: Pointer, log: Sequence[Promotion]) -> str | None:
    """The champion before this one: what a promotion replaced comes back, what a rollback left does not."""
    past: list[str] = []
    for entry in log:
        if entry.version is None:
            past.clear()
        elif entry.action == "rollback" and entry.version in past:
            while past[-1] != entry.version:
                past.pop()
        else:
            past.append(entry.version)
    if not past:
        raise UserError(f"environment {now.environment}: has no adapter already; there is nothing before that")
    return past[-2] if len(past) > 1 else None
