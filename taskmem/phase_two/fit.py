"""The optimiser's loop: Adam on the vector, a batch of pairs a step, until the steps are done or nothing is gained any more."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from taskmem.config import PhaseTwoSettings, StoppingSettings
from taskmem.errors import UserError
from taskmem.phase_two.engine import Example, PairEngine
from taskmem.phase_two.influence import Influence
from taskmem.phase_two.loss import dpo_metrics
from taskmem.progress import Progress

CURVE = ("loss", "rewards/accuracies", "rewards/margins", "grad_norm")


@dataclass
class Fitted:
    """The vector, float32 [H] on the CPU; each step's metrics; validations; and, where kept, gradients by step.

    `gradients` has for each step the pairs of its batch and their gradients [pairs, H].
    """

    vector: torch.Tensor
    curve: list[dict[str, float]] = field(default_factory=list)
    validations: list[dict[str, float]] = field(default_factory=list)
    gradients: list[tuple[list[int], torch.Tensor]] = field(default_factory=list)
    influence: Influence | None = None


class _Best:
    """Follows the validation win rate; `vector` is the one at its first highest."""

    def __init__(self, settings: StoppingSettings) -> None:
        self._patience = settings.patience
        self._waited = 0
        self.rate = -math.inf
        self.vector = torch.empty(0)

    def ends(self, rate: float, vector: torch.Tensor) -> bool:
        """Take one validation in; true if the rate has not risen for as many as the patience."""
        if rate > self.rate:
            self.rate, self.vector, self._waited = rate, vector.detach().clone(), 0
        else:
            self._waited += 1
        return self._waited >= self._patience


def fit(
    engine: PairEngine,
    examples: Sequence[Example],
    sources: Sequence[Sequence[str]],
    settings: PhaseTwoSettings,
    seed: int,
    progress: Progress,
) -> Fitted:
    """Train a vector from zero on all of the engine's `examples` (METHOD section 4, step 5); `sources` are those of each.

    A batch smaller than the pairs takes them in an order drawn from the seed, another each epoch. With `settings.stopping` the
    pairs of some contexts are held out; the win rate is the share of them whose chosen completion gains more than the rejected
    one, and the vector of its first highest is kept. UserError if there are too few contexts for that.
    """
    train, held_out = _split([e.context for e in examples], settings.stopping, seed)
    vector = torch.nn.Parameter(torch.zeros(engine.hidden_size, device=engine.device))
    optimiser = torch.optim.Adam([vector], lr=settings.learning_rate, fused=True)
    best = _Best(settings.stopping) if settings.stopping else None
    known = any(sources)
    per_pair = known or settings.influence_cap is not None or settings.keep_gradients
    done = Fitted(vector.detach(), influence=Influence(sources) if per_pair else None)
    for number, batch in zip(range(1, settings.steps + 1), _batches(train, settings.batch, seed), strict=False):
        step = engine.step(vector.detach(), batch, settings, per_pair=per_pair)
        if done.influence:
            gradient = done.influence.aggregate(step.gradients, batch, settings.influence_cap)
        else:
            gradient = step.gradients[0]
        if settings.keep_gradients:
            done.gradients.append((batch, step.gradients.float().cpu()))
        vector.grad = gradient.to(vector)
        optimiser.step()
        metrics = dpo_metrics(step.logps, settings.beta)
        metrics |= {"loss": float(step.losses.mean()), "grad_norm": float(gradient.norm())}
        done.curve.append({"step": number, **{name: round(metrics[name], 6) for name in CURVE}})
        progress(number, settings.steps)
        if best and settings.stopping and number % settings.stopping.every == 0:
            rate = dpo_metrics(engine.logps(vector.detach(), held_out), settings.beta)["rewards/accuracies"]
            done.validations.append({"step": number, "win_rate": round(rate, 6)})
            if best.ends(rate, vector):
                break
    done.vector = (best.vector if best and done.validations else vector.detach()).cpu()
    return done


def _batches(pairs: Sequence[int], size: int, seed: int) -> Iterator[list[int]]:
    """Batches without end. The order of an epoch is what TRL's trainer draws; an epoch's last, short batch is left out."""
    if size >= len(pairs):
        while True:
            yield list(pairs)
    epoch = 0
    while True:
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        for start in range(0, len(order) - size + 1, size):
            yield [pairs[i] for i in order[start : start + size]]
        epoch += 1


def _split(contexts: Sequence[int], stopping: StoppingSettings | None, seed: int) -> tuple[list[int], list[int]]:
    """The numbers of the pairs to train on and of those held out, whose contexts are others."""
    if stopping is None:
        return list(range(len(contexts))), []
    distinct = sorted(set(contexts))
    count = max(1, round(stopping.held_out * len(distinct)))
    if count >= len(distinct):
        raise UserError(
            f"{len(distinct)} contexts with pairs: too few to hold a share of {stopping.held_out} out; "
            "set phase_two.stopping to null or mine more"
        )
    apart = set(random.Random(f"validation-{seed}").sample(distinct, count))
    numbered = list(enumerate(contexts))
    return [i for i, c in numbered if c not in apart], [i for i, c in numbered if c in apart]


def document(done: Fitted, trained_norm: float) -> dict[str, Any]:
    """What training.json holds."""
    validation = {"validation": done.validations} if done.validations else {}
    return {"trained_norm": round(trained_norm, 6), "steps": done.curve, **validation}
