"""The engine against TRL's DPOTrainer on the full model: same adapter, same pairs, same gradient."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from exactness_parts import Oracle, apart, case, encoder_of, engine_of, in_double, six_layers, somewhere
from phase_two_parts import SEED, short_profile

from taskmem.phase_two import engine
from taskmem.phase_two.fit import fit
from taskmem.progress import silent

BOUND = {torch.float32: 1e-5, torch.float64: 1e-7}


@pytest.fixture(scope="session")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    shipped = Path(__file__).parents[2] / "taskmem/world/base"
    return {"miniature": shipped, "six layers": six_layers(tmp_path_factory.mktemp("six") / "policy")}


# the miniature has DeepStack behind layer 0 of 4, the other model behind layers 0 to 2 of 6
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("video", [True, False], ids=["video", "text"])
@pytest.mark.parametrize(
    ("name", "layer", "pairs"),
    [("miniature", 1, 1), ("miniature", 1, 4), ("miniature", 1, 8), ("miniature", 0, 4), ("miniature", 3, 4)]
    + [("six layers", 1, 1), ("six layers", 1, 4), ("six layers", 1, 8)]
    + [("six layers", layer, 4) for layer in (0, 2, 4, 5)],
)
def test_the_gradient_is_that_of_the_full_model(
    policies: dict[str, Path],
    name: str,
    layer: int,
    pairs: int,
    video: bool,
    dtype: torch.dtype,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if dtype == torch.float64:
        in_double(monkeypatch)
    settings = short_profile(layer=layer).phase_two
    of = case(encoder_of(policies[name]), pairs, video)
    packed = engine_of(policies[name], layer, of, dtype)
    at = somewhere(packed.hidden_size)
    wanted, loss = Oracle(policies[name], settings, of, dtype, tmp_path).gradient(at)
    everything = range(len(of.examples))
    found = packed.step(at, everything, settings, per_pair=False)
    each = packed.step(at, everything, settings, per_pair=True)
    assert wanted.norm() > 0.05
    assert apart(found.gradients[0], wanted) <= BOUND[dtype]
    assert apart(each.gradients.mean(0), wanted) <= BOUND[dtype]
    assert float(found.losses.mean()) == pytest.approx(loss, abs=BOUND[dtype])


@pytest.mark.parametrize(("name", "loss", "smoothing"), [("miniature", "sigmoid", 0.0), ("six layers", "robust", 0.2)])
def test_the_vector_after_twenty_steps_is_that_of_the_full_model(
    policies: dict[str, Path], name: str, loss: str, smoothing: float, tmp_path: Path
) -> None:
    changes = {"steps": 20, "batch": 8, "loss": loss, "label_smoothing": smoothing, "layer": 1}
    settings = short_profile(**changes).phase_two
    of = case(encoder_of(policies[name]), pairs=4, video=True)
    oracle = Oracle(policies[name], settings, of, torch.float32, tmp_path)
    oracle.trainer.train()
    packed = engine_of(policies[name], 1, of, torch.float32)
    found = fit(packed, of.examples, [()] * len(of.examples), settings, SEED, silent)
    assert found.vector.norm() > 0.1
    assert apart(found.vector, oracle.vector.detach()) < 1e-4
    losses = [entry["loss"] for entry in oracle.trainer.state.log_history if "loss" in entry]
    assert [step["loss"] for step in found.curve] == pytest.approx(losses, abs=1e-5)


@pytest.mark.parametrize("pairs", [1, 3])
def test_a_pairs_gradient_does_not_depend_on_the_pairs_beside_it(policies: dict[str, Path], pairs: int) -> None:
    settings = short_profile(layer=1).phase_two
    of = case(encoder_of(policies["six layers"]), pairs, video=True, contexts=3)
    packed = engine_of(policies["six layers"], 1, of, torch.float64)
    at = somewhere(packed.hidden_size)
    together = packed.step(at, range(len(of.examples)), settings, per_pair=True)
    for i in range(len(of.examples)):
        alone = packed.step(at, [i], settings, per_pair=False)
        assert apart(together.gradients[i], alone.gradients[0]) < 1e-6
        assert float(together.losses[i]) == pytest.approx(float(alone.losses[0]), abs=1e-9)


def test_all_pairs_of_a_row_share_their_completions_backwards_and_keep_their_own_gradients(
    policies: dict[str, Path],
) -> None:
    settings = short_profile(layer=1).phase_two
    of = case(encoder_of(policies["six layers"]), pairs=3, video=True)
    # the first context with all six pairs of its four completions, the second with one
    first = [e for e in of.examples if e.context == 0]
    known = list(dict.fromkeys(tokens for e in first for tokens in (e.chosen, e.rejected)))
    every = [replace(first[0], chosen=a, rejected=b) for a, b in combinations(known, 2)]
    examples = [*every, next(e for e in of.examples if e.context == 1)]
    assert (len(known), len(examples)) == (4, 7)
    packed = engine_of(policies["six layers"], 1, replace(of, examples=examples), torch.float64)
    at = somewhere(packed.hidden_size)
    together = packed.step(at, range(7), settings, per_pair=True)
    for i in range(7):
        alone = packed.step(at, [i], settings, per_pair=False)
        assert apart(together.gradients[i], alone.gradients[0]) < 1e-6
    whole = packed.step(at, range(7), settings, per_pair=False)
    assert apart(together.gradients.mean(0), whole.gradients[0]) < 1e-6


def test_rows_in_batches_of_one_give_the_same_as_all_at_once(policies: dict[str, Path]) -> None:
    settings = short_profile(layer=1).phase_two
    of = case(encoder_of(policies["six layers"]), pairs=2, video=True, contexts=3)
    at = somewhere(64)
    one, all_ = (engine_of(policies["six layers"], 1, of, torch.float64, size) for size in (1, 1 << 20))
    for per_pair in (True, False):
        found, wanted = (e.step(at, range(6), settings, per_pair=per_pair) for e in (one, all_))
        assert apart(found.gradients, wanted.gradients) < 1e-6
        torch.testing.assert_close(found.logps.chosen, wanted.logps.chosen, rtol=0, atol=1e-6)


def test_logits_made_piece_by_piece_give_the_same(policies: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = short_profile(layer=1).phase_two
    of = case(encoder_of(policies["six layers"]), pairs=3, video=True)
    packed = engine_of(policies["six layers"], 1, of, torch.float64)
    at = somewhere(packed.hidden_size)
    whole = packed.step(at, range(6), settings, per_pair=False)
    monkeypatch.setattr(engine, "HEAD_TOKENS", 5)
    pieces = packed.step(at, range(6), settings, per_pair=False)
    assert apart(pieces.gradients, whole.gradients) < 1e-6
    torch.testing.assert_close(pieces.losses, whole.losses, rtol=1e-9, atol=1e-9)


def test_with_a_zero_vector_nothing_is_gained_or_lost(policies: dict[str, Path]) -> None:
    of = case(encoder_of(policies["miniature"]), pairs=3, video=True)
    packed = engine_of(policies["miniature"], 1, of, torch.float64)
    logps = packed.logps(torch.zeros(packed.hidden_size), range(len(of.examples)))
    torch.testing.assert_close(logps.difference, torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-9)
