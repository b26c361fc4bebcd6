"""What transformers and PEFT write, greedily in float32: what vLLM is held against."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from plugin_parts import AdapterPress

from taskmem.config import Profile, Sampling
from taskmem.policy.packing import score_groups
from taskmem.policy.renderer import render
from taskmem.policy.stream import by_stream, window_context
from taskmem.policy.transformers_policy import TransformersPolicy
from taskmem.records import Context
from taskmem.stages.common import footage
from taskmem.vllm_plugin.greedy import as_video


@dataclass(frozen=True)
class Ask:
    """One context: as messages, as vLLM takes it in process, as its clip files, and as token ids."""

    context: Context
    messages: list[Any]
    prompt: dict[str, Any]
    clips: list[Path]
    ids: tuple[int, ...]


class Reference:
    """The policy with a steer layer, and contexts of real segments."""

    def __init__(self, loaded: tuple[Any, Any], press: AdapterPress, segments: Path, profile: Profile) -> None:
        film = footage(segments, profile)
        sampling = profile.policy.sampling.model_copy(update={"top_k": 1})
        settings = profile.policy.model_copy(update={"sampling": sampling})
        model, self._processor = loaded
        self._press, self._film, self._segments, self._settings = press, film, segments, settings
        self._policy = TransformersPolicy.of(model, self._processor, settings, film.frames_of, "0" * 64)
        memories = {i: f"red figure in the kitchen, holding the cup; {i} lamps" for i in range(9)}
        self.asks = [
            self._ask(window_context(stream, memories, position, settings.window))
            for stream in by_stream(film.segments).values()
            for position in range(len(stream))
        ]

    def _ask(self, context: Context) -> Ask:
        messages = render(context, self._settings)
        videos = [as_video(self._film.frames_of(s), s.fps) for s in context.segments]
        text = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return Ask(
            context,
            messages,
            {"prompt": text, "multi_modal_data": {"video": videos}},
            [self._segments / s.clip for s in context.segments],
            self._policy.prompt(context).ids,
        )

    def write(self, ask: Ask, vector: torch.Tensor) -> tuple[tuple[int, ...], list[float]]:
        """Tokens, steered by `vector`, and their log-probabilities."""
        self._press.put(vector)
        ((written,),) = self._policy.write([ask.context], 1, 0)
        prompt = self._policy.prompt(ask.context)
        with torch.no_grad():
            scored = score_groups(self._policy.model, self._policy.encoder, [prompt], [[written.tokens]])
        logps: list[float] = scored.logps[0, 0].tolist()
        return written.tokens, logps

    def policy(self, vector: torch.Tensor, sampling: Sampling, adapter: str = "none") -> TransformersPolicy:
        """The policy in this process, steered by `vector` until another is asked for."""
        self._press.put(vector)
        settings = self._settings.model_copy(update={"sampling": sampling})
        policy = TransformersPolicy.of(self._policy.model, self._processor, settings, self._film.frames_of, "0" * 64)
        policy.adapter = adapter
        return policy
