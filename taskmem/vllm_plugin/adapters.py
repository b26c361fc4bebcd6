"""Which adapters an engine takes, and what a name means to it. Needs no vLLM."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from taskmem.steer import read_adapter

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}@v[1-9][0-9]{0,8}")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LARGEST_FILE = 1 << 20


@dataclass(frozen=True)
class Site:
    """Where an engine is steered: after decoder layer `layer` (from 0) of the policy with digest `policy` (hex SHA-256).

    Vectors have `size` values and a Euclidean norm of `max_norm` at most.
    """

    layer: int
    size: int
    max_norm: float
    policy: str


def check_adapter(folder: Path, site: Site) -> torch.Tensor:
    """The vector of the adapter in `folder`, float32 [size], if it belongs at `site`.

    ValueError with file and reason if not: no steer adapter, a pickle, not finite, another layer or size, too large a norm,
    trained on another policy.
    """
    for name in (CONFIG, WEIGHTS):
        path = folder / name
        if path.is_file() and path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"{path}: over {LARGEST_FILE} bytes, which no steer adapter needs; train it again")
    layer, vector = read_adapter(folder)
    if layer != site.layer:
        raise ValueError(
            f"{folder}: trained after layer {layer}, this server steers after {site.layer}; train it again"
        )
    if vector.numel() != site.size:
        raise ValueError(f"{folder}: {vector.numel()} values, this server's hidden size is {site.size}; train it again")
    norm = float(vector.double().norm())
    if norm > site.max_norm:
        raise ValueError(
            f"{folder}: norm {norm:.4g} is above this server's bound of {site.max_norm:.4g}; look at its training"
        )
    trained_on = str(json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path"))
    if trained_on != f"sha256:{site.policy}":
        raise ValueError(
            f"{folder}: trained on {trained_on[:19]}, this server's policy is sha256:{site.policy[:12]}; train it again"
        )
    return vector


class Adapters:
    """Every adapter an engine has accepted. A name and an id keep their vector as long as the engine lives.

    vLLM drops adapters that were not used for long and loads them again in the middle of a step, where an exception ends the
    engine: so what was accepted once is kept (8 KB at hidden size 2,048) and the disk never asked again. And its prefix cache
    is keyed by name and path: so a name never gets another vector.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self._by_id: dict[int, tuple[str, torch.Tensor]] = {}
        self._by_name: dict[str, torch.Tensor] = {}

    def load(self, name: str, number: int, folder: Path, in_place: bool) -> torch.Tensor:
        """The vector, float32 [size], of the adapter that vLLM calls `name` and `number`; from `folder` if it is new.

        ValueError for anything `check_adapter` refuses, a name that is not environment@version or has another vector
        already, a number that belongs to another name, and loading in place.
        """
        if in_place:
            raise ValueError(f"{name}: an adapter is never replaced in place; load the new version under its own name")
        self.check_number(name, number)
        if number in self._by_id:
            return self._by_id[number][1]
        if not NAME.fullmatch(name):
            raise ValueError(f"{name}: not a name of the form environment@version, as in kitchen@v3; load it as that")
        vector = check_adapter(folder, self.site)
        known = self._by_name.setdefault(name, vector)
        if not torch.equal(known, vector):
            raise ValueError(f"{name}: this name was loaded with another vector before; publish it as a new version")
        self._by_id[number] = name, known
        return known

    def check_number(self, name: str, number: int) -> None:
        """ValueError if `number` belongs to another name, whose vector vLLM would take."""
        taken = self._by_id.get(number, (name,))[0]
        if taken != name:
            raise ValueError(f"{name}: its number {number} belongs to {taken}; give each adapter a number of its own")


def site_settings(additional: Any) -> tuple[int, float]:
    """Layer and largest norm from vLLM's --additional-config; ValueError if one is missing or senseless."""
    settings = additional if isinstance(additional, dict) else {}
    layer, norm = settings.get("steer_layer"), settings.get("steer_max_norm")
    if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
        raise ValueError(f"--additional-config: steer_layer is {layer!r}; give the index of a decoder layer, from 0")
    if isinstance(norm, bool) or not isinstance(norm, (int, float)) or not 0 < norm < float("inf"):
        raise ValueError(f"--additional-config: steer_max_norm is {norm!r}; give the largest norm to accept, above 0")
    return layer, float(norm)
