"""Who does what of a step: which slots a process writes the rollouts of, and which rollouts it learns from.

A group is written and judged whole, by one process. A mini-batch is learned from by all, and may cut through a group: with the
paper's batch on 32 GPUs each learns from two rollouts of eight.
"""

from dataclasses import dataclass

from taskmem.config import PhaseOneSettings
from taskmem.errors import UserError
from taskmem.phase_one.ranks import Ranks


@dataclass(frozen=True)
class Piece:
    """The rollouts `first` to before `last` of one slot's group."""

    slot: int
    first: int
    last: int


@dataclass(frozen=True)
class Share:
    """One process's part of a step.

    `slots` are those that it writes, `passes` the forward passes of the whole step, in order: each the pieces of one packed
    batch, all of one length. `accumulation` passes make an optimiser update, and `micro_batch` rollouts a pass.
    """

    slots: range
    passes: tuple[tuple[Piece, ...], ...]
    accumulation: int
    micro_batch: int


def share_of(phase: PhaseOneSettings, ranks: Ranks) -> Share:
    """The part of process `ranks.rank`; UserError if the batch cannot be cut into equal parts."""
    if phase.batch % ranks.count:
        raise UserError(
            f"phase_one.batch: {phase.batch} contexts cannot be shared by {ranks.count} processes; make it a multiple, or "
            "start fewer"
        )
    size, rollouts = phase.group_size, phase.mini_batch * phase.group_size
    if rollouts % ranks.count:
        raise UserError(
            f"phase_one.mini_batch: {rollouts} rollouts cannot be shared by {ranks.count} processes; make it a multiple, "
            "or start fewer"
        )
    own = rollouts // ranks.count
    micro = phase.spread.micro_batch or own
    unit = min(micro, size)
    if own % micro or size % unit or micro % unit:
        raise UserError(
            f"phase_one.spread.micro_batch: {micro} rollouts neither divide nor are made of groups of {size}, or do not "
            f"divide the {own} that each of {ranks.count} processes has of a mini-batch; give another, 1 always does"
        )
    each = phase.batch // ranks.count
    starts = range(ranks.rank * own, (ranks.rank + 1) * own, micro)
    passes = [
        tuple(_piece(update * phase.mini_batch, start + offset, unit, size) for offset in range(0, micro, unit))
        for update in range(phase.batch // phase.mini_batch)
        for start in starts
    ]
    return Share(range(ranks.rank * each, (ranks.rank + 1) * each), tuple(passes), own // micro, micro)


def _piece(first_slot: int, rollout: int, length: int, size: int) -> Piece:
    slot, first = divmod(rollout, size)
    return Piece(first_slot + slot, first, first + length)
