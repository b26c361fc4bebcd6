"""Trunk states: what enters the layer after the steer layer, computed once, for everything below the vector is frozen.

A completion's states depend on its prompt, to which it attends below the steer layer too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from taskmem.phase_two.halves import LowerHalf
from taskmem.phase_two.rows import Layout, lay_out, pack
from taskmem.policy.encoding import Prompt, PromptEncoder

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class PromptTrunk:
    """A prompt of P tokens, V of them of videos.

    `hidden` [P, H] is the steer layer's output; `positions` [3, P] are M-RoPE's; `visual` [P] is true on video tokens;
    `deepstack` [D, V, H] has the features that DeepStack adds behind the steer layer and each layer above it, D being 0 for a
    steer layer above all of them.
    """

    hidden: torch.Tensor
    positions: torch.Tensor
    visual: torch.Tensor
    deepstack: torch.Tensor


@dataclass(frozen=True)
class Trunk:
    """A context's prompt, and the states [C, H] of each completion of it that is known."""

    prompt: PromptTrunk
    completions: dict[Tokens, torch.Tensor]


@dataclass(frozen=True)
class PackedRows:
    """A batch of packed rows as a half takes it: values [B, N, ...] per token, DeepStack features [V, H] by layer."""

    hidden: torch.Tensor
    layout: Layout
    visual: torch.Tensor
    deepstack: dict[int, torch.Tensor]


def pack_trunks(
    prompts: Sequence[PromptTrunk], completions: Sequence[Sequence[torch.Tensor]], layer: int, device: torch.device
) -> PackedRows:
    """One batch of the prompts' and their completions' trunk states; `layer` is the steer layer."""
    layout = lay_out([p.positions for p in prompts], [[len(states) for states in row] for row in completions])
    tails = [[torch.zeros(len(states), dtype=torch.bool) for states in row] for row in completions]
    features = [torch.cat(rows) for rows in zip(*(p.deepstack for p in prompts), strict=True)]
    return PackedRows(
        pack([p.hidden for p in prompts], completions, layout).to(device),
        layout.to(device),
        pack([p.visual for p in prompts], tails, layout).to(device),
        {layer + i: of_layer.to(device) for i, of_layer in enumerate(features)},
    )


@torch.no_grad()
def trunks(
    lower: LowerHalf, encoder: PromptEncoder, prompts: Sequence[Prompt], groups: Sequence[Sequence[Tokens]]
) -> list[Trunk]:
    """The trunk of each prompt with the completions of its group, on the CPU; one forward of the lower half.

    ValueError for a prompt without completions, or an empty completion.
    """
    if not all(groups) or not all(tokens for group in groups for tokens in group):
        raise ValueError("trunks: every prompt needs at least one completion, none of them empty")
    device = next(lower.parameters()).device
    layout = lay_out([_positions(lower, encoder, p) for p in prompts], [[len(t) for t in group] for group in groups])
    ids = pack(
        [torch.tensor(p.ids) for p in prompts], [[torch.tensor(t) for t in group] for group in groups], layout
    ).to(device)
    layout = layout.to(device)
    tail = torch.zeros_like(ids, dtype=torch.bool)
    tail[:, layout.prompt.shape[1] :] = True
    # a placeholder inside a completion has no picture to go with it
    ids[tail & torch.isin(ids, torch.tensor(encoder.forbidden_ids, device=device))] = encoder.pad_id
    visual = (ids == encoder.video_id) & ~tail
    embedded, deepstack = _embed(lower, ids, visual, prompts)
    hidden = lower.run(embedded, layout, visual, deepstack)
    above = [features.cpu() for features in deepstack[lower.layer :]]
    return _unpack(hidden.cpu(), layout.to(torch.device("cpu")), visual.cpu(), above, groups)


def _positions(lower: LowerHalf, encoder: PromptEncoder, prompt: Prompt) -> torch.Tensor:
    """M-RoPE positions [3, P] of one prompt."""
    ids = torch.tensor([prompt.ids])
    positions, _ = lower.model.get_rope_index(
        ids,
        mm_token_type_ids=(ids == encoder.video_id).long() * 2,
        video_grid_thw=torch.tensor(prompt.grids) if prompt.grids else None,
    )
    return positions[:, 0]  # type: ignore[no-any-return]


def _embed(
    lower: LowerHalf, ids: torch.Tensor, visual: torch.Tensor, prompts: Sequence[Prompt]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Embeddings [B, N, H] with the videos in place, and DeepStack's features [V, H] of each of its layers."""
    embedded = lower.model.get_input_embeddings()(ids)
    seen = [p for p in prompts if p.grids]
    if not seen:
        return embedded, [embedded.new_zeros(0, embedded.shape[-1])] * len(lower.model.visual.deepstack_visual_indexes)
    pixels = torch.cat([p.pixels for p in seen]).to(ids.device)
    grids = torch.tensor([grid for p in seen for grid in p.grids], device=ids.device)
    videos: Any = lower.model.get_video_features(pixels, grids, return_dict=True)
    embedded[visual] = torch.cat(videos.pooler_output).to(embedded.dtype)
    return embedded, [torch.cat(features) for features in videos.deepstack_features]


def _unpack(
    hidden: torch.Tensor,
    layout: Layout,
    visual: torch.Tensor,
    deepstack: Sequence[torch.Tensor],
    groups: Sequence[Sequence[Tokens]],
) -> list[Trunk]:
    prompt = layout.prompt.shape[1]
    counts = visual.sum(1).tolist()
    parts = zip(*(features.split(counts) for features in deepstack), strict=True) if deepstack else [()] * len(groups)
    found = []
    for row, (group, features) in enumerate(zip(groups, parts, strict=True)):
        size = int(layout.prompt[row].sum())
        tails = hidden[row, prompt:].split([len(t) for t in group] + [_padding(layout, row)])
        of_prompt = PromptTrunk(
            hidden[row, :size].clone(),
            layout.positions[:, row, :size].clone(),
            visual[row, :size].clone(),
            torch.stack(features) if features else hidden.new_zeros(0, counts[row], hidden.shape[-1]),
        )
        found.append(Trunk(of_prompt, {tokens: tail.clone() for tokens, tail in zip(group, tails, strict=False)}))
    return found


def _padding(layout: Layout, row: int) -> int:
    return int((layout.block[row] == 0).sum())
