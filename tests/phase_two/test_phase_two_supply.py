"""Trunks from the cache: built once, shared, resumed, and never those of another policy."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from phase_two_parts import SEED, context, film, pairs, short_profile

from taskmem.errors import UserError
from taskmem.files import sha256_tree
from taskmem.phase_two.frozen import FrozenPolicy
from taskmem.phase_two.train import Pair, train_phase_two
from taskmem.policy.grammar import completion_for
from taskmem.records import Segment

CANDIDATES = tuple(
    completion_for(memory) for memory in ("a red box", "in the kitchen", "a green cup", "the door opens")
)


class Film:
    """Frames as `film` gives them, counted; `broken_at` is the reading at which it fails."""

    def __init__(self, broken_at: int | None = None) -> None:
        self.read = 0
        self._broken_at = broken_at

    def __call__(self, segment: Segment) -> NDArray[np.uint8]:
        self.read += 1
        if self.read == self._broken_at:
            raise KeyboardInterrupt
        return film(segment)


def environment(chosen: int, rejected: int, contexts: int = 4) -> list[Pair]:
    """One environment's pairs: the same contexts and candidates for all, other preferences among them."""
    return [Pair(context(i), CANDIDATES[chosen], CANDIDATES[rejected], candidates=CANDIDATES) for i in range(contexts)]


def entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.safetensors"))


def train(base: Path, of: list[Pair], out: Path, cache: Path, seen: Film | None = None) -> Path:
    return train_phase_two(FrozenPolicy(base), of, seen or Film(), short_profile(steps=2), SEED, out, cache=cache)


def test_with_a_cache_the_adapter_has_the_same_bytes_as_without(base: Path, trained: Path, tmp_path: Path) -> None:
    cached = train_phase_two(
        FrozenPolicy(base), pairs(), film, short_profile(), SEED, tmp_path / "red", cache=tmp_path / "cache"
    )
    assert sha256_tree(cached) == sha256_tree(trained)


@pytest.mark.parametrize("cached", [True, False])
def test_an_environments_bytes_do_not_depend_on_who_was_adapted_before(
    base: Path, tmp_path: Path, cached: bool
) -> None:
    kinds = {"a": environment(0, 1), "b": environment(2, 3, contexts=3), "c": environment(3, 0)[1:]}
    found: dict[str, set[str]] = {name: set() for name in kinds}
    for order in ("abc", "cba", "bca"):
        for name in order:
            cache = tmp_path / f"cache {order}" if cached else None
            out = tmp_path / order / name
            train_phase_two(FrozenPolicy(base), kinds[name], film, short_profile(steps=2), SEED, out, cache=cache)
            found[name].add(sha256_tree(out))
    alone = {name: train(base, of, tmp_path / name, tmp_path / f"own {name}") for name, of in kinds.items()}
    assert found == {name: {sha256_tree(adapter)} for name, adapter in alone.items()}


def test_what_was_computed_and_what_came_from_the_cache_is_told(base: Path, tmp_path: Path) -> None:
    told: list[str] = []
    for name, of in (("a", environment(0, 1, contexts=3)), ("b", environment(2, 3)), ("c", environment(1, 2))):
        out = tmp_path / name
        train_phase_two(
            FrozenPolicy(base), of, film, short_profile(steps=1), SEED, out, cache=tmp_path / "cache", note=told.append
        )
    assert told == [
        "3 pairs of 3 contexts; trunks: 3 computed, 0 from the cache",
        "4 pairs of 4 contexts; trunks: 1 computed, 3 from the cache",
        "4 pairs of 4 contexts; trunks: 0 computed, 4 from the cache",
    ]


@pytest.mark.parametrize("there", ["a folder", "a file"])
def test_what_is_no_adapter_is_never_replaced(base: Path, tmp_path: Path, there: str) -> None:
    precious = tmp_path / "red" if there == "a file" else tmp_path / "red" / "thesis.txt"
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("years of work")
    with pytest.raises(UserError, match=r"red: holds something that is no adapter, which would be lost"):
        train_phase_two(FrozenPolicy(base), pairs(), film, short_profile(), SEED, tmp_path / "red")
    assert precious.read_text() == "years of work"


def test_a_second_environment_of_the_same_policy_reads_no_frame(base: Path, tmp_path: Path) -> None:
    train(base, environment(0, 1), tmp_path / "one", tmp_path / "cache")
    before = sha256_tree(tmp_path / "cache", entries(tmp_path / "cache"))
    seen = Film()
    train(base, environment(2, 3), tmp_path / "two", tmp_path / "cache", seen)
    assert seen.read == 0
    assert sha256_tree(tmp_path / "cache", entries(tmp_path / "cache")) == before
    fresh = train(base, environment(2, 3), tmp_path / "fresh", tmp_path / "other")
    assert sha256_tree(tmp_path / "two") == sha256_tree(fresh)


def test_an_interrupted_build_goes_on_where_it_was_and_ends_in_the_same_bytes(base: Path, tmp_path: Path) -> None:
    whole = Film()
    train(base, environment(0, 1), tmp_path / "whole", tmp_path / "fresh", whole)
    with pytest.raises(KeyboardInterrupt):
        train(base, environment(0, 1), tmp_path / "red", tmp_path / "cache", Film(broken_at=whole.read))
    assert len(entries(tmp_path / "cache")) == 3 * (1 + len(CANDIDATES))
    resumed = Film()
    train(base, environment(0, 1), tmp_path / "red", tmp_path / "cache", resumed)
    assert 0 < resumed.read < whole.read
    assert sha256_tree(tmp_path / "red") == sha256_tree(tmp_path / "whole")
    resumed_entries, whole_entries = entries(tmp_path / "cache"), entries(tmp_path / "fresh")
    assert sha256_tree(tmp_path / "cache", resumed_entries) == sha256_tree(tmp_path / "fresh", whole_entries)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_entry_is_built_again_and_never_trained_on(
    base: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(base, environment(0, 1), tmp_path / "one", tmp_path / "cache")
    before = sha256_tree(tmp_path / "cache", entries(tmp_path / "cache"))
    victim = max(entries(tmp_path / "cache"), key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[-5] ^= 4
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(data if damage == "flipped" else data[:-5])
    again = train(base, environment(0, 1), tmp_path / "two", tmp_path / "cache")
    assert (f"{victim}: damaged" in capsys.readouterr().err) == (damage != "gone")
    assert sha256_tree(again) == sha256_tree(first)
    assert sha256_tree(tmp_path / "cache", entries(tmp_path / "cache")) == before


def changed(base: Path, folder: Path) -> Path:
    """The same policy but for one byte of a file."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "note": "changed"}))
    return folder


def test_the_entries_of_another_policy_are_not_used(base: Path, tmp_path: Path) -> None:
    train(base, environment(0, 1), tmp_path / "one", tmp_path / "cache")
    before = len(entries(tmp_path / "cache"))
    seen = Film()
    train(changed(base, tmp_path / "policy"), environment(0, 1), tmp_path / "two", tmp_path / "cache", seen)
    assert seen.read > 0
    assert len(entries(tmp_path / "cache")) == 2 * before


def test_a_policy_that_changes_while_it_is_used_is_refused(base: Path, tmp_path: Path) -> None:
    policy = shutil.copytree(base, tmp_path / "policy")

    def touching(segment: Segment) -> NDArray[np.uint8]:
        os.utime(policy / "model.safetensors")
        return film(segment)

    with pytest.raises(UserError, match="the policy changed while it was being used") as refusal:
        train_phase_two(FrozenPolicy(policy), pairs(), touching, short_profile(), SEED, tmp_path / "red")
    assert str(policy) in str(refusal.value)
    assert not (tmp_path / "red").exists()


def test_a_policy_that_is_not_there_is_named_and_not_taken_for_another_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^{tmp_path / 'nowhere'}: no policy checkpoint"):
        FrozenPolicy(tmp_path / "nowhere").checkpoint  # noqa: B018


def test_other_settings_of_the_prompt_are_other_contexts(base: Path, tmp_path: Path) -> None:
    train(base, environment(0, 1), tmp_path / "one", tmp_path / "cache")
    profile = short_profile(steps=2)
    other = profile.model_copy(update={"policy": profile.policy.model_copy(update={"instruction": "Look."})})
    seen = Film()
    train_phase_two(
        FrozenPolicy(base), environment(0, 1), seen, other, SEED, tmp_path / "two", cache=tmp_path / "cache"
    )
    assert seen.read > 0


def test_another_layer_is_another_trunk(base: Path, tmp_path: Path) -> None:
    train(base, environment(0, 1), tmp_path / "one", tmp_path / "cache")
    seen = Film()
    profile = short_profile(steps=2, layer=1)
    train_phase_two(
        FrozenPolicy(base), environment(0, 1), seen, profile, SEED, tmp_path / "two", cache=tmp_path / "cache"
    )
    assert seen.read > 0
