"""GSPO on TRL's GRPOTrainer, for prompts with video.

TRL keeps what it does well: the sequence-level clipped loss, the KL term, the optimiser, checkpoints and logging.
Ours is what it cannot do: video prompts, on-policy history (the slots are resolved inside generation, because a dataset is
prefetched and would be one step stale), rewards that need the whole group, and scoring a group in one packed row. It runs in one
process: a mini-batch is one forward pass, and the slots live here.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation

from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.files import atomic_write
from taskmem.phase_one.history import History
from taskmem.phase_one.rollouts import Group, summarise
from taskmem.policy.completion import seed_of
from taskmem.policy.encoding import Prompt
from taskmem.policy.packing import score_groups
from taskmem.policy.protocols import Completion
from taskmem.policy.transformers_policy import TransformersPolicy
from taskmem.records import Context

SLOTS_FILE = "slots.json"
RewardGroup = Callable[[Context, Sequence[Completion]], Group]


def gspo_config(profile: Profile, seed: int, out: Path) -> GRPOConfig:
    """TRL's settings for a profile; a step of the profile is one batch, so batch / mini_batch optimiser updates."""
    phase = profile.phase_one
    updates = phase.batch // phase.mini_batch
    return GRPOConfig(
        output_dir=str(out),
        seed=seed,
        max_steps=(phase.off_policy_steps + phase.on_policy_steps) * updates,
        per_device_train_batch_size=phase.mini_batch * phase.group_size,
        steps_per_generation=updates,
        num_generations=phase.group_size,
        max_completion_length=profile.policy.max_completion_tokens,
        temperature=profile.policy.sampling.temperature,
        learning_rate=phase.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=phase.warmup_steps,
        weight_decay=0.0,
        importance_sampling_level="sequence",
        loss_type="grpo",
        epsilon=phase.clip_low,
        epsilon_high=phase.clip_high,
        beta=phase.kl,
        use_bias_correction_kl=False,  # TRL's correction holds at token level only
        max_grad_norm=1.0,
        logging_nan_inf_filter=False,
        router_aux_loss_coef=0.0,
        shuffle_dataset=False,
        remove_unused_columns=False,
        gradient_checkpointing=False,
        save_strategy="steps",
        save_steps=phase.validate_every * updates,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
    )


class PackedGSPOTrainer(GRPOTrainer):
    """`policy` writes the rollouts with `model`; `history` says for which contexts; `reward` judges a group."""

    def __init__(
        self,
        policy: TransformersPolicy,
        processor: Any,
        profile: Profile,
        history: History,
        reward: RewardGroup,
        config: GRPOConfig,
    ) -> None:
        self._policy = policy
        self._profile = profile
        self._history = history
        self._reward = reward
        self._current: dict[str, Any] = {}
        slots = range(profile.phase_one.batch)
        super().__init__(
            model=policy.model,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": [f"slot {i}" for i in slots], "slot": list(slots)}),
            reward_funcs=_rewarded_in_groups,
            processing_class=processor,
        )
        if self.accelerator.num_processes > 1:
            raise UserError("phase-one: the slots of on-policy history live in one process; launch it with one")

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        if not self.model.training:
            raise RuntimeError("evaluation runs outside the trainer")
        updates = self.args.steps_per_generation
        if self.state.global_step % updates == 0:
            self._buffered_inputs = self._rollouts(generation_batch, self.state.global_step // updates)
        return self._buffered_inputs[self.state.global_step % updates]

    def _rollouts(self, rows: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
        """Sample, judge and reward this step's groups, move the history on, and cut the batch into mini-batches."""
        group_size, mini = self.num_generations, self._profile.phase_one.mini_batch
        slots = [row["slot"] for row in rows[::group_size]]
        of_slot = self._history.contexts(step)
        contexts = [of_slot[slot] for slot in slots]
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model:
            self._policy.model = model.eval()
            written = self._policy.write(contexts, group_size, seed=seed_of(self.args.seed, step))
            model.train()
        groups = [self._reward(c, completions) for c, completions in zip(contexts, written, strict=True)]
        self._history.advance(step, [g.valid for g in groups])
        for name, value in summarise(groups).items():
            self._metrics["train"][name].append(value)
        return [self._mini_batch(groups[i : i + mini]) for i in range(0, len(groups), mini)]

    def _mini_batch(self, groups: Sequence[Group]) -> dict[str, Any]:
        prompts = [self._policy.prompt(group.context) for group in groups]
        tokens = [[c.tokens for c in group.completions] for group in groups]
        device = self.accelerator.device
        batch: dict[str, Any] = {
            "prompts": prompts,
            "groups": tokens,
            "advantages": torch.tensor([a for group in groups for a in group.advantages], device=device),
            "scored": torch.tensor([r.scored for group in groups for r in group.rewards], device=device),
        }
        with torch.no_grad():
            if self.args.steps_per_generation > 1:
                batch["old_per_token_logps"] = self._score(self.model, prompts, tokens)[0]
            if self.ref_model is not None:
                batch["ref_per_token_logps"] = self._score(self.ref_model, prompts, tokens)[0]
        return batch

    def _score(
        self, model: PreTrainedModel, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sequence[int]]]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities, entropies and mask, each [rollouts, longest completion]."""
        with self.accelerator.autocast():
            packed = score_groups(model, self._policy.encoder, prompts, groups, self.temperature)
        return packed.logps.flatten(0, 1), packed.entropies.flatten(0, 1), packed.mask.flatten(0, 1).long()

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        logps, entropies, mask = self._score(model, inputs["prompts"], inputs["groups"])
        mask = mask * inputs.pop("scored")[:, None]  # an unscored sample has no gradient, not even through the KL
        self._current = {"logps": logps, "entropies": entropies}
        nothing = mask[:, :0]
        tensors = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor)}
        loss: torch.Tensor = super()._compute_loss(
            model,
            {
                "prompt_ids": nothing,
                "prompt_mask": nothing,
                "completion_ids": mask,  # TRL only reads its shape: the packed scores are handed over below
                "completion_mask": mask,
                **tensors,
            },
        )
        return loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        return self._current.pop("logps"), self._current.pop("entropies"), None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        # written last: a checkpoint without it was cut off and is not resumed from
        atomic_write(folder / SLOTS_FILE, json.dumps(self._history.state()))


def _rewarded_in_groups(**_: Any) -> list[float]:
    raise RuntimeError("the group's reward is computed with its rollouts; TRL must not ask for it one by one")


def last_checkpoint(out: Path) -> Path | None:
    """The newest complete checkpoint below `out`, or None."""
    found = [p.parent for p in out.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{SLOTS_FILE}")]
    return max(found, key=lambda p: int(p.name.rsplit("-", 1)[1]), default=None)
