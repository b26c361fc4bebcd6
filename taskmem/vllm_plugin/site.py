"""The place after one decoder layer where each token's own vector is added, as vLLM's LoRA machinery sees it."""

from typing import Any, ClassVar

import torch
from torch import nn
from vllm.lora.layers.base import BaseLayerWithLoRA
from vllm.model_executor.models.utils import PPMissingLayer

TARGET = "steer"


class SteerSite(nn.Module):
    """Where the hidden states [tokens, hidden] pass; the identity, without parameters, until vLLM wraps it."""

    # vLLM collects what adapters may target from this attribute of any module
    embedding_modules: ClassVar[dict[str, str]] = {TARGET: ""}

    def __init__(self, like: torch.Tensor) -> None:
        super().__init__()
        self.size, self.dtype, self.device = like.shape[0], like.dtype, like.device

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden states as they are."""
        return hidden


class SteerSiteWithLoRA(BaseLayerWithLoRA):
    """Adds to each token's hidden state the vector of its adapter: a rank-1 LoRA of a linear layer 1 -> hidden."""

    def __init__(self, base_layer: SteerSite) -> None:
        super().__init__()
        self.base_layer = base_layer

    def create_lora_weights(self, max_loras: int, lora_config: Any, model_config: Any = None) -> None:
        """Room for `max_loras` vectors, and the two shapes that vLLM's warm-up reads."""
        site = self.base_layer
        # vLLM marks a token without adapter -1: one more row, the last and always zero, is what it reads
        self.table = torch.zeros(max_loras + 1, site.size, dtype=site.dtype, device=site.device)
        self.lora_a_stacked = (torch.empty(0, 1, 1, 1, dtype=site.dtype),)
        self.lora_b_stacked = (torch.empty(0, 1, site.size, 1, dtype=site.dtype),)

    def reset_lora(self, index: int) -> None:
        """Empty one slot."""
        self.table[index].zero_()

    def set_lora(self, index: int, lora_a: Any, lora_b: Any) -> None:
        """Put lora_b [hidden, 1], the vector, into a slot, cast once from float32; lora_a is one."""
        self.table[index].copy_(lora_b[:, 0].to(self.table.dtype), non_blocking=True)

    def set_mapping(self, punica_wrapper: Any) -> None:
        """Take over the buffer of each token's slot, which vLLM leaves uninitialised."""
        super().set_mapping(punica_wrapper)
        punica_wrapper._token_lora_indices.fill_(-1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden states [tokens, hidden], steered."""
        # the whole buffer cut by the tensor's length: vLLM's own property would compile a constant length into the graph
        slots = self.punica_wrapper._token_lora_indices[: hidden.shape[0]]
        return hidden + self.table[slots]

    @classmethod
    def can_replace_layer(
        cls, source_layer: nn.Module, lora_config: Any, packed_modules_list: list, model_config: Any = None
    ) -> bool:
        """Whether vLLM shall wrap `source_layer` with this class."""
        return type(source_layer) is SteerSite


def _steered(kind: type[nn.Module]) -> type[nn.Module]:
    class Steered(kind):  # type: ignore[misc, valid-type]
        steer: nn.Module

        def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
            # vLLM's layers return the residual stream as two terms; the sum is steered by steering either
            hidden, residual = super().forward(*args, **kwargs)
            return self.steer(hidden), residual

    Steered.__name__ = Steered.__qualname__ = f"Steered{kind.__name__}"
    return Steered


def install(model: Any, layer: int) -> str:
    """Put a site behind decoder layer `layer` (from 0) of vLLM's `model`, in place, before it is compiled; its name.

    ValueError if the model has no such layer. A worker of a pipeline that does not hold the layer stays as it is.
    """
    language: Any = model.get_language_model()
    layers = language.model.layers
    if not 0 <= layer < len(layers):
        raise ValueError(f"steer_layer {layer}: this model has decoder layers 0 to {len(layers) - 1}; choose one")
    steered = layers[layer]
    if not isinstance(steered, PPMissingLayer) and not hasattr(steered, TARGET):
        steered.__class__ = _steered(type(steered))
        steered.steer = SteerSite(steered.input_layernorm.weight)
    prefix = next(name for name, module in model.named_modules() if module is layers)
    return f"{prefix}.{layer}.{TARGET}"
