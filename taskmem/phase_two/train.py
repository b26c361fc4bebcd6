"""Phase Two: DPO on one steer vector, the policy frozen (METHOD section 4, step 5).

TRL's DPOTrainer does the loss, the optimiser and the metrics. Ours are the batch with video and the reference log-probabilities:
they never change, so they are computed once, packed, with the adapter off. This is the seam where a faster engine goes in.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from taskmem.config import PhaseTwoSettings, Profile
from taskmem.errors import UserError
from taskmem.files import replace_directory
from taskmem.policy.encoding import Prompt, PromptEncoder
from taskmem.policy.packing import score_groups
from taskmem.policy.training import report_to
from taskmem.policy.transformers_policy import TransformersPolicy, load_checkpoint, policy_digest, policy_reference
from taskmem.progress import Progress, silent
from taskmem.records import Context, Preference, Rollouts, write_json
from taskmem.steer import SteerConfig, scale_to_norm, steer_vector
from taskmem.video.frames import FramesOf


@dataclass(frozen=True)
class Pair:
    """A context with the completions to prefer and to reject, as text: they are tokenised again, with an end of turn."""

    context: Context
    chosen: str
    rejected: str


def load_pairs(
    preferences: Sequence[Preference], rollouts: Sequence[Rollouts], contexts: Sequence[Context], policy: str
) -> list[Pair]:
    """Join preferences with their rollouts and contexts.

    UserError for a preference that belongs to none, and for rollouts of another policy than the one of digest `policy`: a new
    pi_0 invalidates every cache (METHOD section 4, step 1).
    """
    if foreign := next((r for r in rollouts if r.policy != policy), None):
        raise UserError(
            f"rollouts of context {foreign.context}: written by policy {foreign.policy[:12]}, not by {policy[:12]}; "
            "build the rollout cache again"
        )
    cached = {r.context: r for r in rollouts}
    known = {c.id: c for c in contexts}
    pairs = []
    for preference in preferences:
        if preference.context not in cached:
            raise UserError(f"preference of context {preference.context}: not in the rollout cache; mine it again")
        if preference.context not in known:
            raise UserError(f"preference of context {preference.context}: its segments are missing; give --segments")
        text = {c.index: c.text for c in cached[preference.context].candidates}
        if not {preference.chosen, preference.rejected} <= text.keys():
            raise UserError(f"preference of context {preference.context}: no such candidate; mine it again")
        pairs.append(Pair(known[preference.context], text[preference.chosen], text[preference.rejected]))
    return pairs


class _Collator:
    """Rows of a batch to model inputs: all chosen first, then all rejected, with their reference log-probabilities [pairs]."""

    def __init__(self, encoder: PromptEncoder, encoded: Sequence[tuple[Prompt, Sequence[int], Sequence[int]]]) -> None:
        self._encoder = encoder
        self._encoded = encoded
        self.reference = torch.zeros(len(encoded), 2)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        numbers = [row["number"] for row in rows]
        picked = [self._encoded[i] for i in numbers]
        prompts = [prompt for prompt, _, _ in picked] * 2
        completions = [chosen for _, chosen, _ in picked] + [rejected for _, _, rejected in picked]
        inputs, labels = self._encoder.batch(prompts, completions, side="right")
        inputs["completion_mask"] = (labels != -100).long()
        inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = self.reference[numbers].unbind(1)
        return inputs


class SteerDPOTrainer(DPOTrainer):
    """DPOTrainer that takes the reference from its collator: TRL refuses to precompute it for prompts with vision."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.precompute_ref_logps = True


def train_phase_two(
    policy: Path,
    pairs: Sequence[Pair],
    frames_of: FramesOf,
    profile: Profile,
    seed: int,
    out: Path,
    progress: Progress = silent,
) -> Path:
    """Train one adapter from zero on `pairs` and write it to the folder `out` (PEFT's two files and training.json).

    The reference is the same policy with the adapter off. UserError without pairs or if the vector is not finite.
    """
    if not pairs:
        raise UserError(f"{out}: no preference pairs to train on; collect more feedback or mine more contexts")
    model, processor = load_checkpoint(policy)
    reader = TransformersPolicy.of(model, processor, profile.policy, frames_of, policy_digest(policy))
    encoder = reader.encoder
    encoded = [
        (reader.prompt(p.context), encoder.completion_ids(p.chosen), encoder.completion_ids(p.rejected)) for p in pairs
    ]
    collator = _Collator(encoder, encoded)
    collator.reference = _reference(model, encoder, encoded)
    trainer = SteerDPOTrainer(
        model=model,
        peft_config=SteerConfig(layer=profile.phase_two.layer),
        args=_dpo_config(profile.phase_two, len(pairs), seed, out),
        # TRL prepares the dataset itself unless it finds images; the collator knows the real content
        train_dataset=Dataset.from_list(
            [{"number": i, "images": [], "prompt": "", "chosen": "", "rejected": ""} for i in range(len(pairs))]
        ),
        processing_class=processor,
        data_collator=collator,
    )
    report_to(trainer, progress)
    trainer.train()
    steered = trainer.accelerator.unwrap_model(trainer.model)
    trained_norm = _finish(steered, profile.phase_two, out)
    shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
    return _save(steered, reader.digest, trainer.state.log_history, trained_norm, out)


@torch.no_grad()
def _reference(
    model: Any, encoder: PromptEncoder, encoded: Sequence[tuple[Prompt, Sequence[int], Sequence[int]]], rows: int = 32
) -> torch.Tensor:
    """Log-probability of each pair's chosen and rejected completion under the frozen policy, [pairs, 2]."""
    parts = []
    for start in range(0, len(encoded), rows):
        part = encoded[start : start + rows]
        groups = [[chosen, rejected] for _, chosen, rejected in part]
        parts.append(score_groups(model, encoder, [prompt for prompt, _, _ in part], groups).logps.sum(-1))
    return torch.cat(parts).cpu()


def _dpo_config(settings: PhaseTwoSettings, pairs: int, seed: int, out: Path) -> DPOConfig:
    return DPOConfig(
        output_dir=str(out.with_name(f".{out.name}.training")),
        seed=seed,
        max_steps=settings.steps,
        per_device_train_batch_size=min(settings.batch, pairs),
        dataloader_drop_last=True,  # every update sees as many pairs
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=math.inf,  # the vector's size is decided by target_norm, not by clipping
        beta=settings.beta,
        max_length=None,
        router_aux_loss_coef=0.0,
        remove_unused_columns=False,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
    )


def _finish(steered: Any, settings: PhaseTwoSettings, out: Path) -> float:
    norm = float(steer_vector(steered).detach().norm())
    if not math.isfinite(norm) or norm == 0:
        raise UserError(f"{out}: the vector's norm is {norm} after training; lower phase_two.learning_rate")
    if settings.target_norm is not None:
        scale_to_norm(steered, settings.target_norm)
    return norm


def _save(steered: Any, policy: str, log: Sequence[dict[str, Any]], trained_norm: float, out: Path) -> Path:
    temporary = out.with_name(f".{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    steered.peft_config["default"].base_model_name_or_path = policy_reference(policy)
    steered.save_pretrained(temporary, save_embedding_layers=False)
    (temporary / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    names = ("loss", "rewards/accuracies", "rewards/margins", "grad_norm")
    curve = [{"step": e["step"], **{n: round(e[n], 6) for n in names if n in e}} for e in log if "loss" in e]
    write_json(temporary / "training.json", {"trained_norm": round(trained_norm, 6), "steps": curve})
    replace_directory(temporary, out)
    return out
