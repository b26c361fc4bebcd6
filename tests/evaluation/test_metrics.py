"""Accuracy, coverage, precision and their intervals."""

import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskmem.config import EvaluationSettings
from taskmem.errors import UserError
from taskmem.evaluation.metrics import (
    Breakdown,
    Graded,
    Measure,
    breakdown,
    measure,
    paired_difference,
    pooled_difference,
)

SETTINGS = EvaluationSettings(feedback_questions=5, bootstrap_samples=400, confidence=0.95)
MANY = SETTINGS.model_copy(update={"bootstrap_samples": 20_000})


def grade(question: int, stream: int, outcome: str, type: str = "colour", environment: str = "shop") -> Graded:
    return Graded(f"q{question}", f"s{stream}", type, environment, outcome != "silent", outcome == "right")


def streams(*accuracies: list[int]) -> list[Graded]:
    """One stream per argument; 1 is a right answer, 0 a wrong one."""
    outcomes = {1: "right", 0: "wrong"}
    return [grade(n, s, outcomes[v]) for s, values in enumerate(accuracies) for n, v in enumerate(values)]


cells = st.lists(
    st.builds(
        grade,
        st.integers(0, 10**6),
        st.integers(0, 5),
        st.sampled_from(["right", "wrong", "silent"]),
        st.sampled_from(["colour", "count"]),
        st.sampled_from(["shop", "home"]),
    ),
    max_size=40,
    unique_by=lambda g: g.question,
)


@given(cells)
def test_accuracy_is_coverage_times_precision_in_every_cell(graded: list[Graded]) -> None:
    table = breakdown(graded, SETTINGS, seed=0)
    for cell in (table.overall, *table.by_type.values(), *table.by_environment.values()):
        assert abs(cell.accuracy - cell.coverage * cell.precision) < 1e-12
        assert cell.correct <= cell.answered <= cell.asked
        assert 0 <= cell.ci95[0] <= cell.accuracy <= cell.ci95[1] <= 1


@given(cells, st.randoms(use_true_random=False))
def test_the_order_of_the_questions_does_not_matter(graded: list[Graded], rng: random.Random) -> None:
    shuffled = rng.sample(graded, len(graded))
    assert breakdown(shuffled, SETTINGS, seed=3) == breakdown(graded, SETTINGS, seed=3)
    if graded:
        worse = [replace(g, correct=False) for g in graded]
        expected = paired_difference(graded, worse, SETTINGS, seed=3)
        assert paired_difference(shuffled, rng.sample(worse, len(worse)), SETTINGS, seed=3) == expected


def test_the_shares_are_those_of_the_counts() -> None:
    graded = [grade(n, n, o) for n, o in enumerate(["right"] * 3 + ["wrong"] * 2 + ["silent"] * 5)]
    cell = measure(graded, SETTINGS, seed=0)
    assert (cell.asked, cell.answered, cell.correct) == (10, 5, 3)
    assert (cell.accuracy, cell.coverage, cell.precision) == (0.3, 0.5, 0.6)


def test_no_questions_give_zeros() -> None:
    zeros = Measure(asked=0, answered=0, correct=0, accuracy=0.0, coverage=0.0, precision=0.0, ci95=(0.0, 0.0))
    assert measure([], SETTINGS, seed=0) == zeros
    assert breakdown([], SETTINGS, seed=0) == Breakdown(overall=zeros, by_type={}, by_environment={})


def test_where_nothing_was_answered_precision_is_zero() -> None:
    cell = measure([grade(1, 1, "silent"), grade(2, 1, "silent")], SETTINGS, seed=0)
    assert (cell.asked, cell.accuracy, cell.coverage, cell.precision) == (2, 0.0, 0.0, 0.0)


def test_a_right_answer_that_was_not_given_is_impossible() -> None:
    with pytest.raises(ValueError, match="question q1: correct without an answer"):
        Graded("q1", "s", "t", "e", answered=False, correct=True)


def test_a_measure_is_a_json_document_with_the_names_of_the_results() -> None:
    cell = measure(streams([1, 0]), SETTINGS, seed=0)
    assert cell.model_dump(mode="json") == {
        "asked": 2,
        "answered": 2,
        "correct": 1,
        "accuracy": 0.5,
        "coverage": 1.0,
        "precision": 0.5,
        "ci95": [0.5, 0.5],
    }
    assert Measure.model_validate_json(cell.model_dump_json()) == cell


def test_equal_streams_leave_nothing_uncertain() -> None:
    assert measure(streams([1, 0], [0, 1], [1, 0]), SETTINGS, seed=0).ci95 == (0.5, 0.5)


def test_the_interval_of_two_opposite_streams_is_everything() -> None:
    # Each draw is 0, 1/2 or 1 with chance 1/4, 1/2, 1/4: more than 2.5 % lie at either end.
    assert measure(streams([1] * 50, [0] * 50), MANY, seed=0).ci95 == (0.0, 1.0)


def test_one_question_a_stream_gives_the_binomial_interval() -> None:
    # 40 of 100: the 2.5 % and 97.5 % points of Binomial(100, 0.4) are 31 and 50.
    graded = streams(*([1] for _ in range(40)), *([0] for _ in range(60)))
    assert measure(graded, MANY, seed=1).ci95 == pytest.approx((0.31, 0.50), abs=0.011)


def test_questions_of_one_video_do_not_count_as_independent() -> None:
    # 20 videos whose 25 questions are all right or all wrong tell as much as 20 questions.
    clustered = measure(streams(*([n % 2] * 25 for n in range(20))), MANY, seed=0)
    single = measure(streams(*([n % 2] for n in range(20))), MANY, seed=0)
    assert clustered.ci95 == single.ci95


def test_streams_weigh_by_their_questions() -> None:
    cell = measure(streams([1] * 9, [0]), MANY, seed=0)
    assert (cell.accuracy, cell.ci95) == (0.9, (0.0, 1.0))


def test_the_interval_is_the_seeds_and_its_width_the_confidences() -> None:
    graded = streams(*([n % 2, *[n % 3 == 0] * (n % 7)] for n in range(200)))
    assert measure(graded, SETTINGS, seed=1) == measure(graded, SETTINGS, seed=1)
    assert measure(graded, SETTINGS, seed=1).ci95 != measure(graded, SETTINGS, seed=2).ci95
    wide = measure(graded, MANY, seed=1).ci95
    narrow = measure(graded, MANY.model_copy(update={"confidence": 0.5}), seed=1).ci95
    # Of a normal distribution: 1.96 and 0.674 standard deviations.
    assert (wide[1] - wide[0]) / (narrow[1] - narrow[0]) == pytest.approx(1.96 / 0.674, rel=0.15)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng, truth, hits = np.random.default_rng(0), 0.6, 0
    for run in range(300):
        chances = rng.beta(3, 2, size=40)  # mean 0.6
        graded = streams(*((rng.random(4) < chance).astype(int).tolist() for chance in chances))
        low, high = measure(graded, SETTINGS, seed=run).ci95
        hits += low <= truth <= high
    # Three standard errors of 300 tries around 0.95, and the bootstrap of 40 clusters is a little short.
    assert 0.90 <= hits / 300 <= 0.985


def test_a_breakdown_measures_each_type_and_environment_on_its_own() -> None:
    graded = [
        grade(n, n % 4, ("right", "wrong", "silent")[n % 3], type, environment)
        for n, (type, environment, _) in enumerate(product(("count", "colour"), ("shop", "home"), range(5)))
    ]
    table = breakdown(graded, SETTINGS, seed=5)
    assert table.overall == measure(graded, SETTINGS, seed=5)
    assert list(table.by_type) == ["colour", "count"]
    assert list(table.by_environment) == ["home", "shop"]
    assert table.by_type["count"] == measure(graded[:10], SETTINGS, seed=5)
    assert sum(m.correct for m in table.by_environment.values()) == table.overall.correct


def test_the_difference_of_an_arm_to_itself_is_exactly_nothing() -> None:
    graded = streams([1, 0, 1], [0, 0], [1])
    difference = paired_difference(graded, graded, SETTINGS, seed=0)
    assert (difference.mean, difference.ci95) == (0.0, (0.0, 0.0))


def test_a_gain_that_every_video_shares_is_certain_however_much_the_videos_differ() -> None:
    base = streams(*([0] + [n % 2] * 3 for n in range(20)))
    better = streams(*([1] + [n % 2] * 3 for n in range(20)))
    difference = paired_difference(better, base, SETTINGS, seed=0)
    assert (difference.mean, difference.ci95) == (0.25, (0.25, 0.25))
    assert paired_difference(base, better, SETTINGS, seed=0).mean == -0.25


@given(cells.filter(bool), st.randoms(use_true_random=False))
def test_the_difference_is_that_of_the_accuracies_and_lies_in_its_interval(
    graded: list[Graded], rng: random.Random
) -> None:
    other = [replace(g, answered=True, correct=rng.random() < 0.5) for g in graded]
    difference = paired_difference(graded, other, SETTINGS, seed=1)
    apart = measure(graded, SETTINGS, 1).accuracy - measure(other, SETTINGS, 1).accuracy
    assert difference.mean == pytest.approx(apart, abs=1e-12)
    assert -1 <= difference.ci95[0] <= difference.mean <= difference.ci95[1] <= 1


@pytest.mark.parametrize(
    ("b", "message"),
    [
        ([grade(0, 0, "right")], "differ in 1 questions, the first of them shop/s0/colour/q1;"),
        ([grade(0, 0, "right"), grade(1, 1, "right")], "differ in 2 questions"),
        ([grade(0, 0, "right"), grade(1, 0, "right"), grade(1, 0, "wrong")], "the second arm grades 1 questions twice"),
    ],
)
def test_arms_with_other_questions_are_not_compared(b: list[Graded], message: str) -> None:
    with pytest.raises(UserError, match=message):
        paired_difference(streams([1, 1]), b, SETTINGS, seed=0)


def test_nothing_is_not_compared() -> None:
    with pytest.raises(UserError, match="no question to compare"):
        paired_difference([], [], SETTINGS, seed=0)
    with pytest.raises(ValueError, match="at least one run"):
        pooled_difference([], SETTINGS, seed=0)


def test_every_run_counts_alike_in_the_pooled_mean() -> None:
    small = (streams([1]), streams([0]))
    large = (streams([0] * 9, [0] * 9), streams([0] * 9, [0] * 9))
    assert pooled_difference([small, large], SETTINGS, seed=0).mean == 0.5
    # Each place draws the first run with chance 1/2.
    assert pooled_difference([small, large], MANY, seed=0).ci95 == (0.0, 1.0)


def test_one_run_pooled_is_the_paired_difference() -> None:
    a, b = streams([1, 0], [1, 1], [0, 1]), streams([0, 0], [1, 0], [1, 1])
    assert pooled_difference([(a, b)], SETTINGS, seed=4) == paired_difference(a, b, SETTINGS, seed=4)


def _opposite_videos(offset: int) -> tuple[list[Graded], list[Graded]]:
    """Ten videos, five of them won and five lost."""
    a = [grade(0, offset + s, "right" if s % 2 else "wrong") for s in range(10)]
    return a, [replace(g, correct=not g.correct) for g in a]


def test_more_runs_over_the_same_videos_do_not_narrow_the_interval_but_more_videos_do() -> None:
    def width(offsets: list[int]) -> float:
        low, high = pooled_difference([_opposite_videos(o) for o in offsets], MANY, seed=0).ci95
        return high - low

    assert width([0] * 9) == pytest.approx(width([0]), rel=0.05)
    assert width([100 * n for n in range(9)]) == pytest.approx(width([0]) / 3, rel=0.2)


@pytest.mark.parametrize("shared", [True, False])
def test_the_pooled_interval_covers_the_truth_whether_runs_share_videos_or_not(shared: bool) -> None:
    rng, hits, tries, truth = np.random.default_rng(1), 0, 150, 0.2
    for run in range(tries):
        runs, gains = [], rng.normal(truth, 0.15, size=20)
        for number in range(6):
            if not shared:
                gains = rng.normal(truth, 0.15, size=20)
            run_gain = rng.normal(0, 0.05)
            a, b = [], []
            for stream, gain in enumerate(gains):
                for question, level in enumerate(rng.random(4)):
                    name = stream if shared else 100 * number + stream
                    b.append(grade(question, name, "right" if level < 0.4 else "wrong"))
                    a.append(grade(question, name, "right" if level < 0.4 + gain + run_gain else "wrong"))
            runs.append((a, b))
        low, high = pooled_difference(runs, SETTINGS, seed=run).ci95
        hits += low <= truth <= high
    assert hits / tries >= 0.88
