"""The configuration of a steer adapter, and what a folder must look like to be one."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.config import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, PeftType
from safetensors import SafetensorError, safe_open


def _steer_type() -> PeftType:
    if "STEER" in PeftType.__members__:
        return PeftType["STEER"]
    # PEFT registers only members of PeftType, a closed enum that its modules hold by reference: neither a subclass nor
    # a replacement reaches them, so the new member enters the enum's own tables, as its metaclass would write it.
    member = str.__new__(PeftType, "STEER")
    member._name_, member._value_ = "STEER", "STEER"
    member.__objclass__, member._sort_order_ = PeftType, len(PeftType)
    setattr(PeftType, "STEER", member)  # noqa: B010 - mypy knows that an enum has no such attribute
    PeftType._member_names_.append("STEER")
    PeftType._member_map_["STEER"] = member
    PeftType._value2member_map_["STEER"] = member
    return member


STEER = _steer_type()


def check_layer(layer: Any, where: str) -> None:
    """ValueError naming `where` unless `layer` is an integer; the model checks the range."""
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise ValueError(f"{where}: layer is {layer!r}; give the index of a decoder layer, an integer from 0")


def check_vector(vector: torch.Tensor, where: str, size: int | None = None) -> None:
    """ValueError naming `where` unless `vector` is finite, float32 and of shape [size] (any size if None)."""
    shape = tuple(vector.shape)
    if vector.dtype != torch.float32 or vector.dim() != 1 or size not in (None, shape[0]):
        wanted = "hidden size" if size is None else size
        raise ValueError(
            f"{where}: {vector.dtype} of shape {shape}; a steer vector is torch.float32 of shape ({wanted},)"
        )
    if not torch.isfinite(vector).all():
        raise ValueError(f"{where}: the steer vector holds NaN or infinity; train or fetch the adapter again")


def read_adapter(path: str | Path) -> tuple[int, torch.Tensor]:
    """The layer index and the vector, float32 of shape [hidden], of an adapter folder; no model is needed.

    ValueError unless the folder holds a STEER `adapter_config.json` and an `adapter_model.safetensors` with exactly one
    finite vector whose key names the same layer. Pickled weights (`adapter_model.bin`) are never opened.
    """
    layer = _read_layer(Path(path) / CONFIG_NAME)
    weights = Path(path) / SAFETENSORS_WEIGHTS_NAME
    if not weights.is_file():
        pickled = f"; {WEIGHTS_NAME} is a pickle and is not read" if weights.with_name(WEIGHTS_NAME).exists() else ""
        raise ValueError(f"{weights}: no such file{pickled}; save the adapter with save_pretrained, as safetensors")
    try:
        with safe_open(weights, framework="pt", device="cpu") as file:
            keys = list(file.keys())
            vector = file.get_tensor(keys[0]) if len(keys) == 1 else None
    except SafetensorError as error:
        raise ValueError(f"{weights}: not a safetensors file ({error}); save the adapter again") from None
    if vector is None:
        raise ValueError(f"{weights}: {len(keys)} tensors; a steer adapter holds exactly one")
    if not re.search(rf"\.layers\.{layer}\.steer_vector$", keys[0]):
        raise ValueError(
            f"{weights}: its vector is {keys[0]}, but {CONFIG_NAME} says layer {layer}; use the matching pair"
        )
    check_vector(vector, str(weights))
    return layer, vector


def _read_layer(file: Path) -> int:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file; give the folder of a saved steer adapter") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid JSON ({error}); save the adapter again") from None
    if not isinstance(settings, dict) or settings.get("peft_type") != STEER:
        raise ValueError(f"{file}: not a steer adapter (peft_type must be STEER); give the folder of one")
    check_layer(settings.get("layer"), str(file))
    return int(settings["layer"])


@dataclass(kw_only=True)
class SteerConfig(PeftConfig):
    """Settings of one steer adapter: h <- h + a after decoder layer `layer` (METHOD section 4, step 5).

    `layer` counts the language model's decoder layers from 0; the model refuses an index outside them. ValueError if it
    is no integer.
    """

    layer: int = field(metadata={"help": "Index of the decoder layer after which the vector is added, from 0."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = STEER
        check_layer(self.layer, type(self).__name__)
        # Found out from model and file, so plain attributes: a field would be written to adapter_config.json.
        self.target_modules: str | None = None
        self.loaded_size: int | None = None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, subfolder: str | None = None, **kwargs: Any
    ) -> "SteerConfig":
        """The configuration in an adapter folder, after `read_adapter` has accepted the whole of it.

        PEFT asks for the configuration before it opens the weights, and would open a pickle if there is no safetensors
        file: so the refusal belongs here. Folders only; an adapter on the Hub is downloaded first.
        """
        folder = Path(pretrained_model_name_or_path, subfolder or "")
        _, vector = read_adapter(folder)
        config: SteerConfig = super().from_pretrained(str(folder), **kwargs)
        config.loaded_size = vector.numel()
        return config

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write `adapter_config.json`; ValueError if the weights beside it could not be loaded again."""
        super().save_pretrained(str(save_directory), **kwargs)
        if any(Path(save_directory, name).exists() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):
            read_adapter(save_directory)
