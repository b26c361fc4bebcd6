"""The checkpoints of a run: which are whole, which can be resumed, and how many keep the optimiser's state.

A step that is validated leaves a checkpoint, and the best is picked at the end, so all weights are kept. What resuming needs
besides them is six times as large and is kept of the newest only.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from taskmem.files import atomic_write
from taskmem.records import read_json

SLOTS_FILE = "slots.json"
STRIPPED = "weights-only"
"""Marks a checkpoint from which nothing can be resumed any more."""
_STATE = ("optimizer.pt", "scheduler.pt", "rng_state*.pth", "latest", "global_step*")
"""What resuming needs besides the weights: transformers' files and DeepSpeed's folder of shards."""


def complete(folder: Path, slots: Sequence[Any]) -> None:
    """Declare a checkpoint whole, with the history's slots beside it."""
    atomic_write(folder / SLOTS_FILE, json.dumps(slots))


def slots_of(folder: Path) -> Any:
    """The history's slots that lie in a whole checkpoint."""
    return read_json(folder / SLOTS_FILE)


def whole_checkpoints(out: Path) -> list[Path]:
    """Every whole checkpoint below `out`, the oldest first."""
    found = [slots.parent for slots in out.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{SLOTS_FILE}")]
    return sorted(found, key=update_of)


def update_of(folder: Path) -> int:
    """The optimiser update after which a checkpoint was written."""
    return int(folder.name.rsplit("-", 1)[1])


def last_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint below `out` that can be resumed, or None."""
    resumable = [folder for folder in whole_checkpoints(out) if not (folder / STRIPPED).exists()]
    return resumable[-1] if resumable else None


def strip(out: Path, full: int) -> None:
    """Remove all but the weights from every whole checkpoint but the newest `full`."""
    for folder in whole_checkpoints(out)[:-full]:
        # marked first: half a state must not be resumed from
        atomic_write(folder / STRIPPED, "")
        for path in [path for pattern in _STATE for path in folder.glob(pattern)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
