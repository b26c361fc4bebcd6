"""The two halves of a policy around its steer layer, each loaded alone, straight from the checkpoint's shards.

The whole model exists on the meta device only, where it takes no memory. A half takes its modules from there, and only their
tensors are read; a shard that holds none of them is not opened.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from taskmem.errors import UserError
from taskmem.phase_two.rows import PACKED, Layout, PackedMask
from taskmem.policy.checkpoint import check_policy, reading
from taskmem.records import one_line, read_json

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
H = TypeVar("H", bound=nn.Module)
_LANGUAGE = "model.language_model"
_EMBEDDING, _HEAD = f"{_LANGUAGE}.embed_tokens.weight", "lm_head.weight"


def meta_policy(path: Path) -> Any:
    """The checkpoint's model without a single weight in memory; UserError if the folder is no checkpoint of a policy."""
    check_policy(path)
    with reading(path), torch.device("meta"):
        config = Qwen3VLMoeConfig.from_pretrained(path, local_files_only=True)
        return Qwen3VLMoeForConditionalGeneration(config).eval().requires_grad_(False)


class LowerHalf(nn.Module):
    """Vision tower, embeddings and decoder layers 0 to `layer`, the steer layer itself included."""

    def __init__(self, whole: Any, layer: int) -> None:
        super().__init__()
        self.model = whole.model
        self.model.language_model.layers = self.model.language_model.layers[: layer + 1]
        self.model.language_model.norm = nn.Identity()
        self.layer = layer

    def run(self, hidden: torch.Tensor, layout: Layout, visual: torch.Tensor, deepstack: Sequence[torch.Tensor]) -> Any:
        """Embeddings [B, N, H] to the steer layer's output, before its own DeepStack features are added."""
        layers = list(enumerate(self.model.language_model.layers))
        between = {i: features for i, features in enumerate(deepstack) if i < self.layer}
        return _run(layers, self.model.language_model.rotary_emb, hidden, layout, visual, between)


class UpperHalf(nn.Module):
    """Decoder layers above `layer`, the final norm and the head."""

    def __init__(self, whole: Any, layer: int) -> None:
        super().__init__()
        self.first = layer + 1
        # the numbers keep each layer's name as it is in the checkpoint
        layers = list(enumerate(whole.model.language_model.layers))[self.first :]
        self.layers = nn.ModuleDict({str(number): module for number, module in layers})
        self.norm = whole.model.language_model.norm
        self.rotary = whole.model.language_model.rotary_emb
        self.head = whole.lm_head

    def run(
        self, hidden: torch.Tensor, layout: Layout, visual: torch.Tensor, deepstack: Mapping[int, torch.Tensor]
    ) -> torch.Tensor:
        """Steered trunk states [B, N, H] to the head's inputs.

        `deepstack` has the features [V, H] that are added behind each layer from the steer layer on, if there are any left.
        """
        if self.first - 1 in deepstack:
            hidden = _add_visual(hidden, visual, deepstack[self.first - 1])
        layers = [(int(number), layer) for number, layer in self.layers.items()]
        return self.norm(_run(layers, self.rotary, hidden, layout, visual, deepstack))  # type: ignore[no-any-return]


def _run(
    layers: Sequence[tuple[int, Any]],
    rotary: Any,
    hidden: torch.Tensor,
    layout: Layout,
    visual: torch.Tensor,
    deepstack: Mapping[int, torch.Tensor],
) -> torch.Tensor:
    mask, embedded = PackedMask.of(layout), rotary(hidden, layout.positions)
    for number, layer in layers:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=embedded)
        if number in deepstack:
            hidden = _add_visual(hidden, visual, deepstack[number])
    return hidden


def _add_visual(hidden: torch.Tensor, visual: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    added = torch.zeros_like(hidden)
    added[visual] = features.to(hidden.dtype)
    return hidden + added


def load_lower(path: Path, layer: int, dtype: torch.dtype | None = None) -> LowerHalf:
    """The lower half of a checkpoint, on the accelerator if there is one; see `load_upper`."""
    whole = _checked(path, layer)
    half = LowerHalf(whole, layer)
    names = {f"model.{name}": parameter for name, parameter in half.model.named_parameters()}
    return _loaded(half, path, whole, names, dtype)


def load_upper(path: Path, layer: int, dtype: torch.dtype | None = None) -> UpperHalf:
    """The upper half of a checkpoint, on the accelerator if there is one.

    `dtype` is that of the weights, by default the saved one. UserError if the model has no decoder layer `layer`, or the
    checkpoint is not whole.
    """
    whole = _checked(path, layer)
    half = UpperHalf(whole, layer)
    places = {"layers": f"{_LANGUAGE}.layers", "norm": f"{_LANGUAGE}.norm", "head": "lm_head"}
    names = {
        f"{places[name.split('.')[0]]}.{name.split('.', 1)[1]}": parameter
        for name, parameter in half.named_parameters()
    }
    return _loaded(half, path, whole, names, dtype)


def _checked(path: Path, layer: int) -> Any:
    whole = meta_policy(path)
    layers = whole.config.text_config.num_hidden_layers
    if not 0 <= layer < layers:
        raise UserError(
            f"{path}: has decoder layers 0 to {layers - 1}, phase_two.layer is {layer}; set it to one of them"
        )
    return whole


def _loaded(half: H, path: Path, whole: Any, names: Mapping[str, nn.Parameter], dtype: torch.dtype | None) -> H:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = dtype or whole.config.dtype or torch.get_default_dtype()
    whole.model.language_model.config._attn_implementation = PACKED
    if kind == torch.float64:
        whole.set_experts_implementation("eager")  # the grouped kernels refuse float64
    owners = {id(p): (module, name) for module in half.modules() for name, p in module.named_parameters(recurse=False)}
    for key, tensor in _read(path, list(names), whole.config.tie_word_embeddings):
        module, name = owners[id(names[key])]
        # a copy, for what safetensors gives is the file itself, mapped into memory
        value = _oriented(tensor, names[key], f"{path}: {key}").to(device=device, dtype=kind, copy=True)
        setattr(module, name, nn.Parameter(value, requires_grad=False))
    _real_rotary(half, device)
    return half.eval()


def _read(path: Path, keys: Sequence[str], tied: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of `keys`, shard by shard."""
    index = path / _INDEX
    known = read_json(index).get("weight_map", {}) if index.is_file() else None
    try:
        with ExitStack() as stack:
            if known is None:
                single = stack.enter_context(safe_open(path / _SINGLE, framework="pt"))
                known = dict.fromkeys(single.keys(), _SINGLE)
            stored = {key: _EMBEDDING if tied and key == _HEAD and key not in known else key for key in keys}
            if missing := sorted(set(stored.values()) - set(known)):
                raise UserError(
                    f"{path}: {len(missing)} weights are missing, first {missing[0]}; copy the checkpoint again"
                )
            for shard in sorted({known[name] for name in stored.values()}):
                with safe_open(path / shard, framework="pt") as file:
                    for key, name in stored.items():
                        if known[name] == shard:
                            yield key, file.get_tensor(name)
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be loaded ({one_line(str(error))}); copy the checkpoint again") from None


def _oriented(tensor: torch.Tensor, wanted: torch.Tensor, where: str) -> torch.Tensor:
    # published checkpoints hold the experts' matrices transposed, [experts, in, out]
    if tensor.shape != wanted.shape and tensor.dim() == 3:
        tensor = tensor.transpose(1, 2)
    if tensor.shape != wanted.shape:
        raise UserError(
            f"{where}: has shape {tuple(tensor.shape)}, not {tuple(wanted.shape)}; copy the checkpoint again"
        )
    return tensor.contiguous()


def _real_rotary(half: nn.Module, device: torch.device) -> None:
    """Rotary frequencies are computed, not saved: build those modules again off the meta device."""
    for parent in list(half.modules()):
        for name, child in list(parent.named_children()):
            if any(buffer.is_meta for buffer in child.buffers(recurse=False)):
                setattr(parent, name, type(child)(child.config).to(device))
    if left := [name for name, tensor in half.state_dict(keep_vars=True).items() if tensor.is_meta]:
        raise RuntimeError(f"{type(half).__name__}: {left[0]} was never loaded")
