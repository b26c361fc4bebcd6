"""Accuracy, coverage and precision, with intervals clustered by video (METHOD section 5).

Questions about one video share its memories, so they are not independent: every interval comes from a bootstrap that
draws whole streams with replacement, and takes the percentiles of the draws at `EvaluationSettings.confidence`. With
one stream there is nothing to draw from, and the interval is the estimate itself. All shares are fractions in [0, 1].
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskmem.config import EvaluationSettings
from taskmem.errors import UserError
from taskmem.records import Part

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Graded:
    """One question, answered or not, and whether the answer was right. ValueError if it is right without an answer."""

    question: str
    stream: str
    type: str
    environment: str
    answered: bool
    correct: bool

    def __post_init__(self) -> None:
        if self.correct and not self.answered:
            raise ValueError(f"question {self.question}: correct without an answer")

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What makes two gradings about the same question."""
        return self.environment, self.stream, self.type, self.question


class Measure(Part):
    """Accuracy = correct / asked, coverage = answered / asked, precision = correct / answered.

    Where a denominator is 0 the share is 0, so that accuracy = coverage x precision holds in every cell. `ci95` is the
    interval of the accuracy at the settings' confidence (0.95 in every shipped profile).
    """

    asked: int
    answered: int
    correct: int
    accuracy: float
    coverage: float
    precision: float
    ci95: Interval


class Difference(Part):
    """Accuracy of one arm minus another's, as a fraction, and its interval."""

    mean: float
    ci95: Interval


class Breakdown(Part):
    """All questions together, and those of each type and of each environment (names sorted)."""

    overall: Measure
    by_type: dict[str, Measure]
    by_environment: dict[str, Measure]


@dataclass(frozen=True)
class _Streams:
    """Per stream, in the order of the names: a sum over its questions (`total`) and how many there are (`asked`)."""

    names: tuple[str, ...]
    total: Counts
    asked: Counts

    @property
    def mean(self) -> float:
        return float(self.total.sum() / self.asked.sum())

    def resampled(self, draws: Counts) -> Floats:
        """The mean over the streams of each draw; `draws` is [samples, streams] of stream indices."""
        means: Floats = self.total[draws].sum(axis=1) / self.asked[draws].sum(axis=1)
        return means


def _by_stream(values: Iterable[tuple[str, int]]) -> _Streams:
    sums: dict[str, tuple[int, int]] = {}
    for stream, value in values:
        total, asked = sums.get(stream, (0, 0))
        sums[stream] = total + value, asked + 1
    names = tuple(sorted(sums))
    columns = np.array([sums[name] for name in names], dtype=np.int64)
    return _Streams(names, columns[:, 0], columns[:, 1])


def _draw(rng: np.random.Generator, streams: int, settings: EvaluationSettings) -> Counts:
    return rng.integers(streams, size=(settings.bootstrap_samples, streams))


def _interval(samples: Floats, settings: EvaluationSettings) -> Interval:
    tail = (1 - settings.confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def measure(graded: Sequence[Graded], settings: EvaluationSettings, seed: int) -> Measure:
    """Measure one cell; the order of `graded` does not matter. No questions give zeros with asked = 0."""
    asked, answered = len(graded), sum(g.answered for g in graded)
    correct = sum(g.correct for g in graded)
    interval = (0.0, 0.0)
    if graded:
        streams = _by_stream((g.stream, int(g.correct)) for g in graded)
        draws = _draw(np.random.default_rng(seed), len(streams.names), settings)
        interval = _interval(streams.resampled(draws), settings)
    return Measure(
        asked=asked,
        answered=answered,
        correct=correct,
        accuracy=correct / asked if asked else 0.0,
        coverage=answered / asked if asked else 0.0,
        precision=correct / answered if answered else 0.0,
        ci95=interval,
    )


def breakdown(graded: Sequence[Graded], settings: EvaluationSettings, seed: int) -> Breakdown:
    """Measure all questions, each type and each environment; a cell does not depend on what else is in `graded`."""
    types, environments = sorted({g.type for g in graded}), sorted({g.environment for g in graded})
    return Breakdown(
        overall=measure(graded, settings, seed),
        by_type={name: measure([g for g in graded if g.type == name], settings, seed) for name in types},
        by_environment={
            name: measure([g for g in graded if g.environment == name], settings, seed) for name in environments
        },
    )


def _indexed(graded: Sequence[Graded], arm: str) -> dict[tuple[str, str, str, str], Graded]:
    index = {g.key: g for g in graded}
    if len(index) != len(graded):
        raise UserError(
            f"the {arm} arm grades {len(graded) - len(index)} questions twice; grade each question once an arm"
        )
    return index


def _paired(a: Sequence[Graded], b: Sequence[Graded]) -> _Streams:
    """Per stream the sum of correct(a) - correct(b) over the questions both arms were asked."""
    first, second = _indexed(a, "first"), _indexed(b, "second")
    unmatched = sorted(first.keys() ^ second.keys())
    if unmatched:
        raise UserError(
            f"the arms differ in {len(unmatched)} questions, the first of them {'/'.join(unmatched[0])}; "
            "evaluate both arms on the same questions"
        )
    if not first:
        raise UserError("there is no question to compare the arms on; evaluate both on at least one")
    return _by_stream((g.stream, int(g.correct) - int(second[key].correct)) for key, g in first.items())


def paired_difference(a: Sequence[Graded], b: Sequence[Graded], settings: EvaluationSettings, seed: int) -> Difference:
    """Accuracy of `a` minus accuracy of `b` over the same questions; both arms see the same draws of streams.

    Raises UserError if the arms were not asked the same questions, each once, or none at all.
    """
    return pooled_difference([(a, b)], settings, seed)


def pooled_difference(
    runs: Sequence[tuple[Sequence[Graded], Sequence[Graded]]], settings: EvaluationSettings, seed: int
) -> Difference:
    """Mean over runs (seeds x bases) of accuracy a - accuracy b; every run counts alike.

    Hierarchical bootstrap: draw as many runs as there are, with replacement, then for each of them as many streams as
    it has. Runs over the same stream names share their draw of streams, because a video that is hard in one is hard in
    all, and more runs over it do not make it less of an accident; a run with streams of its own draws anew each time it
    is drawn. With few runs the spread between them is estimated from few values and comes out too small: read the
    interval of three runs with care. Raises UserError as `paired_difference`, ValueError if there are no runs.
    """
    if not runs:
        raise ValueError("pooled_difference needs at least one run")
    rng = np.random.default_rng(seed)
    paired = [_paired(a, b) for a, b in runs]
    count = len(paired)
    # values[place, run, sample]: what `run` contributes if it is drawn for `place`
    values = np.empty((count, count, settings.bootstrap_samples))
    for members in _same_streams(paired):
        for place in range(count):
            if place == 0 or len(members) == 1:
                draws = _draw(rng, len(paired[members[0]].names), settings)
                sampled = np.stack([paired[run].resampled(draws) for run in members])
            values[place, members] = sampled
    drawn = rng.integers(count, size=(count, 1, settings.bootstrap_samples))
    samples = np.take_along_axis(values, drawn, axis=1)[:, 0].mean(axis=0)
    return Difference(mean=float(np.mean([p.mean for p in paired])), ci95=_interval(samples, settings))


def _same_streams(paired: Sequence[_Streams]) -> list[list[int]]:
    """The runs' indices, grouped by the streams they are over."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for run, streams in enumerate(paired):
        groups.setdefault(streams.names, []).append(run)
    return list(groups.values())
