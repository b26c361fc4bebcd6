"""The loop: batches, stopping, pairs of a context, and what is recorded of each pair."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exactness_parts import case, encoder_of, engine_of
from phase_two_parts import SEED, context, film, pairs, short_profile
from safetensors.torch import load_file

from taskmem.config import PhaseTwoSettings
from taskmem.errors import UserError
from taskmem.phase_two.engine import Example, PairEngine
from taskmem.phase_two.fit import Fitted, fit
from taskmem.phase_two.frozen import FrozenPolicy
from taskmem.phase_two.train import Pair, train_phase_two
from taskmem.policy.grammar import completion_for
from taskmem.progress import silent


@pytest.fixture(scope="module")
def world(base: Path) -> tuple[PairEngine, tuple[Example, ...]]:
    of = case(encoder_of(base), pairs=2, video=True, contexts=5)
    return engine_of(base, 1, of, torch.float32), of.examples


def fitted(world: tuple[PairEngine, tuple[Example, ...]], sources: Any = None, **changes: Any) -> Fitted:
    settings = settings_of(**changes)
    engine, examples = world
    return fit(engine, examples, sources or [()] * len(examples), settings, SEED, silent)


def settings_of(**changes: Any) -> PhaseTwoSettings:
    plain = short_profile(layer=1).phase_two.model_dump()
    return PhaseTwoSettings.model_validate({**plain, **changes})


def sourced(names: str) -> list[Pair]:
    rest = [(f"q{i}",) for i in range(5)]
    return [
        Pair(p.context, p.chosen, p.rejected, questions=rest[i], sources=(names[i],)) for i, p in enumerate(pairs())
    ]


def test_the_vector_is_float32_and_starts_at_zero(world: Any) -> None:
    done = fitted(world, steps=1)
    assert done.vector.dtype == torch.float32
    # Adam's first step moves every value by the learning rate
    torch.testing.assert_close(done.vector.abs(), torch.full_like(done.vector, 0.02), rtol=1e-2, atol=0)


def test_training_stops_when_the_win_rate_no_longer_rises_and_keeps_the_best_vector(world: Any) -> None:
    stopping = {"held_out": 0.4, "every": 2, "patience": 2}
    done = fitted(world, steps=40, batch=64, stopping=stopping)
    rates = [entry["win_rate"] for entry in done.validations]
    assert [entry["step"] for entry in done.validations] == list(range(2, len(done.curve) + 1, 2))
    best = rates.index(max(rates))
    assert len(rates) == best + 3
    assert len(done.curve) < 40
    exactly = fitted(world, steps=2 * (best + 1), batch=64, stopping={**stopping, "patience": 100})
    assert torch.equal(done.vector, exactly.vector)


def test_contexts_that_are_held_out_are_not_trained_on(world: Any) -> None:
    done = fitted(world, steps=5, batch=64, keep_gradients=True, stopping={"held_out": 0.4, "every": 5, "patience": 1})
    _, examples = world
    trained = {examples[pair].context for batch, _ in done.gradients for pair in batch}
    assert len(trained) == 3
    assert [len(batch) for batch, _ in done.gradients] == [6] * 5


def test_without_stopping_all_steps_are_taken_on_all_pairs(world: Any) -> None:
    done = fitted(world, steps=3, batch=64, keep_gradients=True)
    assert [batch for batch, _ in done.gradients] == [list(range(10))] * 3
    assert done.validations == []


def test_too_few_contexts_to_hold_any_out_are_refused(base: Path, tmp_path: Path) -> None:
    profile = short_profile(stopping=settings_of(stopping={"held_out": 0.5, "every": 1, "patience": 1}).stopping)
    with pytest.raises(UserError, match="1 contexts with pairs: too few") as refusal:
        train_phase_two(FrozenPolicy(base), pairs()[:1], film, profile, SEED, tmp_path / "red")
    assert "\n" not in str(refusal.value)


def test_an_epoch_takes_each_pair_once_and_the_next_in_another_order(world: Any) -> None:
    done = fitted(world, steps=10, batch=2, keep_gradients=True)
    order = [pair for batch, _ in done.gradients for pair in batch]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]


def test_recording_every_pair_does_not_change_the_vector(world: Any) -> None:
    plain, recorded = fitted(world, steps=6, batch=4), fitted(world, sources=[("a",), ("b",)] * 5, steps=6, batch=4)
    assert plain.influence is None
    assert recorded.influence is not None
    assert float((plain.vector - recorded.vector).norm() / plain.vector.norm()) < 1e-4


def test_a_cap_changes_the_vector_when_a_source_is_loud(world: Any) -> None:
    sources = [("loud",)] * 8 + [("a",), ("b",)]
    free, bound = (fitted(world, sources=sources, steps=6, batch=64, influence_cap=cap) for cap in (None, 1.0))
    assert bound.influence is not None
    assert bound.influence.sources()["loud"]["capped_steps"] > 0
    assert float((free.vector - bound.vector).norm() / free.vector.norm()) > 1e-2


def test_kept_gradients_are_those_of_the_pairs_and_average_to_the_step(base: Path, tmp_path: Path) -> None:
    profile = short_profile(batch=5, steps=2, keep_gradients=True)
    adapter = train_phase_two(FrozenPolicy(base), pairs(), film, profile, SEED, tmp_path / "red")
    kept = load_file(adapter / "gradients.safetensors")
    assert kept.keys() == {"step_00001", "pairs_00001", "step_00002", "pairs_00002"}
    assert kept["pairs_00001"].tolist() == [0, 1, 2, 3, 4]
    curve = json.loads((adapter / "training.json").read_text())["steps"]
    for number, step in enumerate(curve, 1):
        assert float(kept[f"step_{number:05d}"].mean(0).norm()) == pytest.approx(step["grad_norm"], abs=2e-6)


def test_influence_is_written_with_the_questions_and_sources_of_every_pair(base: Path, tmp_path: Path) -> None:
    adapter = train_phase_two(
        FrozenPolicy(base), sourced("aabbc"), film, short_profile(batch=5), SEED, tmp_path / "red"
    )
    found = json.loads((adapter / "influence.json").read_text())
    assert [(p["context"], p["questions"], p["sources"]) for p in found["pairs"]] == [
        (p.context.id, list(p.questions), list(p.sources)) for p in sourced("aabbc")
    ]
    assert {name: entry["pairs"] for name, entry in found["sources"].items()} == {"a": 2, "b": 2, "c": 1}
    assert sum(entry["share"] for entry in found["sources"].values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_every_pair_of_a_context_that_was_mined_is_trained_on_in_one_row(base: Path, tmp_path: Path, kept: int) -> None:
    words = [completion_for(memory) for memory in ("a red box", "a green cup", "in the garden", "the door opens")]
    several = [Pair(context(1), words[0], other) for other in words[1 : 1 + kept]]
    out, told = tmp_path / "red", list[str]()
    profile = short_profile(batch=64, keep_gradients=True)
    train_phase_two(FrozenPolicy(base), several, film, profile, SEED, out, note=told.append)
    assert load_file(out / "gradients.safetensors")["step_00001"].shape == (kept, 96)
    assert told == [f"{kept} pairs of 1 contexts; trunks: 1 computed, 0 from the cache"]
