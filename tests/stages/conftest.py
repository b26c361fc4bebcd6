"""One site for all tests of a night's mining and training."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mined_site import Site
from night_parts import NEEDED, Logs, shard

from taskmem.backends import backends_for, helpfulness_judge
from taskmem.cli import shipped_base
from taskmem.config import load_profile, override
from taskmem.stages.candidates import rollout_cache
from taskmem.stages.judging import judge_scoring
from taskmem.stages.nightly import collect_shard
from taskmem.stages.segmentation import segmentation
from taskmem.world.splits import render_split


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Site:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("site")
    small = {"world": {"stream_segments": 4, "deployment": 3}, "mining": {"candidates": 6}, "phase_two": {"steps": 2}}
    profile = override(load_profile("miniature"), small, "small")
    assert profile.world is not None
    render_split(root / "world", "deployment", profile.world, 0)
    segmentation(root / "world" / "videos", profile, root / "film")
    rollout_cache(root / "film", shipped_base(), profile, 0, root / "rollouts")
    judge_scoring(root / "rollouts", root / "film", backends_for(profile, root / "world"), profile, root / "judgements")
    logs = Logs(root, profile)
    for number in range(NEEDED):
        logs.ask("door", range(number, number + 1), source=f"{number % 3:x}" * 64)
    logs.ask("room", range(NEEDED), type="room", text="which room was it at 00:01?")
    logs.ask("weather", range(NEEDED), type="weather", text="will it rain?")
    collect_shard(shard("door", "room", "weather", "quiet"), root / "events", "", profile, root / "feedback")
    return Site(root, profile, helpfulness_judge(profile))


@pytest.fixture
def site(tmp_path: Path, prepared: Site) -> Site:
    shutil.copytree(prepared.root, tmp_path, dirs_exist_ok=True)
    return replace(prepared, root=tmp_path)
