"""Runs of Phase One in several processes on this machine; as a script it is one of these processes, started by torchrun."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from phase_one_parts import SEED, inputs, short_profile
from safetensors.torch import save_file
from transformers import TrainerCallback

from taskmem.config import Profile
from taskmem.phase_one import train
from taskmem.phase_one.ranks import Ranks
from taskmem.phase_one.trainer import PackedGSPOTrainer

ALL = -1
PHASE = ("kl", "off_policy_steps", "on_policy_steps")


def shared_profile(**changes: Any) -> Profile:
    """Four contexts a step in two updates, so that two processes have one each of every mini-batch.

    `changes` are of the settings of `PHASE`, and of the spread.
    """
    phase_changes = {name: value for name, value in changes.items() if name in PHASE}
    profile = short_profile(batch=4, mini_batch=2, group_size=4, **phase_changes)
    phase = profile.phase_one
    spread = phase.spread.model_copy(update={n: v for n, v in changes.items() if n not in PHASE})
    return profile.model_copy(update={"phase_one": phase.model_copy(update={"spread": spread})})


class Gradients(TrainerCallback):
    """Keeps the gradient of every update of a process, as it is when the optimiser steps."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.seen.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


@contextmanager
def watched() -> Iterator[Gradients]:
    """Every trainer that is made meanwhile shows its gradients."""
    kept, plain = Gradients(), PackedGSPOTrainer.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        self.add_callback(kept)

    PackedGSPOTrainer.__init__ = init
    try:
        yield kept
    finally:
        PackedGSPOTrainer.__init__ = plain


def together(processes: int, base: Path, out: Path, **job: Any) -> subprocess.CompletedProcess[str]:
    """Train in so many processes under torchrun.

    `job`: spread settings; `dies`: [rank or ALL, update] at which a process kills itself.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [__file__, str(base), str(out), json.dumps(job)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def alone(base: Path, out: Path, **changes: Any) -> list[dict[str, torch.Tensor]]:
    """Train in this process; the gradient of every update."""
    with watched() as kept:
        train.train_phase_one(base, inputs(), shared_profile(**changes), SEED, out)
    return kept.seen


def process(base: Path, out: Path, job: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    ranks, dies = Ranks.of(os.environ), job.pop("dies", None)
    updates = count(1)

    def tell(done: int, total: int) -> None:
        if dies and dies[0] in (ranks.rank, ALL) and next(updates) == dies[1]:
            os.kill(os.getpid(), signal.SIGKILL)

    with watched() as kept:
        train.train_phase_one(base, inputs(), shared_profile(**job), SEED, out, tell, ranks)
    if ranks.first:
        for update, gradient in enumerate(kept.seen):
            save_file(gradient, out / f"gradient-{update}.safetensors")


if __name__ == "__main__":
    process(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
