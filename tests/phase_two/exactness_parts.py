"""DPO on the full model by TRL's own trainer, one row per completion, beside the engine's packed step on the same pairs."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import trl.trainer.utils
from datasets import Dataset
from phase_two_parts import SEED, context, film, short_profile
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextRMSNorm
from trl import DPOConfig, DPOTrainer

from taskmem.config import PhaseTwoSettings
from taskmem.phase_two.engine import Example, PairEngine
from taskmem.phase_two.halves import load_lower, load_upper
from taskmem.phase_two.trunk import Tokens, trunks
from taskmem.policy.encoding import Prompt, PromptEncoder
from taskmem.policy.renderer import render
from taskmem.policy.transformers_policy import load_processor
from taskmem.steer import SteerConfig, steer_vector
from taskmem.world.checkpoint import build_processor, build_tokenizer

SHARD = "150KB"


def six_layers(folder: Path) -> Path:
    """A random model of six decoder layers, DeepStack behind the first three, saved in many shards."""
    processor = build_processor(build_tokenizer())
    tokenizer = processor.tokenizer
    base = Qwen3VLMoeConfig.from_pretrained(Path(__file__).parents[2] / "taskmem/world/base").to_dict()
    text = {**base["text_config"], "num_hidden_layers": 6, "hidden_size": 64, "num_attention_heads": 4}
    text |= {
        "num_key_value_heads": 2,
        "moe_intermediate_size": 48,
        "num_local_experts": 8,
        "vocab_size": len(tokenizer),
    }
    vision = {**base["vision_config"], "depth": 3, "out_hidden_size": 64, "deepstack_visual_indexes": [0, 1, 2]}
    config = Qwen3VLMoeConfig(**{**base, "text_config": text, "vision_config": vision, "tie_word_embeddings": False})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Qwen3VLMoeForConditionalGeneration(config)
        with torch.no_grad():
            # a fresh model is nearly uniform and hardly looks around; larger weights make every comparison mean something
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.mul_(4)
    model.save_pretrained(folder, max_shard_size=SHARD)
    processor.save_pretrained(folder)
    return folder


class _ExactHead:
    """TRL's fused head in the model's own precision: its kernel works in float32 whatever the model's dtype is."""

    @staticmethod
    def apply(
        hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, *_: Any
    ) -> tuple[torch.Tensor, ...]:
        every = torch.nn.functional.linear(hidden, weight, bias).log_softmax(-1)
        found = every.gather(1, labels[:, None])[:, 0]
        nothing = torch.zeros_like(found)
        return found, nothing, nothing, nothing, nothing > 0


def _exact_norm(self: Any, states: torch.Tensor) -> torch.Tensor:
    return self.weight * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + self.variance_epsilon)  # type: ignore[no-any-return]


def in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep float64 where TRL (its head) and transformers (RMSNorm) go down to float32, for both sides of a comparison."""
    monkeypatch.setattr(trl.trainer.utils, "_ChunkedLogProbFunction", _ExactHead)
    monkeypatch.setattr(Qwen3VLMoeTextRMSNorm, "forward", _exact_norm)


@dataclass(frozen=True)
class Case:
    """Prompts, the completions of each, and the pairs among them."""

    prompts: tuple[Prompt, ...]
    groups: tuple[tuple[Tokens, ...], ...]
    examples: tuple[Example, ...]


def encoder_of(policy: Path) -> PromptEncoder:
    return PromptEncoder(load_processor(policy), short_profile().policy, film)


def case(encoder: PromptEncoder, pairs: int, video: bool, contexts: int = 2) -> Case:
    """Contexts of different lengths; in each a random completion is preferred to `pairs` others, all of different lengths."""
    rng = random.Random(pairs)
    prompts = []
    for i in range(contexts):
        told = context(i)
        prompt = encoder.encode(told, render(told, encoder.settings))
        if not video:
            ids = tuple(token for token in prompt.ids if token != encoder.video_id)
            prompt = Prompt(ids, prompt.pixels[:0], ())
        prompts.append(prompt)
    words = range(10, 400)
    groups = tuple(
        tuple((*rng.choices(words, k=rng.randint(2, 20)), encoder.end_id) for _ in range(pairs + 1)) for _ in prompts
    )
    examples = tuple(Example(number, group[0], other) for number, group in enumerate(groups) for other in group[1:])
    return Case(tuple(prompts), groups, examples)


def engine_of(policy: Path, layer: int, of: Case, dtype: torch.dtype, at_once: int = 1 << 14) -> PairEngine:
    encoder = encoder_of(policy)
    lower = load_lower(policy, layer, dtype)
    return PairEngine(
        load_upper(policy, layer, dtype), trunks(lower, encoder, of.prompts, of.groups), of.examples, at_once
    )


def dpo_config(settings: PhaseTwoSettings, out: Path) -> DPOConfig:
    return DPOConfig(
        output_dir=str(out),
        seed=SEED,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=math.inf,
        dataloader_drop_last=True,
        beta=settings.beta,
        loss_type=settings.loss,
        label_smoothing=settings.label_smoothing,
        max_length=None,
        router_aux_loss_coef=0.0,
        remove_unused_columns=False,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        bf16=False,
        use_cpu=True,
    )


class Oracle:
    """TRL's DPOTrainer on the whole model with the adapter."""

    def __init__(self, policy: Path, settings: PhaseTwoSettings, of: Case, dtype: torch.dtype, out: Path) -> None:
        experts = {"experts_implementation": "eager"} if dtype == torch.float64 else {}
        model = Qwen3VLMoeForConditionalGeneration.from_pretrained(policy, dtype=dtype, **experts)
        self._encoder = encoder_of(policy)
        self._case = of
        data = [
            {"number": i, "images": [], "prompt": "", "chosen": "", "rejected": ""} for i in range(len(of.examples))
        ]
        self.trainer = DPOTrainer(
            model=model.eval(),
            args=dpo_config(settings, out),
            train_dataset=Dataset.from_list(data),
            processing_class=load_processor(policy),
            data_collator=self.collate,
            peft_config=SteerConfig(layer=settings.layer),
        )

    def collate(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        picked = [self._case.examples[row["number"]] for row in rows]
        prompts = [self._case.prompts[e.context] for e in picked] * 2
        completions = [e.chosen for e in picked] + [e.rejected for e in picked]
        inputs, labels = self._encoder.batch(prompts, completions, side="right")
        if not prompts[0].grids:
            inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        return {**inputs, "completion_mask": (labels != -100).long()}

    @property
    def vector(self) -> torch.nn.Parameter:
        return steer_vector(self.trainer.model)

    def gradient(self, at: torch.Tensor) -> tuple[torch.Tensor, float]:
        """The vector's gradient and the loss over all pairs."""
        with torch.no_grad():
            self.vector.copy_(at)
        self.vector.grad = None
        inputs = self.collate([{"number": i} for i in range(len(self._case.examples))])
        loss = self.trainer.compute_loss(self.trainer.model, inputs)
        loss.backward()
        assert self.vector.grad is not None
        return self.vector.grad.clone(), float(loss.detach())


def somewhere(size: int) -> torch.Tensor:
    """A vector as large as a trained one, the same every time."""
    direction = torch.randn(size, generator=torch.Generator().manual_seed(0))
    return 0.3 * direction / direction.norm()


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative error."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())
