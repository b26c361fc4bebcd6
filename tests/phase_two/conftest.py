"""One tiny random checkpoint for all tests of Phase Two, and one adapter trained on it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from phase_two_parts import SEED, film, pairs, short_profile

from taskmem.phase_two.frozen import FrozenPolicy
from taskmem.phase_two.train import train_phase_two
from taskmem.policy.transformers_policy import TransformersPolicy, load_checkpoint
from taskmem.world.checkpoint import build_model, build_processor, build_tokenizer


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("base")
    processor = build_processor(build_tokenizer())
    model = build_model(processor.tokenizer, seed=0)
    with torch.no_grad():
        # a fresh model is nearly uniform and hardly looks around; larger weights make every comparison mean something
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(4)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of four steps, its vector as trained."""
    return train_phase_two(
        FrozenPolicy(base), pairs(), film, short_profile(), SEED, tmp_path_factory.mktemp("adapters") / "red"
    )


@pytest.fixture
def policy(base: Path) -> TransformersPolicy:
    model, processor = load_checkpoint(base)
    return TransformersPolicy.of(model, processor, short_profile().policy, film, "0" * 64)


@pytest.fixture
def model(policy: TransformersPolicy) -> Any:
    return policy.model
