"""The decoder layer with steer vectors behind it."""

from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


class SteerVectors(nn.ParameterDict):
    """Adapter name -> vector, float32 of shape [hidden], also in a model that is cast to another dtype."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "SteerVectors":
        def move_only(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        # Small updates vanish in bf16, so `.to(dtype=...)`, `.half()` and the like move a vector but never cast it.
        super()._apply(move_only, recurse)
        return self


class SteerLayer(nn.Module, BaseTunerLayer):
    """A decoder layer whose output gets the sum of the active vectors added: h <- h + a (METHOD section 4, step 5).

    Takes and returns what the decoder layer does: hidden states [..., hidden], or a tuple that starts with them. The
    vectors are summed in float32 and cast once to the hidden states' dtype, so a bf16 model adds in bf16. Public
    attributes of the decoder layer are reachable here. `output_hidden_states` records the decoder layer's own output,
    before the addition; hook this module for the steered one.
    """

    adapter_layer_names = ("steer_vector",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, size: int, inference_mode: bool = False) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.steer_vector = SteerVectors()
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, size, inference_mode)

    def update_layer(self, adapter_name: str, size: int, inference_mode: bool = False) -> None:
        """Add the vector of one more adapter, zero, on the decoder layer's device."""
        device = next(self.base_layer.parameters()).device
        self.steer_vector[adapter_name] = nn.Parameter(torch.empty(size, dtype=torch.float32, device=device))
        self.reset_parameters(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def reset_parameters(self, adapter_name: str) -> None:
        """Set one vector to zero, where every adaptation starts: the model is the base model there."""
        nn.init.zeros_(self.steer_vector[adapter_name])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The decoder layer's output with the active vectors added."""
        output = self.base_layer(*args, **kwargs)
        vectors = [self.steer_vector[name] for name in self.active_adapters if name in self.steer_vector]
        if self.disable_adapters or not vectors:
            return output
        total = sum(vectors[1:], start=vectors[0])
        if isinstance(output, tuple):
            return (output[0] + total.to(output[0]), *output[1:])
        return output + total.to(output)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """ValueError, always: a decoder layer has no bias behind its residual sum to take the vector up."""
        raise ValueError(
            "a steer vector cannot be merged, no weight adds to a decoder layer's output; use unload() instead"
        )

    def unmerge(self) -> None:
        """Nothing: a steer vector is never merged."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Private names stay apart: accelerate marks a module it has hooked with one, and this is another module.
            if name.startswith("_") or name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT reads the device from `.weight`, which a decoder layer lacks, and would cast to its dtype.
        vector = self.steer_vector.get(adapter_name)
        target = device or next(self.base_layer.parameters()).device
        if vector is not None and not vector.is_meta and vector.device != target:
            self.steer_vector[adapter_name] = nn.Parameter(vector.detach().to(target), vector.requires_grad)
