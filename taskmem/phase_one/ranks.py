"""The processes that train together (torchrun's contract): which one this is, and what they tell one another."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from taskmem.errors import UserError
from taskmem.files import canonical_json


@dataclass(frozen=True)
class Ranks:
    """This process's number among `count`, and its number on its node."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Ranks":
        """As torchrun told this process; one process alone where it told nothing. UserError for numbers that are none."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        given = [environment.get(name, default) for name, default in zip(names, "010", strict=True)]
        if not all(number.isdecimal() for number in given) or int(given[0]) >= int(given[1]):
            raise UserError(
                f"{', '.join(names)} are {', '.join(given)}: not a process of torchrun; start it with torchrun"
            )
        return cls(*map(int, given))

    @property
    def first(self) -> bool:
        """Whether this is the process that writes what is written once."""
        return self.rank == 0

    def own(self, out: Path) -> Path:
        """A folder that no other process writes to: `out` for the first, one below it for each other."""
        return out if self.first else out / f".rank-{self.rank}"

    def take_device(self) -> None:
        """Let "cuda" mean this process's own accelerator."""
        if torch.cuda.is_available():
            torch.cuda.set_device(self.local)

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, by rank; all must call it. A value is JSON, for what comes from another process is parsed.

        Needs the process group that the trainer opens, unless there is one process.
        """
        if self.count == 1:
            return [value]
        device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
        data = torch.frombuffer(bytearray(canonical_json(value).encode()), dtype=torch.uint8).to(device)
        sizes = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(self.count)]
        dist.all_gather(sizes, torch.tensor([len(data)], device=device))
        lengths = [int(size) for size in sizes]
        rows = [data.new_zeros(max(lengths)) for _ in lengths]
        dist.all_gather(rows, torch.nn.functional.pad(data, (0, max(lengths) - len(data))))
        parts = zip(rows, lengths, strict=True)
        return [json.loads(bytes(row[:length].cpu().numpy().tobytes())) for row, length in parts]

    def wait(self) -> None:
        """Go on when all have come here."""
        self.gather(None)

    def all(self, said: bool) -> bool:
        """Whether all say so; all must call it."""
        return all(self.gather(said))


def as_forward(wrapper: Any, function: Callable[[Any], Any]) -> Any:
    """`function(model)` run as the forward pass of `wrapper`, the model itself or DDP's or DeepSpeed's hull around it.

    A hull must see the forward pass to bring the gradients together; ours is no call of the model's own `forward`.
    """
    model = getattr(wrapper, "module", wrapper)
    if model is wrapper:
        return function(model)
    before = model.__dict__.get("forward")
    model.forward = partial(_called, function, model)
    try:
        return wrapper()
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before


def _called(function: Callable[[Any], Any], model: Any) -> Any:
    return function(model)
