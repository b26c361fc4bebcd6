"""Floating-point operations of the policy, counted from its sizes: two a multiply-add, matrix products only.

A backward pass through frozen weights makes the gradient of what went in alone, one product for each of the forward's; that of
attention makes two for each. What a kernel computes again, and norms, softmax, rotary embedding and routing, count nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Rows:
    """Tokens of some rows, and how many pairs of a token and one that it looks at they have."""

    tokens: int
    seen: int

    @classmethod
    def packed(cls, prompt: int, completions: Sequence[int]) -> Self:
        """One row: a prompt and its completions, each of which sees the prompt and itself, causally."""
        seen = _causal(prompt) + sum(prompt * length + _causal(length) for length in completions)
        return cls(prompt + sum(completions), seen)

    def times(self, count: int) -> "Rows":
        """So many rows like this."""
        return Rows(count * self.tokens, count * self.seen)


def _causal(length: int) -> int:
    return length * (length + 1) // 2


@dataclass(frozen=True)
class Decoder:
    """The sizes of one decoder layer and the head; `chosen` of the experts take each token."""

    hidden: int
    heads: int
    key_value_heads: int
    head_size: int
    experts: int
    chosen: int
    expert_size: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Self:
        """Those of a Qwen3VLMoeTextConfig."""
        return cls(
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.num_experts,
            config.num_experts_per_tok,
            config.moe_intermediate_size,
            config.vocab_size,
        )

    def _products(self, tokens: int) -> int:
        projections = 2 * self.hidden * self.head_size * (self.heads + self.key_value_heads)
        router = self.hidden * self.experts
        mixture = 3 * self.chosen * self.hidden * self.expert_size
        return 2 * tokens * (projections + router + mixture)

    def _attention(self, seen: int) -> int:
        return 4 * seen * self.heads * self.head_size

    def forward(self, layers: int, rows: Rows) -> int:
        """Through so many layers."""
        return layers * (self._products(rows.tokens) + self._attention(rows.seen))

    def backward(self, layers: int, rows: Rows) -> int:
        """Back through so many frozen layers."""
        return layers * (self._products(rows.tokens) + 2 * self._attention(rows.seen))

    def head(self, tokens: int) -> int:
        """The logits of so many tokens; their backward is as much again."""
        return 2 * tokens * self.hidden * self.vocabulary


def vision(config: Any, patches: int, of_frame: int) -> int:
    """The vision tower's blocks over `patches`, which see those of their frame, `of_frame` many."""
    products = 2 * patches * (4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size)
    return config.depth * (products + 4 * patches * of_frame * config.hidden_size)  # type: ignore[no-any-return]
