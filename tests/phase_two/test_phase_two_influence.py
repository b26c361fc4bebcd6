"""Gradients by source: without a cap the ordinary gradient, with one nobody's step is longer than their share."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskmem.phase_two.influence import UNKNOWN, Influence, agreement, capped, leading, source_weights

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


def test_the_leading_sources_are_those_with_the_largest_part_of_all_steps() -> None:
    # a share is the mean over the steps that a source took part in
    sources = {
        "rare": {"share": 1.0, "steps": 1},
        "steady": {"share": 0.6, "steps": 9},
        "against": {"share": -0.4, "steps": 6},
        "quiet": {"share": 0.5, "steps": 12},
        "small": {"share": 0.01, "steps": 2},
    }
    parts = leading(sources, 3)
    assert [name for name, _ in parts] == ["quiet", "steady", "against"]
    assert sum(part for _, part in leading(sources, 99)) == pytest.approx(1)
    assert dict(parts)["against"] == pytest.approx(-2.4 / 10.02)


def test_equal_parts_are_led_by_name_and_nobody_leads_where_nothing_moved() -> None:
    equal = {name: {"share": 0.25, "steps": 4} for name in "dbca"}
    assert [name for name, _ in leading(equal, 3)] == ["a", "b", "c"]
    assert leading({"a": {"share": 0.0, "steps": 4}}, 3) == []


def test_the_parts_of_a_training_sum_to_one() -> None:
    influence = Influence([["a"], ["a", "b"], ["c"], []])
    for step in range(3):
        influence.aggregate(gradients(2, step), [step, step + 1], cap=None)
    assert sum(part for _, part in leading(influence.sources(), 9)) == pytest.approx(1, abs=1e-5)


def crowd_of(pulls: dict[str, torch.Tensor], pairs: int) -> tuple[torch.Tensor, list[list[str]]]:
    """Pairs that each show three of everybody's four questions, and whose gradient is what these add up to, and some noise."""
    random = torch.Generator().manual_seed(0)
    questions = [name for name in pulls for _ in range(4)]
    shown = [[questions[i] for i in torch.randperm(len(questions), generator=random)[:3]] for _ in range(pairs)]
    noise = 0.1 * torch.randn(pairs, 6, generator=random)
    return torch.stack([sum((pulls[name] for name in of), torch.zeros(6)) for of in shown]) + noise, shown


def test_the_source_that_pulls_against_the_rest_is_found_though_every_pair_rests_on_several() -> None:
    north, east = torch.eye(6)[:2]
    found, shown = crowd_of({"a": north, "b": north + 0.3 * east, "c": north, "bad": -0.5 * north}, 200)
    influence = Influence(shown)
    for batch in torch.randperm(200, generator=torch.Generator().manual_seed(1)).view(4, 50).tolist():
        influence.aggregate(found[batch], batch, cap=None)
    agreements = {name: of["agreement"] for name, of in influence.sources().items()}
    assert agreements["bad"] < -0.9
    assert all(agreements[name] > 0.9 for name in "abc")


def test_of_sources_that_pull_alike_none_pulls_against_the_rest() -> None:
    found, shown = crowd_of(dict.fromkeys("abcd", torch.ones(6)), 200)
    names, weights = source_weights(shown)
    assert agreement(found, weights.T).min() > 0.9
    assert len(names) == 4


def test_a_source_alone_or_in_no_step_pulls_nowhere() -> None:
    alone = Influence([["a"], ["a"]])
    alone.aggregate(gradients(2), range(2), cap=None)
    assert alone.sources()["a"]["agreement"] == 0
    absent = Influence([["a"], ["b"], ["c"]])
    absent.aggregate(gradients(2), range(2), cap=None)
    assert absent.sources()["c"]["agreement"] == 0
    assert Influence([["a"]]).sources()["a"]["agreement"] == 0


def test_a_source_weighs_as_often_as_it_asked_what_a_pair_rests_on() -> None:
    names, weights = source_weights([["a", "a", "b"], ["b"]])
    assert names == ["a", "b"]
    assert weights.tolist() == [[pytest.approx(2 / 3), 0], [pytest.approx(1 / 3), 1]]
