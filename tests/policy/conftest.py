"""One tiny random checkpoint on disk for all tests of the policy, read with the real classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from policy_parts import Films

from taskmem.config import PolicySettings, Profile, load_profile
from taskmem.policy.encoding import PromptEncoder
from taskmem.policy.transformers_policy import TransformersPolicy, load_checkpoint
from taskmem.world.checkpoint import build_model, build_processor, build_tokenizer

EncoderOf = Callable[..., PromptEncoder]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("checkpoint")
    processor = build_processor(build_tokenizer())
    model = build_model(processor.tokenizer, seed=0)
    with torch.no_grad():
        # a fresh model is nearly uniform and hardly looks around; larger weights make every comparison mean something
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(6)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def loaded(checkpoint: Path) -> tuple[Any, Any]:
    return load_checkpoint(checkpoint)


@pytest.fixture(scope="session")
def model(loaded: tuple[Any, Any]) -> Any:
    return loaded[0]


@pytest.fixture(scope="session")
def processor(loaded: tuple[Any, Any]) -> Any:
    return loaded[1]


@pytest.fixture(scope="session")
def profile() -> Profile:
    return load_profile("miniature")


@pytest.fixture(scope="session")
def settings(profile: Profile) -> PolicySettings:
    return profile.policy


@pytest.fixture
def films() -> Films:
    return Films()


@pytest.fixture
def encoder_of(processor: Any, settings: PolicySettings, films: Films) -> EncoderOf:
    """An encoder whose settings differ from the miniature profile's as given; sampling as sampling={...}."""

    def build(sampling: dict[str, Any] | None = None, **changes: Any) -> PromptEncoder:
        drawn = settings.sampling.model_copy(update=sampling or {})
        changed = settings.model_copy(update={**changes, "sampling": drawn})
        return PromptEncoder(processor, changed, films.frames_of)

    return build


@pytest.fixture
def policy(model: Any, encoder_of: EncoderOf) -> TransformersPolicy:
    return TransformersPolicy(model, encoder_of(max_completion_tokens=12), digest="a" * 64)
