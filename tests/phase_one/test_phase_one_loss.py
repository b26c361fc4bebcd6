"""One step of training against GSPO written out plainly: one row each, scored by the unmodified model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from phase_one_parts import SEED, film, inputs, short_profile, strong
from transformers import TrainerCallback

from taskmem.config import Profile
from taskmem.phase_one.history import History
from taskmem.phase_one.rollouts import Group
from taskmem.phase_one.trainer import PackedGSPOTrainer, gspo_config
from taskmem.policy.protocols import Completion
from taskmem.policy.stream import by_stream
from taskmem.policy.transformers_policy import TransformersPolicy, load_checkpoint
from taskmem.records import Context, Judgement
from taskmem.reward import Reward

Weights = dict[str, torch.Tensor]
CLIP_LOW, CLIP_HIGH, KL, TEMPERATURE = 0.01, 0.02, 0.2, 1.3


@dataclass
class Scripted:
    """Gives each group the next of `advantages`, whatever was written, and keeps the groups."""

    advantages: Iterator[Sequence[float]]
    scored: bool = True
    groups: list[Group] = field(default_factory=list)

    def __call__(self, context: Context, completions: Sequence[Completion]) -> Group:
        judgements = [Judgement(context=context.id, candidate=i, format_ok=True, within_budget=True) for i in range(3)]
        rewards = tuple(Reward(scored=self.scored) for _ in completions)
        group = Group(context, tuple(completions), tuple(judgements), rewards, tuple(next(self.advantages)))
        self.groups.append(group)
        return group


@dataclass
class Run:
    """What happened: weights before and gradients of every update, the losses, and the groups.

    `kl_weighted`: TRL multiplied the KL by the ratio.
    """

    policy: TransformersPolicy
    profile: Profile
    groups: list[Group]
    weights: list[Weights]
    gradients: list[Weights]
    losses: list[float]
    final: Weights
    kl_weighted: bool

    def mini_batch(self, update: int) -> list[Group]:
        size = self.profile.phase_one.mini_batch
        return self.groups[update * size : (update + 1) * size]


class Recorder(TrainerCallback):
    def __init__(self) -> None:
        self.weights: list[Weights] = []
        self.gradients: list[Weights] = []

    def on_step_begin(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})

    def on_pre_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def one_step(**changes: Any) -> Profile:
    """One step of four contexts in two updates, off-policy, with bounds that some ratios cross and some do not."""
    settings = {
        "batch": 4,
        "mini_batch": 2,
        "off_policy_steps": 1,
        "on_policy_steps": 0,
        "warmup_steps": 0,
        "learning_rate": 3e-4,
        "clip_low": CLIP_LOW,
        "clip_high": CLIP_HIGH,
        "kl": KL,
    }
    profile = short_profile(**{**settings, **changes})
    sampling = profile.policy.sampling.model_copy(update={"temperature": TEMPERATURE})
    return profile.model_copy(update={"policy": profile.policy.model_copy(update={"sampling": sampling})})


def trained(
    base: Path, out: Path, profile: Profile, reward: Scripted, teacher: Callable[[str, int], str] = strong
) -> Run:
    model, processor = load_checkpoint(base)
    policy = TransformersPolicy.of(model, processor, profile.policy, film, "0" * 64)
    phase = profile.phase_one
    streams = by_stream(inputs().segments)
    walk = History(streams, teacher, phase.history, profile.policy.window, phase.batch, phase.off_policy_steps, SEED)
    recorder = Recorder()
    trainer = PackedGSPOTrainer(policy, processor, profile, walk, reward, gspo_config(profile, SEED, out))
    trainer.add_callback(recorder)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    final = {name: p.detach().clone() for name, p in model.named_parameters()}
    weighted = trainer.args.use_bias_correction_kl
    return Run(policy, profile, reward.groups, recorder.weights, recorder.gradients, losses, final, weighted)


def scores(model: Any, policy: TransformersPolicy, groups: Sequence[Group]) -> list[torch.Tensor]:
    """Log-probabilities of each completion's tokens, one plain row at a time."""
    rows = []
    for group in groups:
        prompt = policy.prompt(group.context)
        for written in group.completions:
            batch, _ = policy.encoder.batch([prompt], [written.tokens], side="right")
            logits = model(**batch).logits[0, len(prompt.ids) - 1 : -1].float() / TEMPERATURE
            rows.append(logits.log_softmax(-1).gather(1, torch.tensor(written.tokens)[:, None])[:, 0])
    return rows


@dataclass
class Plain:
    """GSPO's loss of one mini-batch, its gradient, the sequence ratios, and each row's own loss."""

    loss: float
    gradient: Weights
    ratios: list[float]


def plain_gspo(base: Path, run: Run, update: int, rows: Sequence[int] | None = None) -> Plain:
    """The loss at an update, from the weights before it, those at sampling (old) and the base's (reference).

    `rows`: only these contribute, the mean still being over all.
    """
    model, _ = load_checkpoint(base)
    groups = run.mini_batch(update)
    with torch.no_grad():
        reference = scores(model, run.policy, groups)
        model.load_state_dict(run.weights[0], strict=False)
        old = scores(model, run.policy, groups)
    model.load_state_dict(run.weights[update], strict=False)
    now = scores(model, run.policy, groups)
    advantages = [a for group in groups for a in group.advantages]
    losses, ratios = [], []
    for new, before, anchor, advantage in zip(now, old, reference, advantages, strict=True):
        ratio = ((new - before).sum() / len(new)).exp()
        clipped = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
        kl = run.profile.phase_one.kl * ((anchor - new).exp() - (anchor - new) - 1).mean()
        losses.append(-torch.min(ratio * advantage, clipped * advantage) + (ratio * kl if run.kl_weighted else kl))
        ratios.append(ratio.item())
    loss = torch.stack([losses[i] for i in (rows or range(len(losses)))]).sum() / len(losses)
    loss.backward()
    gradient = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Plain(loss.item(), gradient, ratios)


def norm(gradient: Weights) -> float:
    return float(sum(g.double().square().sum() for g in gradient.values()) ** 0.5)


def assert_same_gradient(got: Weights, wanted: Weights) -> None:
    """Equal within 1e-3 of the whole gradient's norm, once clipped to norm 1 as the trainer does; and not small."""
    assert got.keys() == wanted.keys()
    size = norm(wanted)
    assert size > 1e-2
    scale = min(1.0, 1.0 / size)
    difference = norm({name: got[name] - wanted[name] * scale for name in wanted})
    assert difference < 1e-3 * size * scale


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    given = [(1.0, -0.5, 0.3), (-1.0, 0.8, 0.4), (1.5, -1.5, 0.6), (-0.2, 1.1, -0.7)]
    return trained(base, tmp_path_factory.mktemp("run"), one_step(), Scripted(iter(given)))


def test_the_first_updates_loss_and_gradient_equal_plain_gspo(base: Path, run: Run) -> None:
    plain = plain_gspo(base, run, update=0)
    assert len({group.context.id for group in run.groups}) == len(run.groups)
    assert plain.ratios == pytest.approx([1.0] * 6)
    assert plain.loss == pytest.approx(-1.0 / 6)
    assert run.losses[0] == pytest.approx(plain.loss, abs=1e-5)
    assert_same_gradient(run.gradients[0], plain.gradient)


def test_the_second_updates_ratios_are_against_the_policy_that_sampled(base: Path, run: Run) -> None:
    plain = plain_gspo(base, run, update=1)
    advantages = [a for group in run.mini_batch(1) for a in group.advantages]
    cut = [r > 1 + CLIP_HIGH if a > 0 else r < 1 - CLIP_LOW for r, a in zip(plain.ratios, advantages, strict=True)]
    assert {a > 0 for a, was_cut in zip(advantages, cut, strict=True) if was_cut} == {True, False}
    assert sum(cut) < len(cut)
    assert run.losses[1] == pytest.approx(plain.loss, abs=1e-5)
    assert_same_gradient(run.gradients[1], plain.gradient)


def test_without_kl_a_sample_of_advantage_0_contributes_no_gradient(base: Path, tmp_path: Path) -> None:
    profile = one_step(batch=1, mini_batch=1, kl=0.0)
    run = trained(base, tmp_path, profile, Scripted(iter([(1.0, 0.0, -0.5)])))
    assert len({written.tokens for written in run.groups[0].completions}) == 3
    assert_same_gradient(run.gradients[0], plain_gspo(base, run, update=0, rows=[0, 2]).gradient)


def test_the_kl_is_the_plain_one(run: Run) -> None:
    assert not run.kl_weighted


@pytest.mark.parametrize("kl", [0.0, KL])
def test_groups_in_which_nothing_is_scored_leave_the_policy_as_it_is(base: Path, tmp_path: Path, kl: float) -> None:
    run = trained(base, tmp_path, one_step(kl=kl), Scripted(iter([(0.0, 0.0, 0.0)] * 4), scored=False))
    assert len(run.gradients) == 2
    assert all(torch.equal(run.final[name], run.weights[0][name]) for name in run.final)


def test_an_unscored_sample_contributes_no_gradient_with_kl_either(base: Path, tmp_path: Path) -> None:
    class FirstScored(Scripted):
        def __call__(self, context: Context, completions: Sequence[Completion]) -> Group:
            self.scored = len(self.groups) == 0
            return super().__call__(context, completions)

    given = FirstScored(iter([(1.0, -1.0, 0.5), (0.0, 0.0, 0.0)]))
    run = trained(base, tmp_path, one_step(batch=2, mini_batch=1), given)
    assert norm(run.gradients[0]) > 1e-2
    assert norm(run.gradients[1]) == 0


def test_the_strong_model_is_asked_once_for_a_preceding_memory(base: Path, tmp_path: Path) -> None:
    asked = []

    def teacher(name: str, index: int) -> str:
        asked.append((name, index))
        return strong(name, index)

    run = trained(base, tmp_path, one_step(), Scripted(iter([(0.0, 0.0, 0.0)] * 4)), teacher)
    assert len(asked) == sum(len(group.context.memories) for group in run.groups)
