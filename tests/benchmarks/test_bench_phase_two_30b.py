"""bench-phase-two-30b: the true size on no memory at all, and the whole run at a tiny size."""

from dataclasses import replace

import pytest
import torch

from benchmarks.phase_two_30b import TEXT_30B, TEXT_TINY, Work, build_upper, contexts, measure_all, operations

CPU = torch.device("cpu")
TRUE_SIZE = Work(TEXT_30B, 22, 10000, 300, 4, 7, 8192, torch.bfloat16, torch.device("meta"))
TINY = Work(TEXT_TINY, 2, 50, 6, 2, 1, 64, torch.float32, CPU)


def test_at_true_size_25_layers_and_the_head_hold_32_gigabytes() -> None:
    upper = build_upper(TRUE_SIZE)
    assert list(upper.layers) == [str(number) for number in range(23, 48)]
    assert sum(p.numel() * p.element_size() for p in upper.parameters()) / 1e9 == pytest.approx(31.8, abs=0.1)


def test_at_true_size_a_pair_takes_130_tflop_and_24_among_four_candidates() -> None:
    upper = build_upper(TRUE_SIZE)
    assert operations(TRUE_SIZE, [300] * 2, upper) / 1e12 == pytest.approx(130, abs=0.5)
    assert operations(TRUE_SIZE, [300] * 4, upper) / 6e12 == pytest.approx(23.6, abs=0.1)


def test_contexts_hold_every_pair_of_their_candidates() -> None:
    trunks, examples = contexts(TINY, 3, 4)
    assert [e.context for e in examples] == [0] * 6 + [1] * 6 + [2] * 6
    assert all(e.chosen in trunks[e.context].completions for e in examples)
    assert trunks[0].prompt.hidden.shape == (50, 64)


def test_the_tiny_run_has_every_figure_but_memory() -> None:
    sides, shares = measure_all(TINY)
    assert sides["unpacked"]["pairs_per_step"] == 2
    assert sides["packed_4"]["pairs_per_step"] == 6
    for name in ("unpacked", "packed_4"):
        figures = sides[name]
        assert "peak_gb" not in figures
        assert figures["tflop_per_second"] * figures["seconds_per_pair"] == pytest.approx(figures["tflop_per_pair"])
        share = figures["tflop_per_second"] / sides["matrix product"]["tflop_per_second"]
        assert shares[f"{name}_share_of_ceiling"] == pytest.approx(share)


def test_the_weights_are_the_same_every_time() -> None:
    first, second = (build_upper(TINY) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.norm.weight.eq(1).all()
    assert build_upper(replace(TINY, layer=4)).first == 5
