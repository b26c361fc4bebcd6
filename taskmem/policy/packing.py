"""Groups of completions behind one prompt: sampled from one prefill, scored in one packed row.

A packed row is the prompt once and then every completion of the group; a block mask lets each completion see the prompt and
itself only, and each starts at the prompt's next position. The result equals scoring them one row each, up to rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad

from taskmem.policy.draw import Drawing, Draws
from taskmem.policy.encoding import Prompt, PromptEncoder


@dataclass(frozen=True)
class Packed:
    """Log-probabilities and entropies of each completion's tokens, zero where `mask` is false; all [B, G, C]."""

    logps: torch.Tensor
    entropies: torch.Tensor
    mask: torch.Tensor


@torch.no_grad()
def sample_groups(
    model: Any,
    encoder: PromptEncoder,
    prompts: Sequence[Prompt],
    n: int,
    seeds: Sequence[int],
    finished: Callable[[bool], bool] = bool,
) -> list[list[tuple[int, ...]]]:
    """`n` completions for each prompt (token ids, the end-of-turn token included where reached), one seed per prompt.

    The prompt is prefilled once and its cache repeated. `model` is a Qwen3VLMoeForConditionalGeneration, steered or not.
    `finished` is told at every token whether all rows have ended and says whether to stop: processes that share a sharded
    model stop together.
    """
    inputs, _ = encoder.batch(prompts)
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    out = model.model(**inputs, use_cache=True)
    cache = out.past_key_values
    cache.batch_repeat_interleave(n)
    mask = inputs["attention_mask"].repeat_interleave(n, 0)
    position = mask.sum(1, keepdim=True) + model.model.rope_deltas.repeat_interleave(n, 0)
    draw = Draws(Drawing(encoder.settings.sampling, encoder.forbidden_ids), seeds, n)
    logits = model.lm_head(out.last_hidden_state[:, -1]).repeat_interleave(n, 0)
    done = torch.zeros(len(mask), dtype=torch.bool, device=model.device)
    drawn: list[torch.Tensor] = []
    for step in range(encoder.settings.max_completion_tokens):
        token = draw(logits).masked_fill(done, encoder.pad_id)
        drawn.append(token)
        done |= token == encoder.end_id
        if finished(bool(done.all())) or step + 1 == encoder.settings.max_completion_tokens:
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        hidden = model.model.language_model(
            inputs_embeds=model.get_input_embeddings()(token[:, None]),
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            position_ids=(position + step).expand(3, -1, -1),
        )
        logits = model.lm_head(hidden.last_hidden_state[:, -1])
    rows = [tuple(_until_end(row, encoder.end_id)) for row in torch.stack(drawn, 1).tolist()]
    return [rows[i * n : (i + 1) * n] for i in range(len(prompts))]


def _until_end(row: list[int], end: int) -> list[int]:
    return row[: row.index(end) + 1] if end in row else row


def score_groups(
    model: Any,
    encoder: PromptEncoder,
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Sequence[int]]],
    temperature: float = 1.0,
) -> Packed:
    """Log-probabilities of every completion of every group given its prompt, one packed row a prompt.

    All groups have the same number of completions. Logits are divided by `temperature`. Differentiable, entropies aside.
    """
    inputs, _ = encoder.batch(prompts)
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    completions, kept = _stack(groups, encoder.pad_id, model.device)
    batch, group, length = completions.shape
    # a placeholder inside a completion has no picture to go with it
    placeholder = torch.isin(completions, torch.tensor(encoder.forbidden_ids, device=model.device))
    shown = completions.masked_fill(placeholder, encoder.pad_id)
    prompt_length = inputs["input_ids"].shape[1]
    hidden = model.model(
        input_ids=torch.cat([inputs["input_ids"], shown.view(batch, -1)], 1),
        attention_mask=_additive(_block_mask(inputs["attention_mask"], kept)[:, None], model.dtype),
        position_ids=_positions(model, inputs, group, length),
        pixel_values_videos=inputs["pixel_values_videos"],
        video_grid_thw=inputs["video_grid_thw"],
        use_cache=False,
    ).last_hidden_state
    # a completion's first token is predicted from the prompt's last position, the others from the token before
    starts = prompt_length + torch.arange(group, device=model.device) * length
    before = starts[:, None] + torch.arange(length, device=model.device) - 1
    before[:, 0] = prompt_length - 1
    every = (model.lm_head(hidden[:, before.reshape(-1)]).float() / temperature).log_softmax(-1)
    logps = every.gather(2, completions.view(batch, -1, 1)).view(batch, group, length)
    with torch.no_grad():
        entropies = -(every.exp() * every).sum(-1).view(batch, group, length)
    return Packed(logps * kept, entropies * kept, kept)


def _stack(
    groups: Sequence[Sequence[Sequence[int]]], pad: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    if len({len(group) for group in groups}) != 1 or not all(tokens for group in groups for tokens in group):
        raise ValueError("score_groups: every group needs the same number of completions, none of them empty")
    length = max(len(tokens) for group in groups for tokens in group)
    ids = [[[*tokens, *[pad] * (length - len(tokens))] for tokens in group] for group in groups]
    kept = [[[i < len(tokens) for i in range(length)] for tokens in group] for group in groups]
    return torch.tensor(ids, device=device), torch.tensor(kept, device=device)


def _positions(model: Any, inputs: dict[str, torch.Tensor], group: int, length: int) -> torch.Tensor:
    """M-RoPE positions [3, B, P + G * C]: each completion continues where its prompt ends."""
    of_prompt, delta = model.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        video_grid_thw=inputs["video_grid_thw"],
        attention_mask=inputs["attention_mask"],
    )
    following = inputs["attention_mask"].sum(1, keepdim=True) + delta
    of_completions = (following + torch.arange(length, device=following.device)).repeat(1, group)
    return torch.cat([of_prompt, of_completions.expand(3, -1, -1)], 2)


def _additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask every attention implementation reads alike: 0 where a query may look, the lowest number elsewhere."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


def _block_mask(prompt_mask: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Boolean [B, N, N], true where a query may look: causal, inside the prompt and the query's own completion."""
    batch, group, length = kept.shape
    prompt = prompt_mask.bool()
    block = kept * torch.arange(1, group + 1, device=kept.device)[:, None]
    causal = prompt.new_ones(prompt.shape[1], prompt.shape[1]).tril()
    # padding rows look at themselves, for a row that sees nothing is NaN
    of_prompt = (causal & prompt[:, None, :]) | torch.eye(len(causal), dtype=torch.bool, device=kept.device)
    return torch.cat([pad(of_prompt, (0, group * length)), tail_mask(prompt, block.view(batch, -1))], 1)


def tail_mask(prompt: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """Where the tokens behind the prompts [B, P] may look, boolean [B, T, P + T]: at their prompt and their own completion.

    `prompt` is true where a prompt has a token; `block` [B, T] numbers each token's completion from 1, and is 0 on padding,
    which sees itself alone.
    """
    length = block.shape[1]
    causal = prompt.new_ones(length, length).tril()
    own = causal & (block[:, None, :] == block[:, :, None]) & (block > 0)[:, None, :]
    of_prompt = prompt[:, None, :] & (block > 0)[:, :, None]
    return torch.cat([of_prompt, own | torch.eye(length, dtype=torch.bool, device=block.device)], 2)
