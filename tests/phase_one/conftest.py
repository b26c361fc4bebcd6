"""One tiny checkpoint for all tests of Phase One: random, then taught a handful of memories, good and bad."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from phase_one_parts import context, film

from taskmem.config import load_profile
from taskmem.policy.grammar import completion_for
from taskmem.policy.transformers_policy import TransformersPolicy, load_checkpoint
from taskmem.world.checkpoint import build_model, build_processor, build_tokenizer

TAUGHT = (completion_for("red"), completion_for("a red box"), completion_for("a red box in the kitchen"), "red")
"""The last one breaks the grammar."""


def teach(policy: TransformersPolicy) -> None:
    """Imitation of `TAUGHT`, short enough that the policy goes on trying other things."""
    prompts = [policy.prompt(context(*indices)) for indices in ((0,), (1,), (0, 1))]
    completions = [policy.encoder.completion_ids(text) for text in TAUGHT]
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=3e-3)
    rng = random.Random(0)
    for _ in range(40):
        batch, labels = policy.encoder.batch(rng.choices(prompts, k=len(TAUGHT)), completions, side="right")
        policy.model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("base")
    processor = build_processor(build_tokenizer())
    model = build_model(processor.tokenizer, seed=0)
    teach(TransformersPolicy.of(model, processor, load_profile("miniature").policy, film, "0" * 64))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(base: Path) -> tuple[Any, Any]:
    return load_checkpoint(base)
