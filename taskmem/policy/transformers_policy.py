"""The policy in this process, on transformers: a checkpoint folder, optionally with one steer adapter."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from transformers import AutoProcessor, Qwen3VLMoeForConditionalGeneration
from transformers.utils import logging as transformers_logging

from taskmem.config import PolicySettings
from taskmem.errors import UserError
from taskmem.files import sha256_tree
from taskmem.policy.checkpoint import check_policy, reading
from taskmem.policy.completion import completion_of, seed_of
from taskmem.policy.encoding import Prompt, PromptEncoder
from taskmem.policy.packing import sample_groups
from taskmem.policy.protocols import Completion
from taskmem.policy.renderer import render
from taskmem.records import Context
from taskmem.video.frames import FramesOf

ROWS = 128  # completions sampled at once


def policy_digest(path: Path) -> str:
    """Hex SHA-256 of a checkpoint folder: weights, configuration, tokenizer, processor and chat template."""
    return sha256_tree(path)


def policy_reference(digest: str) -> str:
    """How an adapter names the policy it was trained on: by digest, for a path would differ from machine to machine."""
    return f"sha256:{digest}"


def load_processor(path: Path) -> Any:
    """The tokenizer, video processor and chat template of a checkpoint folder; UserError if they cannot be loaded."""
    with reading(path):
        processor = AutoProcessor.from_pretrained(path, local_files_only=True)
        # where files are missing transformers makes do with a tokenizer that knows no words, and with no template
        if not (processor.chat_template and processor.tokenizer("a").input_ids):
            raise ValueError("its tokenizer or chat template is missing")
    return processor


def load_checkpoint(path: Path, dtype: torch.dtype | str = "auto") -> tuple[Any, Any]:
    """Model (on the accelerator, if there is one) and processor of a checkpoint folder (safetensors only).

    `dtype` is that of the weights; "auto" keeps the saved one. UserError if the folder is no checkpoint or not whole.
    """
    check_policy(path)
    with reading(path):
        model, report = Qwen3VLMoeForConditionalGeneration.from_pretrained(
            path,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            dtype=dtype,
            ignore_mismatched_sizes=True,  # they are in the report, by name
        )
    names = {*report["missing_keys"], *report["unexpected_keys"], *(name for name, *_ in report["mismatched_keys"])}
    wrong = sorted(names)
    if wrong:
        raise UserError(
            f"{path}: {len(wrong)} weights are missing or do not fit, first {wrong[0]}; copy the checkpoint again"
        )
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), load_processor(path)


class TransformersPolicy:
    """Implements `policy.protocols.Policy` with shared prefill for the rollouts of a context."""

    def __init__(self, model: Any, encoder: PromptEncoder, digest: str, adapter: str = "none") -> None:
        self.model = model
        self.encoder = encoder
        self.digest = digest
        self.adapter = adapter
        self.rows = ROWS
        self.finished: Callable[[bool], bool] = bool  # see `packing.sample_groups`

    @classmethod
    def of(cls, model: Any, processor: Any, settings: PolicySettings, frames_of: FramesOf, digest: str) -> Self:
        """The policy of a loaded checkpoint; `frames_of` reads a segment's frames."""
        return cls(model, PromptEncoder(processor, settings, frames_of), digest)

    @classmethod
    def load(cls, path: Path, settings: PolicySettings, frames_of: FramesOf) -> Self:
        """The policy of a checkpoint folder, without adapter."""
        return cls.of(*load_checkpoint(path), settings, frames_of, policy_digest(path))

    def prompt(self, context: Context) -> Prompt:
        """The context as the model reads it."""
        return self.encoder.encode(context, render(context, self.encoder.settings))

    def completion(self, tokens: Sequence[int]) -> Completion:
        """Token ids as a completion, parsed by the output grammar."""
        return completion_of(tokens, self.encoder.tokenizer)

    def write(self, contexts: Sequence[Context], n: int, seed: int) -> list[list[Completion]]:
        """Sample `n` completions for each context."""
        written: list[list[Completion]] = []
        at_once = max(1, self.rows // n)
        for start in range(0, len(contexts), at_once):
            part = contexts[start : start + at_once]
            seeds = [seed_of(seed, n, context.id) for context in part]
            groups = sample_groups(self.model, self.encoder, [self.prompt(c) for c in part], n, seeds, self.finished)
            written += [[self.completion(tokens) for tokens in group] for group in groups]
        return written


def prepare_process() -> None:
    """Run torch on one thread, which is deterministic and, for small models, faster than two; no bars of other libraries."""
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
