"""What every policy back end offers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from taskmem.records import Context


@dataclass(frozen=True)
class Completion:
    """One sampled answer: its text without the end-of-turn token, and its token ids with it (where it was reached).

    `adapter` says what wrote it where the server chose that (name@version or none); None: the policy's own.
    """

    text: str
    tokens: tuple[int, ...]
    think_tokens: int
    memory: str | None
    memory_tokens: int
    adapter: str | None = None


class Policy(Protocol):
    """A memorization policy pi(m | q), with or without an adapter."""

    digest: str
    adapter: str

    def write(self, contexts: Sequence[Context], n: int, seed: int) -> list[list[Completion]]:
        """Sample `n` completions for each context.

        A context's completions depend on the context, `n` and `seed`, not on the other contexts' order.
        """
        ...
