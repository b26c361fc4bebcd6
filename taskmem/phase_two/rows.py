"""Packed rows: a context's prompt once, its completions behind it, several contexts padded into one batch.

The prompt attends to itself causally, and each completion to the prompt and to itself. So attention is two calls: a causal one
without a mask, which the flash kernels take, and one of the few completion tokens against all, with a small mask. No mask of
all tokens against all is ever built.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from taskmem.policy.packing import tail_mask

PACKED = "taskmem_packed"
"""The name under which transformers' attention layers find `packed_attention`."""


@dataclass(frozen=True)
class Layout:
    """What stands where in a batch of packed rows: prompts padded on the right to P, then their completions padded to T.

    `prompt` [B, P] is true on a prompt's tokens; `block` [B, T] numbers each token's completion in its row from 1, 0 is padding;
    `positions` [3, B, P + T] are M-RoPE's; `before` [B, T] is the place in the row that predicts each token.
    """

    prompt: torch.Tensor
    block: torch.Tensor
    positions: torch.Tensor
    before: torch.Tensor

    def to(self, device: torch.device) -> "Layout":
        """The same on another device."""
        return Layout(*(tensor.to(device) for tensor in (self.prompt, self.block, self.positions, self.before)))


@dataclass(frozen=True)
class PackedMask:
    """What `packed_attention` takes in place of a mask: the prompts' padded length P, and `tail` [B, 1, T, P + T]."""

    prompt: int
    tail: torch.Tensor

    @classmethod
    def of(cls, layout: Layout) -> "PackedMask":
        """The mask of a batch."""
        return cls(layout.prompt.shape[1], tail_mask(layout.prompt, layout.block)[:, None])


def lay_out(positions: Sequence[torch.Tensor], lengths: Sequence[Sequence[int]]) -> Layout:
    """The layout of a batch from each prompt's M-RoPE positions [3, P] and its completions' lengths.

    Each completion starts at the position after the prompt's highest, as if it stood behind the prompt alone.
    """
    sizes = [place.shape[1] for place in positions]
    tails = [sum(row) for row in lengths]
    batch, prompt, tail = len(sizes), max(sizes), max(tails)
    shown = torch.arange(prompt)[None] < torch.tensor(sizes)[:, None]
    block = torch.zeros(batch, tail, dtype=torch.long)
    before = torch.zeros(batch, tail, dtype=torch.long)
    places = torch.zeros(3, batch, prompt + tail, dtype=torch.long)
    for row, (place, completions) in enumerate(zip(positions, lengths, strict=True)):
        places[:, row, : sizes[row]] = place
        following = int(place.max()) + 1
        start = 0
        for number, length in enumerate(completions, 1):
            end = start + length
            block[row, start:end] = number
            places[:, row, prompt + start : prompt + end] = torch.arange(following, following + length)
            before[row, start:end] = torch.arange(prompt + start - 1, prompt + end - 1)
            before[row, start] = sizes[row] - 1
            start = end
    return Layout(shown, block, places, before)


def pack(
    prompts: Sequence[torch.Tensor], completions: Sequence[Sequence[torch.Tensor]], layout: Layout
) -> torch.Tensor:
    """Values per token, [P_i, ...] of each prompt and [C, ...] of each of its completions, as one batch [B, P + T, ...]."""
    batch, prompt = layout.prompt.shape
    packed = prompts[0].new_zeros(batch, prompt + layout.block.shape[1], *prompts[0].shape[1:])
    for row, (head, tails) in enumerate(zip(prompts, completions, strict=True)):
        packed[row, : len(head)] = head
        tail = torch.cat(list(tails))
        packed[row, prompt : prompt + len(tail)] = tail
    return packed


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: PackedMask,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of packed rows: query [B, heads, N, d], key and value with the key-value heads; gives [B, N, heads, d]."""
    size = attention_mask.prompt
    prompt = scaled_dot_product_attention(
        query[:, :, :size], key[:, :, :size], value[:, :, :size], is_causal=True, scale=scaling, enable_gqa=True
    )
    if query.is_cuda:  # a mask together with grouped heads leaves only the kernel that builds all scores
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    tail = scaled_dot_product_attention(
        query[:, :, size:], key, value, attn_mask=attention_mask.tail, scale=scaling, enable_gqa=not query.is_cuda
    )
    return torch.cat([prompt, tail], 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(PACKED, packed_attention)
