"""The policy that a process adapts environments to: hashed once, its upper half loaded once."""

import gc
from functools import cached_property
from pathlib import Path

import torch

from taskmem.phase_two.halves import UpperHalf, load_upper
from taskmem.phase_two.supply import Checkpoint


class FrozenPolicy:
    """The checkpoint in the folder `path`, which must not change while it is in use.

    What is read is kept for the next environment: for the 30B policy the digest is one of 62 GB, the upper half 32 GB.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._upper: tuple[int, UpperHalf] | None = None

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The folder with its digest, as it was when first asked for."""
        return Checkpoint.of(self.path)

    def upper(self, layer: int) -> UpperHalf:
        """What lies above `layer`; UserError if the checkpoint has changed, or as `load_upper` does."""
        if self._upper is None or self._upper[0] != layer:
            self.release()
            self._upper = layer, load_upper(self.path, layer)
        self.checkpoint.check()
        return self._upper[1]

    def release(self) -> None:
        """Give the upper half's memory back: the lower must never stand beside it."""
        self._upper = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
