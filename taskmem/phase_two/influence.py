"""Who moves the vector: every pair's gradient, added up per source, so that no source can move it further than its share.

A pair's gradient is as large as the vector, 8 KB, so each can be looked at. A pair that rests on several questions counts for the
source of each in equal parts; the parts of all sources sum to the ordinary gradient. A part tells who asked most; which way a
source pulls is seen from pairs with more and with fewer of its questions, see `agreement`.
"""

from collections.abc import Mapping, Sequence

import torch

UNKNOWN = "unknown"
"""The source of a pair that names none."""


def source_weights(sources: Sequence[Sequence[str]]) -> tuple[list[str], torch.Tensor]:
    """The names of all sources, sorted, and each pair's weight in each, [sources, pairs]; a pair's weights sum to one.

    A source stands in a pair once for each of its questions there.
    """
    of_pair = [tuple(named) or (UNKNOWN,) for named in sources]
    names = sorted({name for named in of_pair for name in named})
    weights = torch.zeros(len(names), len(of_pair), dtype=torch.float64)
    for pair, named in enumerate(of_pair):
        for name in named:
            weights[names.index(name), pair] += 1 / len(named)
    return names, weights


def capped(contributions: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Contributions [sources, H], each shortened to at most `cap` times the lower median of their norms.

    The lower median, so that one of two sources cannot lift its own bound. None leaves them as they are.
    """
    if cap is None:
        return contributions
    norms = contributions.norm(dim=1, keepdim=True)
    bound = cap * norms.median()
    return contributions * torch.where(norms > bound, bound / norms, torch.ones_like(norms))


class _Parts:
    """Running means, over the steps each part took part in, of its gradient's norm and of its share of the step."""

    def __init__(self, count: int) -> None:
        self.steps, self._norms, self._shares = (torch.zeros(count, dtype=torch.float64) for _ in range(3))

    def add(self, here: torch.Tensor, raw: torch.Tensor, kept: torch.Tensor, total: torch.Tensor) -> None:
        """Take in a step's parts [n, H] at the places `here`: as they came, as they were kept, and what they summed to."""
        size = float(total.double().square().sum())
        along = (kept.double() @ total.double()).cpu()
        self.steps[here] += 1
        self._norms[here] += raw.double().norm(dim=1).cpu()
        self._shares[here] += along / size if size > 0 else torch.zeros_like(along)

    def report(self, number: int) -> dict[str, float]:
        """The means of one part."""
        steps = max(1.0, float(self.steps[number]))
        return {
            "steps": int(self.steps[number]),
            "norm": round(float(self._norms[number]) / steps, 9),
            "share": round(float(self._shares[number]) / steps, 6),
        }


class Influence:
    """Aggregates gradients step by step and remembers who contributed what. `sources` are those of each pair."""

    def __init__(self, sources: Sequence[Sequence[str]]) -> None:
        self.names, self._weights = source_weights(sources)
        self._of_sources, self._of_pairs = _Parts(len(self.names)), _Parts(len(sources))
        self._shortened = torch.zeros(len(self.names), dtype=torch.int64)
        self._gradients: torch.Tensor | None = None  # of each pair, summed over its steps

    def aggregate(self, gradients: torch.Tensor, pairs: Sequence[int], cap: float | None) -> torch.Tensor:
        """The gradient [H] of a step from those of its `pairs`, [pairs, H]: without a cap, their mean."""
        weights = self._weights[:, list(pairs)].to(gradients)
        present = weights.sum(1) > 0
        contributions = weights[present] @ gradients / len(pairs)
        kept = capped(contributions, cap)
        total = gradients.mean(0) if cap is None else kept.sum(0)
        here = present.cpu()
        self._of_sources.add(here, contributions, kept, total)
        # what is left of a pair once each of its sources has been shortened
        factors = kept.norm(dim=1) / contributions.norm(dim=1).clamp(min=torch.finfo(kept.dtype).tiny)
        of_pairs = gradients * (weights[present].T @ factors)[:, None] / len(pairs)
        self._of_pairs.add(torch.tensor(list(pairs)), gradients, of_pairs, total)
        if self._gradients is None:
            self._gradients = torch.zeros(self._weights.shape[1], gradients.shape[1], dtype=torch.float64)
        self._gradients[list(pairs)] += gradients.double().cpu()
        self._shortened[here] += (kept != contributions).any(1).cpu()
        return total

    def sources(self) -> dict[str, dict[str, float]]:
        """By source: the pairs it speaks for, the steps it took part in, and those in which it was shortened; over these steps,
        the mean norm of its contribution before that, and its mean share of the step. The shares of a step sum to 1. And its
        `agreement` with all others.
        """
        agreements = self._agreements()
        return {
            name: {
                "pairs": round(float(self._weights[i].sum()), 6),
                "capped_steps": int(self._shortened[i]),
                **self._of_sources.report(i),
                "agreement": round(agreements[i], 6),
            }
            for i, name in enumerate(self.names)
        }

    def _agreements(self) -> list[float]:
        if self._gradients is None:
            return [0.0] * len(self.names)
        took_part = self._of_pairs.steps > 0
        means = self._gradients[took_part] / self._of_pairs.steps[took_part, None]
        return agreement(means, self._weights.T[took_part]).tolist()

    def pair(self, number: int) -> dict[str, float]:
        """Of one pair: the steps it took part in, and over these its gradient's mean norm and its mean share of the step."""
        return self._of_pairs.report(number)


def agreement(gradients: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """How far each source pulls where the others do, [sources], from -1 (against them) to 1; 0 where it pulls nowhere.

    `gradients` [pairs, H] are those of the pairs, `shown` [pairs, sources] each source's share of a pair's questions. The pulls
    are what explains the gradients best by least squares, as sums over a pair's questions; the agreement is the cosine between a
    source's pull and the sum of all others', each by the questions it was shown with.
    """
    # of many solutions the shortest; the routine that finds it is the CPU's
    each = torch.linalg.lstsq(shown.double().cpu(), gradients.double().cpu(), driver="gelsd").solution
    pulls = each * shown.sum(0).double().cpu()[:, None]
    return torch.cosine_similarity(pulls, pulls.sum(0) - pulls, dim=1)


def leading(sources: Mapping[str, Mapping[str, float]], most: int) -> list[tuple[str, float]]:
    """The `most` sources with the largest part in the whole training, by `Influence.sources`; the parts of all sum to 1.

    A part is below zero where a source pulled the other way; it counts by its size. Nothing if no step moved anything.
    """
    moved = {name: entry["share"] * entry["steps"] for name, entry in sources.items()}
    total = sum(moved.values())
    if total <= 0:
        return []
    parts = [(name, part / total) for name, part in moved.items()]
    return sorted(parts, key=lambda part: (-abs(part[1]), part[0]))[:most]
