"""What can be said of a checkpoint folder before a weight of it is read, and how its damage is told."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import Qwen3VLMoeConfig

from taskmem.errors import UserError
from taskmem.records import one_line, read_json

# what transformers raises over files that are not what it expects
_DAMAGE = (OSError, ValueError, TypeError, AttributeError, KeyError, SafetensorError, StrictDataclassError)


def check_policy(path: Path) -> None:
    """UserError unless the folder `path` says that it holds a policy's checkpoint."""
    if not (path / "config.json").is_file():
        raise UserError(f"{path}: no policy checkpoint (config.json is missing); give the folder that phase-one wrote")
    config: Any = read_json(path / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != Qwen3VLMoeConfig.model_type:
        raise UserError(
            f"{path}/config.json: model_type is {kind}, not {Qwen3VLMoeConfig.model_type}; give another policy"
        )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what goes wrong with the files of the checkpoint `path` into a UserError of one line."""
    try:
        yield
    except _DAMAGE as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be loaded ({one_line(said)}); copy the checkpoint again") from None
