"""Adapters as the PEFT method saves them, of the shipped base policy."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from taskmem.policy.transformers_policy import policy_reference
from taskmem.steer import SteerConfig, steer_vector

LAYER = 1
SIZE = 96
BOUND = 8.0


class AdapterPress:
    """Saves steer adapters of one model."""

    def __init__(self, model: Any, digest: str) -> None:
        self.model: PeftModel = get_peft_model(model, SteerConfig(layer=LAYER))
        self.model.peft_config["default"].base_model_name_or_path = policy_reference(digest)

    def put(self, vector: torch.Tensor) -> None:
        """Steer the model itself by `vector`."""
        with torch.no_grad():
            steer_vector(self.model).copy_(vector)

    def save(self, folder: Path, vector: torch.Tensor) -> Path:
        self.put(vector)
        self.model.save_pretrained(folder, save_embedding_layers=False)
        return folder


def drawn(seed: int, norm: float = 1.0) -> torch.Tensor:
    """A vector in a direction of its own."""
    vector = torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))
    return vector / vector.norm() * norm


def with_settings(folder: Path, **settings: Any) -> Path:
    """The adapter with settings of its configuration replaced."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


def with_vector(folder: Path, vector: torch.Tensor, layer: int = LAYER) -> Path:
    """The adapter with another tensor in its file, under the key of `layer`."""
    path = folder / "adapter_model.safetensors"
    (key,) = load_file(path)
    save_file({key.replace(f".layers.{LAYER}.", f".layers.{layer}."): vector}, path)
    return folder


def as_lora(folder: Path) -> Path:
    """An ordinary LoRA adapter in its place."""
    with_settings(folder, peft_type="LORA", r=1, lora_alpha=1, target_modules=["steer"])
    save_file({"base_model.model.x.lora_A.weight": torch.ones(1, 1)}, folder / "adapter_model.safetensors")
    return folder


def as_pickle(folder: Path) -> Path:
    """The weights as adapter_model.bin, which nobody opens."""
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04.")
    return folder


REFUSED = {
    "wrong layer": (lambda f: with_vector(with_settings(f, layer=2), drawn(1), 2), "trained after layer 2"),
    "layer and key differ": (lambda f: with_settings(f, layer=2), "says layer 2"),
    "wrong size": (lambda f: with_vector(f, torch.ones(7)), "7 values, this server's hidden size is 96"),
    "not float32": (lambda f: with_vector(f, drawn(1).half()), "torch.float16"),
    "not finite": (lambda f: with_vector(f, torch.full((SIZE,), float("nan"))), "NaN or infinity"),
    "norm": (lambda f: with_vector(f, drawn(1, BOUND + 1)), "norm 9 is above this server's bound of 8"),
    "another policy": (
        lambda f: with_settings(f, base_model_name_or_path="sha256:" + "f" * 64),
        "trained on sha256:ffffffffffff",
    ),
    "no policy": (lambda f: with_settings(f, base_model_name_or_path=None), "trained on None"),
    "a LoRA adapter": (as_lora, "not a steer adapter"),
    "a pickle": (as_pickle, "is a pickle and is not read"),
    "too large a file": (
        lambda f: with_vector(f, torch.zeros(1 << 19)),
        "over 1048576 bytes, which no steer adapter needs",
    ),
}
