"""Adapter folders made by hand, read without torch where processes race or die."""

import json
import os
import random
import time as clock
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from taskmem import registry
from taskmem.records import Judge
from taskmem.registry import Manifest, Pointer, Provenance, publish
from taskmem.store import Store

POLICY, OTHER_POLICY = "a" * 64, "b" * 64
HIDDEN = 8
VERDICT = b'{"passed": true}'
WHO, NOW = "Ada", datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
KEY = "base_model.model.model.language_model.layers.1.steer_vector"


def write_adapter(folder: Path, content: int = 0, policy: str = POLICY, hidden: int = HIDDEN, layer: int = 1) -> Path:
    """A steer adapter whose vector is drawn from `content`."""
    folder.mkdir(parents=True)
    rng = random.Random(content)
    vector = np.array([rng.gauss(0, 1) for _ in range(hidden)], dtype=np.float32)
    save_file({KEY.replace("layers.1.", f"layers.{layer}."): vector}, folder / "adapter_model.safetensors")
    config = {"peft_type": "STEER", "layer": layer, "base_model_name_or_path": f"sha256:{policy}"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "training.json").write_text(json.dumps({"trained_norm": content, "steps": []}))
    return folder


def read_light(folder: Path) -> tuple[int, Any]:
    """What `taskmem.steer.read_adapter` gives of a good adapter, without its checks and without torch."""
    (vector,) = load_file(folder / "adapter_model.safetensors").values()
    return int(json.loads((folder / "adapter_config.json").read_text())["layer"]), vector


def provenance(**changes: Any) -> Provenance:
    fields: dict[str, Any] = {
        "parent": None,
        "policy": POLICY,
        "pairs": "c" * 64,
        "feedback": "d" * 64,
        "feedback_count": 5,
        "judges": (Judge(role="helpfulness", model="world/1", prompt_sha256="e" * 64),),
        "commit": "unknown",
        "image": "local",
        "seed": 0,
    }
    return Provenance(**{**fields, **changes})


def publish_light(store: Store, folder: Path, environment: str = "door", **changes: Any) -> Manifest:
    return publish(store, environment, folder, provenance(**changes), read_light)


def promote(
    store: Store,
    environment: str,
    version: str,
    expected: Pointer | None,
    verdict: bytes = VERDICT,
    by: str = WHO,
    time: datetime = NOW,
) -> Pointer:
    """`taskmem.registry.promote`, by Ada and at one time."""
    return registry.promote(store, environment, version, expected, verdict, by, time)


def overwrite(store: Store, key: str, data: bytes) -> None:
    """Put other bytes in place of an object, as somebody with access to the store can."""
    store.compare_and_swap(key, data, store.get(key).etag)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def objects(store: Store) -> dict[str, bytes]:
    """Everything the store holds."""
    return {key: store.get(key).data for key in store.list("")}


class FaultError(Exception):
    """A store that did not answer: whether the call took effect is unknown."""


class Weather:
    """A store that answers late and fails a share of all calls, half of them after they took effect.

    With `dies` the process is gone at one of its writes, before or after it.
    """

    def __init__(self, store: Store, seed: str, share: float, late_s: float, dies: float = 0) -> None:
        self._store, self._rng = store, random.Random(seed)
        self._share, self._late_s, self._dies = share, late_s, dies

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            writes = name in ("put_if_absent", "compare_and_swap")
            fails, dies = self._rng.random() < self._share, writes and self._rng.random() < self._dies
            before = self._rng.random() < 0.5
            clock.sleep(self._rng.uniform(0, self._late_s))
            if before:
                self._strike(fails, dies)
            answer = getattr(self._store, name)(*args)
            self._strike(fails, dies)
            return answer

        return call

    def _strike(self, fails: bool, dies: bool) -> None:
        if dies:
            os._exit(9)
        if fails:
            raise FaultError
