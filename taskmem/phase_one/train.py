"""Phase One, from base policy to policy: GSPO, resumable, the checkpoint picked on the development split."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.files import canonical_json, replace_directory, sha256_bytes
from taskmem.judge.protocols import Judges
from taskmem.phase_one.checkpoints import last_checkpoint, slots_of, update_of, whole_checkpoints
from taskmem.phase_one.history import History, StrongMemory
from taskmem.phase_one.ranks import Ranks
from taskmem.phase_one.rollouts import reward_group
from taskmem.phase_one.sharding import load_sharded
from taskmem.phase_one.trainer import PackedGSPOTrainer, gspo_config
from taskmem.policy.stream import by_stream
from taskmem.policy.training import report_to
from taskmem.policy.transformers_policy import TransformersPolicy, load_checkpoint, load_processor, policy_digest
from taskmem.progress import Progress, silent
from taskmem.records import Segment, read_json, write_json
from taskmem.video.frames import FramesOf

Validate = Callable[[TransformersPolicy], float]
_METRICS = (
    *("loss", "kl", "entropy", "grad_norm"),
    *("reward", "format_reward", "length_reward", "quality_reward", "richness_reward"),
    *("memory_tokens", "think_tokens", "format_rate", "quality_rate", "unscored"),
)


@dataclass(frozen=True)
class PhaseOneInputs:
    """What Phase One learns from: segments and their frames, the judges, a strong model's memories, a validation score.

    `validate` rates a policy on the development split; higher is better.
    """

    segments: Sequence[Segment]
    frames_of: FramesOf
    judges: Judges
    strong: StrongMemory
    validate: Validate


def train_phase_one(
    base: Path,
    inputs: PhaseOneInputs,
    profile: Profile,
    seed: int,
    out: Path,
    progress: Progress = silent,
    ranks: Ranks | None = None,
) -> Path:
    """Train the base policy and return the folder of the picked checkpoint, `out`/policy.

    Writes `out`/training.json (a curve per metric) and `out`/validation.json as well. Killed and called again with the same
    arguments it goes on from `out`/checkpoints and ends in the same bytes; other arguments are refused with a UserError.
    Where the caller removed `out`/checkpoints afterwards, the policy is taken to be finished.

    All processes of `ranks` (one, if not given) call it with the same arguments; `out` is a folder that all of them share.
    """
    checkpoints, ranks = out / "checkpoints", ranks or Ranks()
    ranks.take_device()
    if profile.phase_one.spread.zero and not torch.distributed.is_torchelastic_launched():
        raise UserError("phase_one.spread.zero: shards the policy over processes; start it with torchrun")
    if ranks.first:
        _same_run(base, inputs, profile, seed, out / "run.json", ranks)
    if (out / "policy").exists() and not checkpoints.exists():
        return out / "policy"
    _train(base, inputs, profile, seed, checkpoints, progress, ranks)
    _validate(whole_checkpoints(checkpoints)[ranks.rank :: ranks.count], inputs, profile)
    ranks.wait()
    if ranks.first:
        scores = _scores(checkpoints, profile)
        best = max(sorted(scores), key=lambda step: scores[step])
        write_json(out / "validation.json", {"picked": best, "scores": {str(s): scores[s] for s in sorted(scores)}})
        updates = profile.phase_one.batch // profile.phase_one.mini_batch
        _export(base, checkpoints / f"checkpoint-{best * updates}", out / "policy")
    ranks.wait()
    return out / "policy"


def _same_run(base: Path, inputs: PhaseOneInputs, profile: Profile, seed: int, marker: Path, ranks: Ranks) -> None:
    deciding = profile.model_dump(mode="json", include={"policy", "reward", "phase_one"})
    judges = (inputs.judges.fidelity, inputs.judges.redundancy, inputs.judges.richness)
    run = {
        "base": policy_digest(base),
        "segments": sha256_bytes(canonical_json([s.model_dump(mode="json") for s in inputs.segments])),
        "settings": sha256_bytes(canonical_json(deciding)),
        "judges": [judge.identity.model_dump(mode="json") for judge in judges],
        "seed": seed,
    }
    if profile.phase_one.spread.zero:
        # each process keeps its part of the optimiser's state: another number could not go on from it
        run["processes"] = ranks.count
    if marker.exists() and read_json(marker) != run:
        raise UserError(
            f"{marker.parent}: holds checkpoints of other inputs, settings or seed; remove it or give another --out"
        )
    write_json(marker, run)


def _train(
    base: Path,
    inputs: PhaseOneInputs,
    profile: Profile,
    seed: int,
    checkpoints: Path,
    progress: Progress,
    ranks: Ranks,
) -> None:
    phase = profile.phase_one
    # first of all: it opens the process group, and under ZeRO-3 weights are sharded while they are loaded
    config = gspo_config(profile, seed, checkpoints, ranks)
    resume = _resumed(checkpoints, ranks)
    sharded = phase.spread.zero is not None
    # in bf16 an update of 1e-6 is lost in rounding, so the weights being trained are fp32 and the forward is autocast; DeepSpeed
    # keeps the fp32 weights itself
    if sharded:
        half = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        model, processor = load_sharded(base, half, ranks.first), load_processor(base)
        reference = load_sharded(base, half, ranks.first) if phase.kl else None
    else:
        reference = None
        model, processor = load_checkpoint(base, dtype=torch.float32)
    model.set_experts_implementation("grouped_mm")
    policy = TransformersPolicy.of(model, processor, profile.policy, inputs.frames_of, policy_digest(base))
    history = History(
        by_stream(inputs.segments),
        inputs.strong,
        phase.history,
        profile.policy.window,
        phase.batch,
        phase.off_policy_steps,
        seed,
    )
    if resume:
        history.restore(slots_of(resume))
    reward = partial(reward_group, judges=inputs.judges, settings=profile.reward)
    trainer = PackedGSPOTrainer(policy, processor, profile, history, reward, config, ranks, reference)
    updates = phase.batch // phase.mini_batch
    report_to(trainer, lambda done, total: progress(done // updates, total // updates))
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    curves = _curves(trainer.state.log_history, updates)
    if not all(math.isfinite(value) for step in curves for value in step.values()):
        raise UserError(f"{checkpoints}: the loss is no longer finite; lower phase_one.learning_rate and start anew")
    if ranks.first:
        write_json(checkpoints.parent / "training.json", curves)
    if sharded:
        # what is loaded from here on is whole again
        unset_hf_deepspeed_config()


def _resumed(checkpoints: Path, ranks: Ranks) -> Path | None:
    """The checkpoint to go on from, which every process must see."""
    newest = last_checkpoint(checkpoints)
    seen = ranks.gather(newest.name if newest else "")
    if len(set(seen)) > 1:
        raise UserError(
            f"{checkpoints}: the processes see different checkpoints ({', '.join(sorted(set(seen)))}); "
            "give a folder on a volume that all nodes mount"
        )
    return newest


def _curves(log: Sequence[Mapping[str, Any]], updates: int) -> list[dict[str, float]]:
    """One entry per step: the mean of each metric over the step's optimiser updates."""
    of_step: dict[int, list[Mapping[str, Any]]] = {}
    for entry in log:
        if "loss" in entry:
            of_step.setdefault(1 + (entry["step"] - 1) // updates, []).append(entry)
    return [
        {"step": step, **{n: round(mean(e[n] for e in es if n in e), 6) for n in _METRICS if any(n in e for e in es)}}
        for step, es in sorted(of_step.items())
    ]


def _validate(folders: Sequence[Path], inputs: PhaseOneInputs, profile: Profile) -> None:
    """Rate the policy of each checkpoint that has not been rated."""
    for folder in folders:
        kept = folder / "validation.json"
        if not kept.exists():
            # a checkpoint is not published, so a name does for a digest
            digest = sha256_bytes(folder.name)
            policy = TransformersPolicy.of(*load_checkpoint(folder), profile.policy, inputs.frames_of, digest)
            write_json(kept, {"score": inputs.validate(policy)})


def _scores(checkpoints: Path, profile: Profile) -> dict[int, float]:
    """The score of each step that was validated."""
    updates = profile.phase_one.batch // profile.phase_one.mini_batch
    folders = whole_checkpoints(checkpoints)
    return {update_of(f) // updates: float(read_json(f / "validation.json")["score"]) for f in folders}


def _export(base: Path, checkpoint: Path, target: Path) -> Path:
    """The picked weights with the base's tokenizer, processor and chat template."""
    model, _ = load_checkpoint(checkpoint)
    saved = read_json(base / "config.json").get("dtype") or "float32"
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    model.to(getattr(torch, saved)).save_pretrained(temporary)
    load_processor(base).save_pretrained(temporary)
    replace_directory(temporary, target)
    return target
