"""What a stage is called on the screen and in the file system."""

import re
import threading
from collections.abc import Sequence
from typing import Any

LONGEST_ITEM = 30
_ITERATION = re.compile(r"-iteration-(\d+)")
_UNSAFE = re.compile(r"[^A-Za-z0-9._@-]+")


class Names:
    """The names of one run's stages; no two are the same, nor are the file names made from them."""

    def __init__(self, spec: Any) -> None:
        self._channels = loop_channels(spec)
        self._taken: set[str] = set()
        self._lock = threading.Lock()

    def claim(self, task: Any, resource: str, store: Any) -> str:
        """A name for the task: its display name and the items of the loops around it.

        `resource` is the pipeline's resource name, which holds the iterations; `store` the IOStore the task reads from.
        """
        items = [item for item in (_parent_input(store, channel) for channel in self._channels) if item is not None]
        wanted = label(task.task_info.name, items, [int(n) for n in _ITERATION.findall(resource)])
        with self._lock:
            name, n = wanted, 1
            while file_name(name) in self._taken:
                n += 1
                name = f"{wanted} ({n})"
            self._taken.add(file_name(name))
        return name


def label(name: str, items: Sequence[Any], iterations: Sequence[int]) -> str:
    """`name/item` for every loop around the stage, outermost first.

    An item is called by its text if that is short, its number or its field `name`, and otherwise by its place (from 1).
    """
    known = items if len(items) == len(iterations) else [None] * len(iterations)
    return "/".join([name, *(_word(item) or str(n + 1) for item, n in zip(known, iterations, strict=True))])


def file_name(name: str) -> str:
    """`name` as the stem of a file."""
    return _UNSAFE.sub("-", name.replace("/", ".")).strip("-.") or "stage"


def loop_channels(spec: Any) -> list[str]:
    """The names under which the pipeline's loops hand on their items, outer loops before those inside them."""
    channels: dict[str, None] = {}

    def visit(component: Any) -> None:
        for task in component.dag.tasks.values():
            if task.WhichOneof("iterator") == "parameter_iterator":
                channels[task.parameter_iterator.item_input] = None
            visit(spec.components[task.component_ref.name])

    visit(spec.root)
    return list(channels)


def _parent_input(store: Any, channel: str) -> Any:
    try:
        return store.get_parent_input(channel)
    except ValueError:
        return None


def _word(item: Any) -> str | None:
    if isinstance(item, dict):
        item = item.get("name")
    # numbers come out of Kubeflow as floats
    if isinstance(item, float) and item.is_integer():
        item = int(item)
    return str(item) if isinstance(item, (str, int)) and 0 < len(str(item)) <= LONGEST_ITEM else None
