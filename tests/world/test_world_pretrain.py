"""The base policy's recipe: the shipped one is what it says it is, and another can be built."""

from pathlib import Path

import pytest

from taskmem.cli import shipped_base
from taskmem.config import load_profile
from taskmem.errors import UserError
from taskmem.files import sha256_tree
from taskmem.policy.grammar import parse
from taskmem.policy.transformers_policy import load_checkpoint
from taskmem.records import read_json
from taskmem.world.facts import TYPES
from taskmem.world.pretrain import Pretraining, Recipe, Sampler, Stage

SHORT = Recipe(
    single=Stage(2, 2, 1e-3), windows=Stage(2, 2, 1e-3), noise=Stage(1, 2, 1e-3), extra_rounds=0, precision=0.0
)


def pretrain(recipe: Recipe, seed: int, out: Path) -> dict[str, float]:
    pretraining = Pretraining(recipe, load_profile("miniature").policy, seed)
    precision = pretraining.run()
    pretraining.save(out, precision)
    return precision


def test_the_shipped_base_is_small_and_can_be_served_on_a_cpu() -> None:
    model, _ = load_checkpoint(shipped_base())
    assert model.config.text_config.head_dim >= 32
    assert (shipped_base() / "model.safetensors").stat().st_size < 4_000_000


def test_the_shipped_base_saw_every_fact_type_before_the_noise() -> None:
    recipe = read_json(shipped_base() / "recipe.json")
    assert set(recipe["precision"]) == set(TYPES)
    assert min(recipe["precision"].values()) >= recipe["precision_wanted"] == Recipe().precision


def test_the_shipped_base_was_made_by_the_recipe_in_the_code() -> None:
    stated = read_json(shipped_base() / "recipe.json")
    assert {name: stated[name] for name in ("single", "windows", "noise")} == {
        name: vars(getattr(Recipe(), name)) for name in ("single", "windows", "noise")
    }


def test_the_same_seed_gives_the_same_base_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        pretrain(SHORT, seed, tmp_path / name)
    assert sha256_tree(tmp_path / "a") == sha256_tree(tmp_path / "b") != sha256_tree(tmp_path / "c")


def test_a_base_that_sees_badly_is_refused(tmp_path: Path) -> None:
    blind = Recipe(single=Stage(1, 2, 1e-3), windows=Stage(1, 2, 1e-3), noise=Stage(1, 2, 1e-3), extra_rounds=0)
    with pytest.raises(UserError, match=r"below precision 0\.9; train longer or take another seed"):
        pretrain(blind, 0, tmp_path / "blind")
    assert not (tmp_path / "blind").exists()


def test_half_of_the_windows_carry_a_task_prompt() -> None:
    sampler = Sampler(Recipe(), seed=0)
    for noisy in (False, True):
        prompted = [sampler.window(noisy).context.task is not None for _ in range(400)]
        assert 0.42 < sum(prompted) / 400 < 0.58


def test_the_noise_breaks_about_a_tenth_of_the_formats_and_clean_windows_none() -> None:
    sampler = Sampler(Recipe(), seed=0)
    assert all(parse(sampler.window(noisy=False).target).memory for _ in range(100))
    broken = [parse(sampler.window(noisy=True).target).memory is None for _ in range(400)]
    assert 0.05 < sum(broken) / 400 < 0.16


@pytest.mark.slow
def test_a_base_rebuilt_from_another_seed_sees_every_fact_type(tmp_path: Path) -> None:
    precision = pretrain(Recipe(), 2, tmp_path / "base")
    assert min(precision.values()) >= 0.9
    model, processor = load_checkpoint(tmp_path / "base")
    assert model.config.text_config.head_dim == 32
    assert "<think>" in processor.chat_template
