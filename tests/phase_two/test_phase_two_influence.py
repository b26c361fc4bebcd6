"""Gradients by source: without a cap the ordinary gradient, with one nobody's step is longer than their share."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskmem.phase_two.influence import UNKNOWN, Influence, capped, source_weights

NAMES = st.lists(st.sampled_from("abcd"), max_size=3)


def gradients(pairs: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(pairs, 16, generator=torch.Generator().manual_seed(seed))


@given(st.lists(NAMES, min_size=1, max_size=8), st.integers(0, 99))
def test_without_a_cap_the_sources_parts_sum_to_the_ordinary_gradient(sources: list[list[str]], seed: int) -> None:
    found = gradients(len(sources), seed)
    _, weights = source_weights(sources)
    ordinary = found.mean(0)
    torch.testing.assert_close((weights.float() @ found / len(sources)).sum(0), ordinary, rtol=1e-4, atol=1e-6)
    assert torch.equal(Influence(sources).aggregate(found, range(len(sources)), cap=None), ordinary)
    wide = Influence(sources).aggregate(found, range(len(sources)), cap=1e9)
    torch.testing.assert_close(wide, ordinary, rtol=1e-4, atol=1e-6)


@given(st.lists(NAMES, min_size=1, max_size=8), st.floats(0.1, 3))
def test_with_a_cap_no_part_is_longer_than_so_many_median_norms(sources: list[list[str]], cap: float) -> None:
    _, weights = source_weights(sources)
    parts = weights.float() @ gradients(len(sources))
    kept = capped(parts, cap)
    assert bool((kept.norm(dim=1) <= cap * parts.norm(dim=1).median() * (1 + 1e-5)).all())
    assert torch.cosine_similarity(kept, parts).min() > 1 - 1e-5


def test_a_loud_source_is_shortened_and_the_others_are_not() -> None:
    found = gradients(4)
    found[0] *= 100
    sources = [["loud"], ["a"], ["b"], ["c"]]
    influence = Influence(sources)
    total = influence.aggregate(found, range(4), cap=1.5)
    assert total.norm() < found.mean(0).norm() / 10
    report = influence.sources()
    assert {name: entry["capped_steps"] for name, entry in report.items()} == {"loud": 1, "a": 0, "b": 0, "c": 0}
    assert report["loud"]["norm"] == pytest.approx(float(found[0].norm()) / 4, rel=1e-6)


def test_of_two_sources_the_louder_cannot_lift_its_own_bound() -> None:
    parts = torch.tensor([[1.0, 0.0], [0.0, 50.0]])
    assert capped(parts, 1.0).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_the_shares_of_all_sources_and_of_all_pairs_sum_to_one() -> None:
    influence = Influence([["a"], ["a", "b"], ["c"], []])
    for step, cap in enumerate([None, 0.5]):
        influence.aggregate(gradients(4, step), range(4), cap)
    assert sum(entry["share"] for entry in influence.sources().values()) == pytest.approx(1, abs=1e-5)
    assert sum(influence.pair(i)["share"] for i in range(4)) == pytest.approx(1, abs=1e-5)


def test_a_pair_speaks_in_equal_parts_for_each_of_its_sources_or_for_an_unknown_one() -> None:
    influence = Influence([["a", "b"], ["a", "a"], []])
    assert {name: entry["pairs"] for name, entry in influence.sources().items()} == {"a": 1.5, "b": 0.5, UNKNOWN: 1}


def test_a_source_that_is_not_in_the_batch_neither_counts_nor_sets_the_bound() -> None:
    influence = Influence([["a"], ["b"], ["c"]])
    found = gradients(1)
    torch.testing.assert_close(influence.aggregate(found, [1], cap=1.0), found[0])
    assert {name: entry["steps"] for name, entry in influence.sources().items()} == {"a": 0, "b": 1, "c": 0}
    assert influence.pair(1)["norm"] == pytest.approx(float(found.norm()), rel=1e-6)


def test_gradients_of_zero_leave_everything_at_zero() -> None:
    influence = Influence([["a"], ["b"]])
    assert not influence.aggregate(torch.zeros(2, 16), range(2), cap=1.0).any()
    assert influence.sources()["a"]["share"] == 0
