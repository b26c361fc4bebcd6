"""The trunk cache of a shard: what one environment computed serves all others, and is gone when the task is."""

import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from mined_site import Site
from night_parts import Logs

from taskmem import entry
from taskmem.cli import shipped_base
from taskmem.phase_two import supply
from taskmem.phase_two.halves import LowerHalf, load_lower

TOLD = re.compile(r"(\w+): (\d+) pairs of (\d+) contexts; trunks: (\d+) computed, (\d+) from the cache")


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working space of the task."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def computed(lines: list[str]) -> dict[str, tuple[int, int]]:
    """By environment, how many trunks were computed, and how many came from the cache."""
    return {found[1]: (int(found[4]), int(found[5])) for line in lines if (found := TOLD.fullmatch(line))}


def contexts(site: Site, name: str) -> set[str]:
    return {pair.context for pair in site.pairs(name)}


def test_each_context_s_trunk_is_computed_once_for_all_environments(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.mine("door", "room")
    told: list[str] = []
    loaded: list[Path] = []

    def lower(path: Path, *more: Any) -> LowerHalf:
        loaded.append(path)
        return load_lower(path, *more)

    monkeypatch.setattr(supply, "load_lower", lower)
    site.train("door", "room", note=told.append)
    door, room = contexts(site, "door"), contexts(site, "room")
    assert door & room
    assert told[0] == f"2 environments: trunks of {len(door | room)} contexts computed"
    assert computed(told) == {"door": (0, len(door)), "room": (0, len(room))}
    assert len(loaded) == 1


def test_environments_of_other_layers_and_torn_ones_do_not_keep_each_other_from_it(site: Site) -> None:
    deep = {"environment": "room", "settings": {"phase_two": {"layer": 2}}}
    torn = {"environment": "door", "adapter": "torn"}
    Logs(site.root, site.profile).collect("door", deep, torn, store=False, out="feedback")
    site.mine("door", deep, torn)
    (site.root / "pairs" / "torn" / "preferences.jsonl").write_text("{}\n")
    told: list[str] = []
    ended = site.train(torn, "door", deep, note=told.append)
    assert [outcome.status for outcome in ended] == ["failed", "ready", "ready"]
    assert computed(told) == {name: (0, len(contexts(site, name))) for name in ("door", "room")}


def test_a_second_environment_with_the_same_contexts_computes_nothing(site: Site) -> None:
    other = {"environment": "door", "adapter": "other", "settings": {"phase_two": {"beta": 0.5}}}
    Logs(site.root, site.profile).collect("door", other, store=False, out="feedback")
    site.mine("door", other)
    told: list[str] = []
    site.train("door", other, note=told.append)
    count = len(contexts(site, "door"))
    assert told[0] == f"2 environments: trunks of {count} contexts computed"
    assert computed(told) == {"door": (0, count), "other": (0, count)}
    assert site.adapter("other") != site.adapter("door")


def test_the_folder_lies_in_the_task_s_own_space_and_is_gone_at_the_end(site: Site, scratch: Path) -> None:
    site.mine("door", "room")
    seen: list[int] = []
    site.train("door", "room", progress=lambda at, of: seen.append(len(list(scratch.rglob("*.safetensors")))))
    assert min(seen) > 0
    assert list(scratch.iterdir()) == []
    left = {path.name for path in (site.root / "adapters").rglob("*.safetensors")}
    assert left == {"adapter_model.safetensors"}


def test_the_folder_is_gone_after_an_interruption_too(site: Site, scratch: Path) -> None:
    def interrupt(at: int, of: int) -> None:
        assert list(scratch.iterdir())
        raise KeyboardInterrupt

    site.mine("door", "room")
    with pytest.raises(KeyboardInterrupt):
        site.train("door", "room", progress=interrupt)
    assert list(scratch.iterdir()) == []


def test_a_single_environment_shares_with_nobody_and_writes_no_trunks(site: Site, scratch: Path) -> None:
    site.mine("door")
    seen: list[list[Path]] = []
    site.train("door", progress=lambda at, of: seen.append(list(scratch.iterdir())))
    assert seen == [[], []]


@pytest.mark.parametrize("kept", [True, False])
def test_a_task_may_be_told_of_a_folder_that_outlives_it(
    site: Site, scratch: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    site.mine("door", "room")
    monkeypatch.setenv(entry.TRUNK_CACHE, str(site.root / "kept") if kept else "")
    environments = {"name": "one", "environments": [{"environment": name} for name in ("door", "room")]}
    paths = [str(path) for path in (site.root / "pairs", site.root / "rollouts", site.root / "film", shipped_base())]
    out = site.root / "adapters"
    numbers = entry.phase_two_dpo(environments, *paths, site.profile.model_dump_json(), 0, str(out))
    assert numbers["ready"] == 2
    assert list(scratch.iterdir()) == []
    assert (site.root / "kept").exists() == kept
    if kept:
        told: list[str] = []
        site.train("room", "door", out="again", trunk_cache=site.root / "kept", note=told.append)
        assert {number for number, _ in computed(told).values()} == {0}
        assert site.adapter("door", "again") == site.adapter("door")
