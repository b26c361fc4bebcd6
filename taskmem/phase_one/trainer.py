"""GSPO on TRL's GRPOTrainer, for prompts with video.

TRL keeps what it does well: the sequence-level clipped loss, the KL term, the optimiser, checkpoints and logging.
Ours is what it cannot do: video prompts, on-policy history (the slots are resolved inside generation, because a dataset is
prefetched and would be one step stale), rewards that need the whole group, and scoring a group in one packed row. Several
processes each write some slots' groups and tell all others, so that every one moves the same history on and learns from its part
of the same mini-batch (`share.py`); the rows of the dataset only keep TRL's time.
"""

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOConfig, GRPOTrainer
from trl.models import prepare_deepspeed, unwrap_model_for_generation

from taskmem.config import Profile
from taskmem.phase_one.checkpoints import complete, strip
from taskmem.phase_one.history import History
from taskmem.phase_one.ranks import Ranks, as_forward
from taskmem.phase_one.rollouts import Group, Lesson, summarise
from taskmem.phase_one.sharding import deepspeed_config, turned
from taskmem.phase_one.share import Piece, share_of
from taskmem.policy.completion import seed_of
from taskmem.policy.encoding import Prompt
from taskmem.policy.packing import score_groups
from taskmem.policy.protocols import Completion
from taskmem.policy.transformers_policy import TransformersPolicy
from taskmem.records import Context

WAIT_SECONDS = 7200
"""How long a process waits for the slowest: the judges of one may be slow, and a lost one is torchrun's to notice."""
RewardGroup = Callable[[Context, Sequence[Completion]], Group]


def gspo_config(profile: Profile, seed: int, out: Path, ranks: Ranks | None = None) -> GRPOConfig:
    """TRL's settings for a profile; a step of the profile is one batch, so batch / mini_batch optimiser updates.

    UserError where the batch cannot be shared by the processes.
    """
    phase = profile.phase_one
    share = share_of(phase, ranks or Ranks())
    updates = phase.batch // phase.mini_batch
    return GRPOConfig(
        output_dir=str(out),
        seed=seed,
        max_steps=(phase.off_policy_steps + phase.on_policy_steps) * updates,
        per_device_train_batch_size=share.micro_batch,
        gradient_accumulation_steps=share.accumulation,
        steps_per_generation=updates * share.accumulation,
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
        # TRL would load the reference by itself, with its experts turned (see `sharding`)
        beta=0.0 if phase.spread.zero else phase.kl,
        use_bias_correction_kl=False,  # TRL's correction holds at token level only
        max_grad_norm=1.0,
        logging_nan_inf_filter=False,
        router_aux_loss_coef=0.0,
        shuffle_dataset=False,
        remove_unused_columns=False,
        gradient_checkpointing=phase.spread.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        save_strategy="steps",
        save_steps=phase.validate_every * updates,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        deepspeed=deepspeed_config(torch.cuda.is_available()) if phase.spread.zero else None,
        ds3_gather_for_generation=phase.spread.sampling == "whole",
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        ddp_timeout=WAIT_SECONDS,
    )


class PackedGSPOTrainer(GRPOTrainer):
    """`policy` writes the rollouts with `model`; `history` says for which contexts; `reward` judges a group.

    `reference` is the sharded base policy that the KL term is against, under ZeRO-3; else it is loaded here.
    """

    def __init__(
        self,
        policy: TransformersPolicy,
        processor: Any,
        profile: Profile,
        history: History,
        reward: RewardGroup,
        config: GRPOConfig,
        ranks: Ranks | None = None,
        reference: Any = None,
    ) -> None:
        self._policy = policy
        self._profile = profile
        self._history = history
        self._reward = reward
        self._ranks = ranks or Ranks()
        self._share = share_of(profile.phase_one, self._ranks)
        self._current: dict[str, Any] = {}
        self._ahead: deque[dict[str, Any]] = deque()
        slots = range(profile.phase_one.batch)
        super().__init__(
            model=policy.model,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": [f"slot {i}" for i in slots], "slot": list(slots)}),
            reward_funcs=_rewarded_in_groups,
            processing_class=processor,
        )
        if self.accelerator.num_processes != self._ranks.count:
            raise RuntimeError(f"{self.accelerator.num_processes} processes train, {self._ranks.count} were counted")
        if reference is not None:
            self.beta = profile.phase_one.kl
            self.ref_model = prepare_deepspeed(reference, self.accelerator)
        if profile.phase_one.spread.sampled:
            policy.rows = profile.phase_one.spread.sampled * profile.phase_one.group_size
        if profile.phase_one.spread.zero and profile.phase_one.spread.sampling == "layers":
            # to gather a layer takes all processes: none may stop before the last
            policy.finished = self._ranks.all

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        if not self.model.training:
            raise RuntimeError("evaluation runs outside the trainer")
        if not self._ahead:
            updates = self._profile.phase_one.batch // self._profile.phase_one.mini_batch
            self._ahead.extend(self._rollouts(self.state.global_step // updates))
        return self._ahead.popleft()

    def _rollouts(self, step: int) -> list[dict[str, Any]]:
        """Sample, judge and reward this process's groups, hear of all others', move the history on; the step's passes."""
        contexts = self._history.contexts(step)
        own = [contexts[slot] for slot in self._share.slots]
        whole = self.args.ds3_gather_for_generation
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator, gather_deepspeed3_params=whole) as model:
            self._policy.model = model.eval()
            written = self._policy.write(own, self.num_generations, seed=seed_of(self.args.seed, step))
            model.train()
        lessons = [vars(self._reward(c, w).lesson) for c, w in zip(own, written, strict=True)]
        told = [Lesson(**lesson) for of_rank in self._ranks.gather(lessons) for lesson in of_rank]
        if [lesson.context for lesson in told] != [context.id for context in contexts]:
            raise RuntimeError(
                f"step {step}: the processes do not agree on the contexts; do all see the same segments?"
            )
        self._history.advance(step, [lesson.valid for lesson in told])
        for name, value in summarise(told).items():
            self._metrics["train"][name].append(value)
        return [self._pass(pieces, contexts, told) for pieces in self._share.passes]

    def _pass(self, pieces: Sequence[Piece], contexts: Sequence[Context], lessons: Sequence[Lesson]) -> dict[str, Any]:
        """One forward pass's prompts, rollouts and advantages."""
        of = [(lessons[piece.slot], slice(piece.first, piece.last)) for piece in pieces]
        prompts = [self._policy.prompt(contexts[piece.slot]) for piece in pieces]
        tokens = [lesson.tokens[cut] for lesson, cut in of]
        device = self.accelerator.device
        batch: dict[str, Any] = {
            "prompts": prompts,
            "groups": tokens,
            "advantages": torch.tensor([a for lesson, cut in of for a in lesson.advantages[cut]], device=device),
            "scored": torch.tensor([r is not None for lesson, cut in of for r in lesson.rewards[cut]], device=device),
        }
        with torch.no_grad():
            if self._profile.phase_one.batch > self._profile.phase_one.mini_batch:
                batch["old_per_token_logps"] = self._score(self.model_wrapped, prompts, tokens)[0]
            if self.ref_model is not None:
                batch["ref_per_token_logps"] = self._score(self.ref_model, prompts, tokens)[0]
        return batch

    def _score(
        self, model: Any, prompts: Sequence[Prompt], groups: Sequence[Sequence[Sequence[int]]]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities, entropies and mask, each [rollouts, longest completion]."""

        def packed(model: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            scores = score_groups(model, self._policy.encoder, prompts, groups, self.temperature)
            return scores.logps.flatten(0, 1), scores.entropies.flatten(0, 1), scores.mask.flatten(0, 1).long()

        with self.accelerator.autocast():
            scored: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = as_forward(model, packed)
        return scored

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

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if self._profile.phase_one.spread.zero and state_dict is not None:
            sharded = {n: t for n, t in state_dict.items() if self.model.get_parameter(n).shape != t.shape}
            state_dict = state_dict | turned(sharded, self.model.config)
        super()._save(output_dir, state_dict)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self._ranks.wait()
        if not self._ranks.first:
            return
        out = Path(self.args.output_dir)
        # written last: a checkpoint without it was cut off and is not resumed from
        complete(out / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}", self._history.state())
        if self._profile.phase_one.spread.full_checkpoints:
            strip(out, self._profile.phase_one.spread.full_checkpoints)


def _rewarded_in_groups(**_: Any) -> list[float]:
    raise RuntimeError("the group's reward is computed with its rollouts; TRL must not ask for it one by one")
