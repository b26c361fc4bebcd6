"""Which task the demonstration adapts to, and the arms that are adapted: its own and two controls."""

from collections.abc import Mapping
from typing import Any

from taskmem.errors import UserError

LEAST_PRECISION = 0.75
OWN, OTHER, RANDOM = "phase_two", "phase_two_other_task", "phase_two_random_pairs"
ADAPTED = (OWN, OTHER, RANDOM)
ADAPTER = "adapter"
TASK_PROMPT = "task_prompt"
Shard = dict[str, Any]


def choose_tasks(by_type: Mapping[str, Mapping[str, float]]) -> tuple[str, str]:
    """The two question types with most headroom for focus, the most first.

    Headroom is low coverage; only types of precision LEAST_PRECISION or more count, for what is not seen cannot be focused on.
    UserError if there are fewer than two.
    """
    seen = [kind for kind, m in by_type.items() if m["precision"] >= LEAST_PRECISION]
    if len(seen) < 2:
        raise UserError(
            f"development split: precision is {LEAST_PRECISION} or more for {seen} only; train Phase One longer"
        )
    task, other, *_ = sorted(seen, key=lambda kind: (by_type[kind]["coverage"], kind))
    return task, other


def adapted_shards(task: str, other: str) -> list[Shard]:
    """One shard for each adapted arm, as a pipeline loops over them."""
    return [
        _shard(OWN, {"environment": task, "adapter": OWN}),
        _shard(OTHER, {"environment": other, "adapter": OTHER, "control": True}),
        _shard(RANDOM, {"environment": task, "adapter": RANDOM, "control": True, "pairs": "random"}),
    ]


def prompted_shard(task: str) -> Shard:
    """The arm that is told the task in its prompt instead."""
    return _shard(TASK_PROMPT, {"environment": task, "adapter": TASK_PROMPT})


def _shard(name: str, environment: dict[str, Any]) -> Shard:
    return {"name": name, "environments": [environment]}
