"""How tokens are drawn: the one home of the arithmetic, so that every back end draws the same for a context, `n` and seed.

A context's seed makes noise for all its completions at once, step after step; each completion takes the token whose
log-probability and noise together are largest (the Gumbel trick), which is one draw from the softmax.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from taskmem.config import Sampling


class Noise:
    """The noise of one context, float32 [rows, size] for each step: row i is for its i-th completion, `size` the vocabulary's.

    The same seed, rows, size and kind of device give the same noise.
    """

    def __init__(self, seed: int, rows: int, size: int, device: torch.device) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)
        self._shape = rows, size
        self.step = 0  # of the next noise

    def next(self) -> torch.Tensor:
        """The noise of `step`, which is then one more."""
        self.step += 1
        device = self._generator.device
        return torch.empty(self._shape, device=device).exponential_(generator=self._generator)


def _warpers(sampling: Sampling) -> list[Any]:
    warpers: list[Any] = []
    if sampling.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    return warpers


@dataclass(frozen=True)
class Drawing:
    """What is drawn from: logits under `sampling`, without the tokens `forbidden`."""

    sampling: Sampling
    forbidden: tuple[int, ...]

    def tokens(self, logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """A token for each row of `logits` [B, V] with its `noise` [B, V]; the logits may be written over."""
        scores = logits.float()
        scores[:, list(self.forbidden)] = -torch.inf
        for warper in _warpers(self.sampling):
            scores = warper(None, scores)
        return (scores.log_softmax(-1) - noise.log()).argmax(-1)


class Draws:
    """The draws of several contexts side by side, `n` completions each, one seed for each context."""

    def __init__(self, drawing: Drawing, seeds: Sequence[int], n: int) -> None:
        self._drawing = drawing
        self._seeds = seeds
        self._n = n
        self._noise: list[Noise] = []

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token of every completion, from logits [contexts x n, V]."""
        if not self._noise:
            self._noise = [Noise(seed, self._n, logits.shape[-1], logits.device) for seed in self._seeds]
        return self._drawing.tokens(logits, torch.cat([noise.next() for noise in self._noise]))
