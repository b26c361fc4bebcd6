"""The policy behind a vLLM server: one base model, the adapter chosen by the request's model name (METHOD section 1)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from transformers import AutoTokenizer

from taskmem.config import PolicySettings
from taskmem.endpoint.client import Caller, CallError, Endpoint
from taskmem.endpoint.keys import ApiKey
from taskmem.endpoint.media import Clips, frame_count, video_parts
from taskmem.endpoint.parallel import in_order
from taskmem.endpoint.reply import Reply
from taskmem.errors import UserError
from taskmem.policy.completion import MOST_ROWS, ROWS_ARGUMENT, SEED_ARGUMENT, completion_of, seed_of
from taskmem.policy.protocols import Completion
from taskmem.policy.renderer import render
from taskmem.records import Context, one_line, read_json

STAMP = re.compile(r"<([0-9.]+) seconds>")
STAMP_TOKENS = 24
CERTAIN = 100  # the logit bias that makes a token certain, but where the shared draw forbids all tokens with a bias
COLDEST, HOTTEST = 0.01, 2.0  # temperatures that vLLM takes as they are
PHASE_ONE = "policy"  # the gateway's name for no adapter


@dataclass(frozen=True)
class Tenant:
    """Whose memories are written: the environment is the model that is asked for, the gateway knows its champion.

    `key` is the tenant's own token: a service that writes for many has none that is good for all.
    """

    environment: str
    key: ApiKey

    def caller(self, context: Context) -> Caller:
        """Who asks for the memory of a context's newest segment, for the gateway's log."""
        newest = context.current
        told = {"x-taskmem-stream": newest.stream, "x-taskmem-memories": f"{newest.stream}:{newest.index}"}
        return Caller(self.key, told)

    def adapter(self, model: str | None) -> str:
        """The adapter that a reply says has written it; UserError where it says none of this environment."""
        if model == PHASE_ONE:
            return "none"
        if model is None or not model.startswith(f"{self.environment}@"):
            raise UserError(f"environment {self.environment}: was answered by another model; ask the gateway, not vLLM")
        return model


@dataclass(frozen=True)
class Vocabulary:
    """A checkpoint's tokenizer, the tokens no completion may hold (those that stand for pictures), and how video is cut."""

    tokenizer: Any
    end: int  # the token that ends a completion
    forbidden: tuple[int, ...]
    video: int  # the token that stands for a piece of video
    frames: int  # frames in one such piece

    def stamps_in(self, ids: Sequence[int]) -> list[str]:
        """The time that stands before each piece of video in a prompt; "" where none does."""
        found: list[str] = []
        text: list[int] = []  # since the last piece
        for before, now in zip([-1, *ids], ids, strict=False):
            if now != self.video:
                text = [*text[1 - STAMP_TOKENS :], now]
            elif before != self.video:
                found += (STAMP.findall(self.tokenizer.decode(text)) or [""])[-1:]
                text = []
        return found

    @classmethod
    def load(cls, path: Path) -> Self:
        """From a checkpoint folder, without its weights; UserError if it is none."""
        config = read_json(path / "config.json")
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            video, image = int(config["video_token_id"]), int(config["image_token_id"])
            frames = int(config["vision_config"]["temporal_patch_size"])
            return cls(tokenizer, int(tokenizer.eos_token_id), (video, image), video, frames)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: no policy checkpoint ({one_line(str(error))}); copy it again") from None


def stamps(frames: int, fps: float, together: int) -> list[str | None]:
    """The times in seconds that stand before each piece of a clip: the mean of its first and last frame's.

    None, any, where the clip is shorter than a piece: there vLLM and the processor disagree on what it is filled with.
    """
    if frames < together:
        return [None]
    last = [min(start + together, frames) - 1 for start in range(0, frames, together)]
    # a short last piece is filled with its last frame
    return [f"{(number * together + end) / 2 / fps:.1f}" for number, end in enumerate(last)]


class HttpPolicy:
    """Implements `policy.protocols.Policy`; contexts are written in parallel, as many at once as the profile allows.

    Everything that decides what is sampled goes with each request, so that no default of the server's has a say. Tokens
    are drawn by `vllm_plugin.draw` with the draws of `policy.draw`: in float32 they are those of `TransformersPolicy`. They
    come back as ids and are decoded here, so that no reasoning parser of the server's has a say either. How it reads video
    it decides when it starts (`endpoint.media.server_flags`). That it draws so and dropped no frame is seen in every reply.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: PolicySettings,
        clips: Clips,
        vocabulary: Vocabulary,
        digest: str,
        adapter: str = "none",
        tenant: Tenant | None = None,
    ) -> None:
        """`digest` is the served checkpoint's, `adapter` a name the server knows (`env@v3`) or "none".

        For a `tenant` it is its environment's champion that writes, and each completion says which that was.
        UserError if the profile names no server for the policy, has it see loose images, which carry no times, or a temperature
        that vLLM would change.
        """
        self._endpoint = endpoint
        self._server = endpoint.server("policy")
        if self._server.media == "images":
            raise UserError("calls.policy.media: the policy takes video, not single images; set mp4 or frames")
        if not COLDEST <= settings.sampling.temperature <= HOTTEST:
            raise UserError(
                f"policy.sampling.temperature: vLLM draws at {COLDEST} to {HOTTEST}, not at {settings.sampling.temperature}; "
                "set one of these"
            )
        self._settings = settings
        self._clips = clips
        self._vocabulary = vocabulary
        self._tenant = tenant
        self.digest = digest
        self.adapter = adapter

    def write(self, contexts: Sequence[Context], n: int, seed: int) -> list[list[Completion]]:
        """Sample `n` completions for each context.

        UserError if the server failed for good or is no vLLM that draws as this process would, or if `n` is more than
        MOST_ROWS; what was sampled is in the cache.
        """
        if n > MOST_ROWS:
            raise UserError(
                f"policy: {n} completions of one context; a server writes {MOST_ROWS} at most, ask for fewer"
            )

        def group(context: Context) -> list[Completion]:
            return self._group(context, n, seed)

        return list(in_order(group, contexts, self._server.concurrency))

    def _group(self, context: Context, n: int, seed: int) -> list[Completion]:
        failure = ""
        reply: Reply | None = None
        caller = self._tenant.caller(context) if self._tenant else None
        try:
            request = self._request(context, n, seed)
            reply = self._endpoint.sample("policy", request, self.digest, lambda got: self._check(context, got), caller)
        except CallError as error:
            failure = str(error)
        if reply is None:
            raise UserError(
                f"context {context.id}: the policy's server failed ({failure}); run again with --resume: "
                "what was sampled is kept"
            )
        adapter = self._tenant.adapter(reply.model) if self._tenant else None
        tokens = [choice.token_ids or [] for choice in reply.choices]
        return [replace(completion_of(ids, self._vocabulary.tokenizer), adapter=adapter) for ids in tokens]

    def _check(self, context: Context, reply: Reply) -> None:
        """UserError if the server is not set up to serve this policy as it was trained."""
        server = self._server.base_url
        if reply.policy not in (None, self.digest):
            raise UserError(
                f"{server}: serves policy {reply.policy}, not {self.digest}; start this again with that one"
            )
        ids = reply.prompt_token_ids
        if ids is None or any(choice.token_ids is None for choice in reply.choices):
            raise UserError(f"{server}: gives no token ids; serve the policy with vLLM (return_token_ids)")
        forbidden = set(self._vocabulary.forbidden)
        if any(forbidden.intersection(choice.token_ids or ()) for choice in reply.choices):
            raise UserError(
                f"{server}: wrote a token that stands for a picture, so it draws otherwise than this process would; start it "
                "with `taskmem serve policy` (--logits-processors taskmem.vllm_plugin.draw:SharedDraw)"
            )
        clips = [(frame_count(segment, self._clips), segment.fps) for segment in context.segments]
        wanted = [stamp for count, fps in clips for stamp in stamps(count, fps, self._vocabulary.frames)]
        read = self._vocabulary.stamps_in(ids)
        if len(read) != len(wanted) or any(w not in (None, r) for w, r in zip(wanted, read, strict=True)):
            raise UserError(
                f"{server}: read the clips of context {context.id} at {read} seconds instead of {wanted}, so it samples "
                "them again or takes them for faster; start it with endpoint.media.server_flags"
            )

    def _request(self, context: Context, n: int, seed: int) -> dict[str, Any]:
        sampling = self._settings.sampling
        forbidden = self._vocabulary.forbidden
        chosen = self._server.model if self.adapter == "none" else self.adapter
        return {
            "model": self._tenant.environment if self._tenant else chosen,
            "messages": self._messages(context),
            "n": n,
            "seed": 0,  # the first row; vLLM counts it up for the others
            "vllm_xargs": {SEED_ARGUMENT: seed_of(seed, n, context.id), ROWS_ARGUMENT: n},
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "max_completion_tokens": self._settings.max_completion_tokens,
            # the one end; a checkpoint's generation_config.json may name others
            "ignore_eos": True,
            "stop_token_ids": [self._vocabulary.end, *forbidden],
            "logit_bias": {str(token): CERTAIN for token in forbidden},
            "return_token_ids": True,
        }

    def _messages(self, context: Context) -> list[dict[str, Any]]:
        segments = iter(context.segments)

        def sent(part: dict[str, Any]) -> list[dict[str, Any]]:
            if part["type"] != "video":
                return [part]
            return video_parts(next(segments), self._server.media, self._clips)

        return [
            {**message, "content": [own for part in message["content"] for own in sent(part)]}
            for message in render(context, self._settings)
        ]
