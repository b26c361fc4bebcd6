"""The two sides of bench-phase-two: DPO on the whole model by TRL's trainer, and the packed steps of taskmem.phase_two.

Both read one checkpoint with random weights and one context of real frames, and train the same vector on the same pairs with
their own code as it comes: TRL's `train()` with its own reference pass, our `fit` behind trunks. A side runs in a process of its
own, so that its peak memory is its own, and takes a step when it is told to:

    python -m benchmarks.phase_two_sides TASK.json          "go" on stdin, one JSON line a step on stdout, then the outcome
"""

import gc
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from datasets import Dataset
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration, TrainerCallback
from trl import DPOConfig, DPOTrainer

from taskmem.config import PhaseTwoSettings, load_profile
from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.phase_two.engine import Example, PairEngine, Step
from taskmem.phase_two.fit import fit
from taskmem.phase_two.halves import load_lower, load_upper
from taskmem.phase_two.trunk import Tokens, Trunk, trunks
from taskmem.policy.encoding import Prompt, PromptEncoder
from taskmem.policy.renderer import render
from taskmem.policy.transformers_policy import load_processor
from taskmem.records import Context, ContextMemory, Segment
from taskmem.steer import SteerConfig, steer_vector
from taskmem.video.frames import Frames
from taskmem.world.checkpoint import build_model, build_processor, build_tokenizer

SEED = 7
ROLLOUTS = 8  # METHOD section 4, step 1
CACHE_REPEATS = 3
SideName = Literal["full", "ours"]


@dataclass(frozen=True)
class Size:
    """Of the model and of a context: `layer` is the steer layer, `side` a frame's pixels, `completion` in tokens."""

    layers: int = 24
    layer: int = 11
    hidden: int = 256
    experts: int = 8
    expert_size: int = 192
    vision_depth: int = 6
    vision_hidden: int = 192
    segments: int = 5
    frames: int = 8
    side: int = 128
    completion: int = 60


@dataclass(frozen=True)
class Task:
    """What a process is to do: `candidates` of one context with all pairs among them, `steps` optimiser updates.

    Of the full side alone: `checkpointing` is TRL's default; `reference_once` takes the reference pass before the first step,
    where TRL refuses to for video. Of ours: `sources` names one per pair, so that every pair's gradient is made.
    """

    side: SideName
    policy: str
    size: Size
    candidates: int
    steps: int
    checkpointing: bool = False
    reference_once: bool = False
    sources: bool = False


class Pace(Protocol):
    """What a side calls around each of its optimiser steps."""

    def begin(self) -> None:
        """Before a step; may wait."""

    def end(self) -> None:
        """After a step."""


@dataclass
class Outcome:
    """What a side measured apart from its steps: seconds to load weights, and of what is made once before the first step.

    `gradient` is that of the first step, `vector` the one after the last.
    """

    prompt_tokens: int
    load_seconds: float
    once_seconds: float
    gradient: list[float] = field(default_factory=list)
    vector: list[float] = field(default_factory=list)
    peak_bytes: int = 0


def write_policy(size: Size, folder: Path) -> None:
    """A random checkpoint of that size, DeepStack behind its first layers."""
    processor = build_processor(build_tokenizer())
    config = build_model(processor.tokenizer, seed=0).config.to_dict()
    text = config["text_config"] | {
        "num_hidden_layers": size.layers,
        "hidden_size": size.hidden,
        "num_attention_heads": size.hidden // 32,
        "num_key_value_heads": max(1, size.hidden // 64),
        "moe_intermediate_size": size.expert_size,
        "num_local_experts": size.experts,
    }
    vision = config["vision_config"] | {
        "depth": size.vision_depth,
        "hidden_size": size.vision_hidden,
        "intermediate_size": 2 * size.vision_hidden,
        "num_heads": size.vision_hidden // 32,
        "out_hidden_size": size.hidden,
        "deepstack_visual_indexes": list(range(0, size.vision_depth, 2)),
    }
    torch.manual_seed(SEED)
    model = Qwen3VLMoeForConditionalGeneration(
        Qwen3VLMoeConfig(**{**config, "text_config": text, "vision_config": vision})
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _context(size: Size) -> Context:
    """A window of segments with a memory of each but the last."""
    indices = range(size.segments)
    segments = tuple(
        Segment(
            stream="stream",
            index=i,
            start_s=10.0 * i,
            end_s=10.0 * i + 10.0,
            source="stream.mp4",
            clip=f"stream/{i:05d}.mp4",
            fps=size.frames / 10,
            width=size.side,
            height=size.side,
            sha256=sha256_bytes(str(i)),
        )
        for i in indices
    )
    told = "a red person in the kitchen and three lamps lit"
    return Context(segments=segments, memories=tuple(ContextMemory(index=i, text=told) for i in indices[:-1]))


def encoder_of(policy: Path, size: Size) -> PromptEncoder:
    """The checkpoint's own processor over random frames."""

    def film(segment: Segment) -> Frames:
        shape = (size.frames, size.side, size.side, 3)
        return np.random.default_rng(segment.index).integers(256, size=shape, dtype=np.uint8)

    return PromptEncoder(load_processor(policy), load_profile("miniature").policy, film)


def prompt_of(encoder: PromptEncoder, size: Size) -> Prompt:
    """The context as the policy reads it."""
    context = _context(size)
    return encoder.encode(context, render(context, encoder.settings))


def rollouts_of(encoder: PromptEncoder, size: Size) -> list[Tokens]:
    """The context's random completions, as many as the rollout cache has."""
    rng = random.Random(SEED)
    words = range(10, 400)
    return [(*rng.choices(words, k=size.completion - 1), encoder.end_id) for _ in range(ROLLOUTS)]


def examples_of(rollouts: Sequence[Tokens], candidates: int) -> tuple[Example, ...]:
    """Every pair among the first so many."""
    return tuple(Example(0, chosen, rejected) for chosen, rejected in combinations(rollouts[:candidates], 2))


def settings_of(task: Task) -> PhaseTwoSettings:
    """The profile's, with the task's layer and steps and all pairs in every step."""
    pairs = math.comb(task.candidates, 2)
    changes = {"layer": task.size.layer, "steps": task.steps, "batch": pairs, "target_norm": None, "stopping": None}
    return load_profile("miniature").phase_two.model_copy(update=changes)


class _Paced(TrainerCallback):
    """Lets TRL's loop take its steps at the benchmark's pace, and keeps the first gradient."""

    def __init__(self, pace: Pace, vector: Callable[[], torch.nn.Parameter]) -> None:
        self._pace = pace
        self._vector = vector
        self.gradient: torch.Tensor | None = None

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Wait for the word."""
        self._pace.begin()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Keep the first gradient."""
        if self.gradient is None:
            found = self._vector().grad
            assert found is not None
            self.gradient = found.clone()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Tell how long it took."""
        self._pace.end()


def _dpo_config(task: Task, settings: PhaseTwoSettings, out: Path) -> DPOConfig:
    return DPOConfig(
        output_dir=str(out),
        seed=SEED,
        max_steps=settings.steps,
        # pair by pair: faster than all rows of a step at once, and in less memory
        per_device_train_batch_size=1,
        gradient_accumulation_steps=settings.batch,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=math.inf,
        beta=settings.beta,
        loss_type=settings.loss,
        label_smoothing=settings.label_smoothing,
        max_length=None,
        router_aux_loss_coef=0.0,
        remove_unused_columns=False,
        gradient_checkpointing=task.checkpointing,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        bf16=False,
        use_cpu=True,
    )


def run_full(task: Task, pace: Pace) -> Outcome:
    """TRL's DPOTrainer on the whole model with the adapter, two rows a pair; its reference is a pass without the adapter."""
    policy, settings = Path(task.policy), settings_of(task)
    encoder = encoder_of(policy, task.size)
    prompt, examples = prompt_of(encoder, task.size), examples_of(rollouts_of(encoder, task.size), task.candidates)
    reference: dict[str, torch.Tensor] = {}

    def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        numbers = [row["number"] for row in rows]
        completions = [examples[i].chosen for i in numbers] + [examples[i].rejected for i in numbers]
        inputs, labels = encoder.batch([prompt] * len(completions), completions, side="right")
        of_rows = {name: logps[numbers] for name, logps in reference.items()}
        return {**inputs, "completion_mask": (labels != -100).long(), **of_rows}

    started = time.perf_counter()
    model = Qwen3VLMoeForConditionalGeneration.from_pretrained(policy).eval()
    loaded = time.perf_counter() - started
    data = [{"number": i, "images": [], "prompt": "", "chosen": "", "rejected": ""} for i in range(len(examples))]
    trainer: Any = DPOTrainer(
        model=model,
        args=_dpo_config(task, settings, policy.parent / "trl"),
        train_dataset=Dataset.from_list(data),
        processing_class=load_processor(policy),
        data_collator=collate,
        peft_config=SteerConfig(layer=settings.layer),
    )
    once = 0.0
    if task.reference_once:
        started = time.perf_counter()
        with torch.no_grad():
            found = [trainer.compute_ref_log_probs(trainer.model, collate([row])) for row in data]
        once = time.perf_counter() - started
        chosen, rejected = (torch.cat(logps) for logps in zip(*found, strict=True))
        reference.update(ref_chosen_logps=chosen, ref_rejected_logps=rejected)
        trainer.precompute_ref_logps = True
    paced = _Paced(pace, lambda: steer_vector(trainer.model))
    trainer.add_callback(paced)
    trainer.train()
    assert paced.gradient is not None
    vector = steer_vector(trainer.model).detach()
    return Outcome(len(prompt.ids), loaded, once, paced.gradient.tolist(), vector.tolist())


class _Watched(PairEngine):
    """The engine, its first gradient kept."""

    gradient: torch.Tensor | None = None

    def step(self, vector: torch.Tensor, pairs: Sequence[int], settings: PhaseTwoSettings, *, per_pair: bool) -> Step:
        """The engine's own step."""
        found = super().step(vector, pairs, settings, per_pair=per_pair)
        if self.gradient is None:
            self.gradient = found.gradients.mean(0)
        return found


def _trunk(policy: Path, size: Size, encoder: PromptEncoder) -> tuple[Trunk, float, float]:
    """The trunk of the context and all its rollouts, the seconds to load the lower half, and the median of those to compute."""
    prompt, rollouts = prompt_of(encoder, size), rollouts_of(encoder, size)
    started = time.perf_counter()
    lower = load_lower(policy, size.layer)
    loaded = time.perf_counter() - started
    seconds = []
    for _ in range(CACHE_REPEATS):
        started = time.perf_counter()
        (trunk,) = trunks(lower, encoder, [prompt], [rollouts])
        seconds.append(time.perf_counter() - started)
    return trunk, loaded, float(np.median(seconds))


def run_ours(task: Task, pace: Pace) -> Outcome:
    """Trunk and reference once, then `fit` on the upper half with one packed row; as train_phase_two goes about it."""
    policy, settings = Path(task.policy), settings_of(task)
    encoder = encoder_of(policy, task.size)
    trunk, lower_seconds, trunk_seconds = _trunk(policy, task.size, encoder)
    examples = examples_of(list(trunk.completions), task.candidates)
    gc.collect()
    started = time.perf_counter()
    upper = load_upper(policy, settings.layer)
    upper_seconds = time.perf_counter() - started
    seconds = []
    for _ in range(CACHE_REPEATS):
        started = time.perf_counter()
        engine = _Watched(upper, [trunk], examples)  # makes the reference
        seconds.append(time.perf_counter() - started)

    def progress(done: int, total: int) -> None:
        pace.end()
        if done < total:
            pace.begin()

    sources = [(f"user-{i}",) if task.sources else () for i in range(len(examples))]
    pace.begin()
    done = fit(engine, examples, sources, settings, SEED, progress)
    assert engine.gradient is not None
    once = trunk_seconds + float(np.median(seconds))
    tokens, loaded = len(trunk.prompt.hidden), lower_seconds + upper_seconds
    return Outcome(tokens, loaded, once, engine.gradient.tolist(), done.vector.tolist())


def run(task: Task, pace: Pace) -> Outcome:
    """One side, to its end."""
    return {"full": run_full, "ours": run_ours}[task.side](task, pace)


def resident(what: Literal["VmRSS", "VmHWM"]) -> int:
    """Bytes of this process in memory: now, or at most since it began or its mark was reset."""
    status = Path("/proc/self/status")
    if not status.exists():
        raise UserError("bench-phase-two: reads peak memory from /proc, which this system lacks; run it on Linux")
    line = next(line for line in status.read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


class _Told:
    """A pace set from outside: a line on stdin starts each step, a line on `out` ends it."""

    def __init__(self, out: Any) -> None:
        self._out = out
        self._started = (0.0, 0.0)

    def begin(self) -> None:
        """Wait for a line, then start the clocks."""
        self._out.write('{"ready": true}\n')
        self._out.flush()
        if not sys.stdin.readline():
            raise SystemExit("nobody waits for the next step any more")
        self._started = (time.perf_counter(), time.process_time())

    def end(self) -> None:
        """Write what the step took, of the wall clock and of the processor."""
        wall, processor = time.perf_counter() - self._started[0], time.process_time() - self._started[1]
        self._out.write(json.dumps({"seconds": wall, "cpu_seconds": processor}) + "\n")
        self._out.flush()


def main(path: Path) -> None:
    """Run the task in the file at `path`."""
    # whatever libraries print goes with the errors: stdout is the line to whoever started this
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    read = json.loads(path.read_text())
    task = Task(**{**read, "size": Size(**read["size"])})
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on, after the imports
    before = resident("VmRSS")
    outcome = run(task, _Told(out))
    outcome.peak_bytes = resident("VmHWM") - before
    out.write(json.dumps(asdict(outcome)) + "\n")
    out.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
