"""The losses and metrics against those inside TRL's DPOTrainer, on the same log-probabilities."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from trl import DPOTrainer

from taskmem.phase_two.loss import LogProbabilities, dpo_losses, dpo_metrics

BETA = 0.3


def logps(pairs: int = 6) -> LogProbabilities:
    values = 4 * torch.randn(4, pairs, generator=torch.Generator().manual_seed(5)) - 20
    return LogProbabilities(*values)


def trl(of: LogProbabilities, kind: str, smoothing: float) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss and metrics of DPOTrainer's own code, given what a model and a reference would have returned."""
    both = torch.stack([*of.chosen, *of.rejected])[:, None]
    fields = ("entropy", "mean_logits", "is_top1")
    outputs = SimpleNamespace(log_probs=both, **{name: torch.zeros_like(both, dtype=torch.bool) for name in fields})
    metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=Accelerator(cpu=True),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=BETA,
        label_smoothing=smoothing,
        use_weighting=False,
        _metrics=metrics,
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {
        "input_ids": torch.zeros(len(both), 2, dtype=torch.long),
        "attention_mask": torch.ones(len(both), 2, dtype=torch.long),
        "completion_mask": torch.tensor([[0, 1]] * len(both)),
        "ref_chosen_logps": of.reference_chosen,
        "ref_rejected_logps": of.reference_rejected,
    }

    def model(**_: Any) -> SimpleNamespace:
        return outputs

    loss = DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    return loss, {name: values[0] for name, values in metrics["train"].items()}


@pytest.mark.parametrize(("kind", "smoothing"), [("sigmoid", 0.0), ("robust", 0.0), ("robust", 0.1), ("robust", 0.4)])
def test_the_loss_is_trls(kind: Any, smoothing: float) -> None:
    found = dpo_losses(logps(), BETA, kind, smoothing)
    wanted, _ = trl(logps(), kind, smoothing)
    assert found.shape == (6,)
    torch.testing.assert_close(found.mean(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("smoothing", [0.1, 0.4])
def test_a_smoothed_sigmoid_is_trls_smoothed_loss_of_single_pairs(smoothing: float) -> None:
    """TRL smooths the sigmoid in "aot", which sorts the batch first: of one pair there is nothing to sort."""
    found = dpo_losses(logps(), BETA, "sigmoid", smoothing)
    for i, loss in enumerate(found):
        wanted, _ = trl(logps().map(lambda values, i=i: values[i : i + 1]), "aot", smoothing)  # type: ignore[misc]
        torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)


def test_the_metrics_are_trls() -> None:
    _, wanted = trl(logps(), "sigmoid", 0.0)
    found = dpo_metrics(logps(), BETA)
    assert found == pytest.approx({name: wanted[name] for name in found}, rel=1e-6)
    assert 0 < found["rewards/accuracies"] < 1


def test_robust_is_the_mean_over_the_noise_of_the_clean_loss() -> None:
    """What makes it unbiased: flip each pair with probability e, and its expectation is the loss without noise."""
    e, of = 0.2, logps()
    turned = LogProbabilities(of.rejected, of.chosen, of.reference_rejected, of.reference_chosen)
    expected = (1 - e) * dpo_losses(of, BETA, "robust", e) + e * dpo_losses(turned, BETA, "robust", e)
    torch.testing.assert_close(expected, dpo_losses(of, BETA, "sigmoid", 0.0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 0.5, 1.0])
def test_a_smoothing_that_turns_the_preferences_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        dpo_losses(logps(), BETA, "robust", smoothing)
