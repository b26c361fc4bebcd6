"""Contexts to model inputs, through the checkpoint's own chat template and processor."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.video_utils import VideoMetadata

from taskmem.config import PolicySettings
from taskmem.records import Context, Segment
from taskmem.video.frames import Frames, FramesOf

_VIDEO = 2  # transformers' token type of video placeholders


@dataclass(frozen=True)
class ClipFeatures:
    """One clip as the model takes it: `pixels` [patches, patch size], `grid` (t, h, w), `text` in place of its placeholder."""

    pixels: torch.Tensor
    grid: tuple[int, int, int]
    text: str


@dataclass(frozen=True)
class Prompt:
    """A tokenised context: `ids` [P], and the patches and grids of its clips in order."""

    ids: tuple[int, ...]
    pixels: torch.Tensor
    grids: tuple[tuple[int, int, int], ...]


class PromptEncoder:
    """Encodes contexts; every clip goes through the processor once and is kept, least recently used out first.

    `processor` is the checkpoint's (Qwen3VLProcessor or alike); `frames_of` gives a segment's frames, uint8 [T, H, W, 3].
    """

    def __init__(self, processor: Any, settings: PolicySettings, frames_of: FramesOf, kept_clips: int = 4096) -> None:
        self.tokenizer = processor.tokenizer
        self.settings = settings
        self._processor = processor
        self._frames_of = frames_of
        self._kept: OrderedDict[tuple[str, float], ClipFeatures] = OrderedDict()
        self._kept_clips = kept_clips
        self.video_id: int = processor.video_token_id
        self.pad_id: int = self.tokenizer.pad_token_id
        self.end_id: int = self.tokenizer.eos_token_id
        # a completion that held one would have no picture to go with it
        self.forbidden_ids: tuple[int, ...] = (processor.video_token_id, processor.image_token_id)

    def read_with(self, frames_of: FramesOf) -> None:
        """Read clips from another place from now on; those kept stay, for they are kept by content."""
        self._frames_of = frames_of

    def clip(self, segment: Segment) -> ClipFeatures:
        """The clip's features, from the cache if it was seen."""
        key = (segment.sha256, segment.fps)
        features = self._kept.pop(key, None) or self._process(self._frames_of(segment), segment.fps)
        self._kept[key] = features
        if len(self._kept) > self._kept_clips:
            self._kept.popitem(last=False)
        return features

    def _process(self, frames: Frames, fps: float) -> ClipFeatures:
        # a last, short segment may have fewer frames than one temporal patch
        missing = max(0, self._processor.video_processor.temporal_patch_size - len(frames))
        frames = np.concatenate([frames, np.repeat(frames[-1:], missing, 0)])
        metadata = VideoMetadata(total_num_frames=len(frames), fps=fps, frames_indices=list(range(len(frames))))
        out = self._processor.video_processor(
            videos=[frames],
            video_metadata=[metadata],
            do_sample_frames=False,
            return_metadata=True,
            return_tensors="pt",
        )
        t, h, w = out["video_grid_thw"][0].tolist()
        return ClipFeatures(
            out["pixel_values_videos"], (t, h, w), self._processor.replace_video_token(out, video_idx=0)
        )

    def encode(self, context: Context, messages: list[dict[str, Any]]) -> Prompt:
        """Tokenise `messages` rendered from `context`; the same ids as the processor gives for the whole prompt."""
        text = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        pieces = text.split(self._processor.video_token)
        clips = [self.clip(segment) for segment in context.segments]
        if len(pieces) != len(clips) + 1:
            raise ValueError(f"the chat template wrote {len(pieces) - 1} video placeholders for {len(clips)} clips")
        filled = pieces[0] + "".join(clip.text + piece for clip, piece in zip(clips, pieces[1:], strict=True))
        ids = self.tokenizer(filled, add_special_tokens=False).input_ids
        return Prompt(tuple(ids), torch.cat([c.pixels for c in clips]), tuple(c.grid for c in clips))

    def completion_ids(self, text: str) -> tuple[int, ...]:
        """Ids of a completion's text with the end-of-turn token."""
        return (*self.tokenizer(text, add_special_tokens=False).input_ids, self.end_id)

    def batch(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]] | None = None, side: str = "left"
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Pad prompts (and completions behind them) into model inputs and labels, both [B, L]; labels are -100 on prompts."""
        tails: Sequence[Sequence[int]] = completions if completions is not None else [()] * len(prompts)
        rows = [[*p.ids, *tail] for p, tail in zip(prompts, tails, strict=True)]
        labels = [[-100] * len(p.ids) + list(tail) for p, tail in zip(prompts, tails, strict=True)]
        ids = _pad(rows, self.pad_id, side)
        inputs = {
            "input_ids": ids,
            "attention_mask": _pad([[1] * len(row) for row in rows], 0, side),
            "mm_token_type_ids": (ids == self.video_id).long() * _VIDEO,
            "pixel_values_videos": torch.cat([p.pixels for p in prompts]),
            "video_grid_thw": torch.tensor([grid for p in prompts for grid in p.grids]),
        }
        return inputs, _pad(labels, -100, side)


def _pad(rows: Sequence[Sequence[int]], value: int, side: str) -> torch.Tensor:
    length = max(len(row) for row in rows)
    fill = [[value] * (length - len(row)) for row in rows]
    padded = [[*f, *r] if side == "left" else [*r, *f] for f, r in zip(fill, rows, strict=True)]
    return torch.tensor(padded)
