"""The shipped base policy, adapters of it, and real mp4 segments; vLLM itself only where a test is marked `serving`."""

# ruff: noqa: PLC0415 - vLLM is in the serving environment only

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from plugin_parts import BOUND, LAYER, SIZE, AdapterPress, drawn
from reference_parts import Reference

from taskmem.cli import shipped_base
from taskmem.config import Profile, WorldSettings, load_profile
from taskmem.policy.export import export_policy
from taskmem.policy.transformers_policy import load_checkpoint, policy_digest
from taskmem.stages.segmentation import segmentation
from taskmem.vllm_plugin.adapters import Site
from taskmem.world.splits import render_split

if TYPE_CHECKING:
    from serving_parts import Engine, Server


@pytest.fixture(scope="session")
def profile() -> Profile:
    return load_profile("miniature")


@pytest.fixture(scope="session")
def base() -> Path:
    return shipped_base()


@pytest.fixture(scope="session")
def digest(base: Path) -> str:
    return policy_digest(base)


@pytest.fixture(scope="session")
def loaded(base: Path) -> tuple[Any, Any]:
    torch.set_num_threads(1)
    return load_checkpoint(base, torch.float32)


@pytest.fixture(scope="session")
def press(loaded: tuple[Any, Any], digest: str) -> AdapterPress:
    return AdapterPress(loaded[0], digest)


@pytest.fixture
def saved(press: AdapterPress, tmp_path: Path) -> Path:
    return press.save(tmp_path / "adapter", drawn(0))


@pytest.fixture(scope="session")
def site(digest: str) -> Site:
    return Site(layer=LAYER, size=SIZE, max_norm=BOUND, policy=digest)


@pytest.fixture(scope="session")
def exported(base: Path, digest: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "policy"
    export_policy(base, digest, out, None)
    return out


@pytest.fixture(scope="session")
def segments(profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = tmp_path_factory.mktemp("world")
    sizes = WorldSettings(stream_segments=5, phase_one=1, deployment=2, development=1, held_out=1)
    render_split(world, "deployment", sizes, seed=0)
    segmentation(world / "videos", profile, world / "segments")
    return world / "segments"


@pytest.fixture(scope="session")
def reference(loaded: tuple[Any, Any], press: AdapterPress, segments: Path, profile: Profile) -> Reference:
    return Reference(loaded, press, segments, profile)


@pytest.fixture(scope="session")
def many(press: AdapterPress, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], dict[str, Path]]:
    """So many environments' adapters by name, each another vector."""
    folder = tmp_path_factory.mktemp("adapters")

    def make(prefix: str, count: int) -> dict[str, Path]:
        names = [f"{prefix}{number}@v1" for number in range(count)]
        return {name: press.save(folder / name, drawn(1000 + i, 6)) for i, name in enumerate(names)}

    return make


@pytest.fixture(scope="session")
def engine(exported: Path) -> "Engine":
    from serving_parts import Engine

    return Engine(exported)


@pytest.fixture(scope="session")
def server(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Server]":
    from serving_parts import Server

    with Server(exported, tmp_path_factory.mktemp("server") / "log", slots=8, kept=16) as running:
        yield running
