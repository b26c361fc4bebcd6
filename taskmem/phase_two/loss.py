"""DPO's losses and metrics as pure functions: tensors in, tensors out.

Why not TRL's DPOTrainer itself: its loss lives inside `_compute_loss`, behind a forward pass of the whole model over one row
per completion, and it averages before anyone can see a single pair. The engine has other rows, another forward and needs every
pair's gradient. So the formulas stand here and are tested against TRL's on the same tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import logsigmoid

LossKind = Literal["sigmoid", "robust"]


@dataclass(frozen=True)
class LogProbabilities:
    """Of each pair's two completions, summed over their tokens, under the steered policy and the reference; all [pairs]."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    reference_chosen: torch.Tensor
    reference_rejected: torch.Tensor

    @property
    def difference(self) -> torch.Tensor:
        """How much further the steered policy sets the chosen above the rejected completion than the reference, [pairs]."""
        return (self.chosen - self.reference_chosen) - (self.rejected - self.reference_rejected)

    def detach(self) -> "LogProbabilities":
        """The same numbers without their history."""
        return self.map(torch.Tensor.detach)

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "LogProbabilities":
        """`change` applied to each of the four."""
        return LogProbabilities(
            change(self.chosen), change(self.rejected), change(self.reference_chosen), change(self.reference_rejected)
        )


def dpo_losses(logps: LogProbabilities, beta: float, kind: LossKind, label_smoothing: float) -> torch.Tensor:
    """Each pair's loss, [pairs] (METHOD section 4, step 5).

    With x = beta * difference and e = `label_smoothing`, the share of pairs believed to be the wrong way round:
    "sigmoid" is -(1 - e) log s(x) - e log s(-x), conservative DPO, at e = 0 DPO itself (arXiv:2305.18290);
    "robust" is (-(1 - e) log s(x) + e log s(-x)) / (1 - 2e), unbiased under that noise (arXiv:2403.00409).
    ValueError for an e outside [0, 0.5).
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing {label_smoothing}: give a share from 0 to below 0.5")
    scaled = beta * logps.difference
    right, wrong = -(1 - label_smoothing) * logsigmoid(scaled), -label_smoothing * logsigmoid(-scaled)
    if kind == "robust":
        return (right - wrong) / (1 - 2 * label_smoothing)
    return right + wrong


def dpo_metrics(logps: LogProbabilities, beta: float) -> dict[str, float]:
    """TRL's metrics of the rewards, beta * (log-probability - reference's), averaged over the pairs."""
    chosen = beta * (logps.chosen - logps.reference_chosen).detach()
    rejected = beta * (logps.rejected - logps.reference_rejected).detach()
    return {
        "rewards/chosen": float(chosen.mean()),
        "rewards/rejected": float(rejected.mean()),
        "rewards/accuracies": float((chosen > rejected).float().mean()),
        "rewards/margins": float((chosen - rejected).mean()),
        "logps/chosen": float(logps.chosen.detach().mean()),
        "logps/rejected": float(logps.rejected.detach().mean()),
    }
