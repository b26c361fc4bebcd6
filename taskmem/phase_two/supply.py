"""Where the trunks of a run come from: the cache, and the lower half for what is not in it.

The lower half is loaded only if something is missing, and is gone before the upper half comes.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from taskmem.errors import UserError
from taskmem.files import canonical_json, sha256_bytes
from taskmem.phase_two.cache import TrunkCache, TrunkKey
from taskmem.phase_two.halves import LowerHalf, load_lower
from taskmem.phase_two.trunk import PromptTrunk, Tokens, Trunk, trunks
from taskmem.policy.encoding import Prompt, PromptEncoder
from taskmem.policy.renderer import render
from taskmem.policy.transformers_policy import policy_digest
from taskmem.records import Context

TOKENS_AT_ONCE = 16384
"""Tokens of a forward of the lower half, padding included; a single context may be longer."""


@dataclass(frozen=True)
class Wanted:
    """A context and the completions that are trained on; `also` are worth caching with them, for others may train on those."""

    context: Context
    completions: tuple[Tokens, ...]
    also: tuple[Tokens, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A policy's folder and digest, and what its files looked like before the digest was taken."""

    path: Path
    digest: str
    _seen: tuple[tuple[str, int, int, int], ...] = field(repr=False)

    @classmethod
    def of(cls, path: Path) -> "Checkpoint":
        """The checkpoint as it lies there now."""
        seen = _files(path)
        return cls(path, policy_digest(path), seen)

    def check(self) -> None:
        """UserError if a file was touched since: what was read may not be what the digest says."""
        if _files(self.path) != self._seen:
            raise UserError(f"{self.path}: the policy changed while it was being used; run again when it is whole")


def _files(path: Path) -> tuple[tuple[str, int, int, int], ...]:
    stats = [(file.relative_to(path).as_posix(), file.stat()) for file in sorted(path.rglob("*")) if file.is_file()]
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats)


class TrunkSupply:
    """Gives trunks of one policy at one steer layer, from memory or from `cache`, and builds those that are missing."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        layer: int,
        encoder: PromptEncoder,
        cache: TrunkCache | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._layer = layer
        self._encoder = encoder
        self._cache = cache
        self._dtype = dtype

    def trunks(self, wanted: Sequence[Wanted]) -> list[Trunk]:
        """The trunk of every context with its completions, in order."""
        found = {i: trunk for i, each in enumerate(wanted) if (trunk := self._cached(each)) is not None}
        missing = [i for i in range(len(wanted)) if i not in found]
        if missing:
            lower = load_lower(self._checkpoint.path, self._layer, self._dtype)
            self._checkpoint.check()
            for numbers, built in self._built(lower, wanted, missing):
                found.update(zip(numbers, built, strict=True))
            del lower
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return [found[i] for i in range(len(wanted))]

    def _built(
        self, lower: LowerHalf, wanted: Sequence[Wanted], missing: Sequence[int]
    ) -> Iterator[tuple[list[int], list[Trunk]]]:
        def groups(numbers: Sequence[int]) -> list[tuple[Tokens, ...]]:
            return [self._group(wanted[i]) for i in numbers]

        def build(numbers: list[int], prompts: list[Prompt]) -> tuple[list[int], list[Trunk]]:
            built = trunks(lower, self._encoder, prompts, groups(numbers))
            return numbers, [self._kept(wanted[i], trunk) for i, trunk in zip(numbers, built, strict=True)]

        numbers: list[int] = []
        prompts: list[Prompt] = []
        longest = 0
        for i in missing:
            context = wanted[i].context
            prompt = self._encoder.encode(context, render(context, self._encoder.settings))
            length = len(prompt.ids) + sum(map(len, self._group(wanted[i])))
            if numbers and max(longest, length) * (len(numbers) + 1) > TOKENS_AT_ONCE:
                yield build(numbers, prompts)
                numbers, prompts, longest = [], [], 0
            numbers, prompts, longest = [*numbers, i], [*prompts, prompt], max(longest, length)
            if self._cache:  # alone, for an entry's bytes must not depend on what else happened to be missing
                yield build(numbers, prompts)
                numbers, prompts, longest = [], [], 0
        if numbers:
            yield build(numbers, prompts)

    def _group(self, wanted: Wanted) -> tuple[Tokens, ...]:
        # the same order whatever is wanted of them, again for the sake of the bytes
        others = wanted.also if self._cache else ()
        return tuple(dict.fromkeys((*others, *wanted.completions)))

    def _key(self, wanted: Wanted) -> Callable[[Tokens | None], TrunkKey]:
        clips = [[segment.sha256, segment.fps] for segment in wanted.context.segments]
        read = canonical_json([clips, render(wanted.context, self._encoder.settings)])
        name = "saved" if self._dtype is None else str(self._dtype)

        def key(tokens: Tokens | None) -> TrunkKey:
            candidate = None if tokens is None else sha256_bytes(canonical_json(tokens))
            return TrunkKey(self._checkpoint.digest, self._layer, name, sha256_bytes(read), candidate)

        return key

    def _cached(self, wanted: Wanted) -> Trunk | None:
        if self._cache is None:
            return None
        key = self._key(wanted)
        prompt = self._cache.get(key(None))
        completions = {tokens: self._cache.get(key(tokens)) for tokens in wanted.completions}
        if prompt is None or any(entry is None for entry in completions.values()):
            return None
        states = {tokens: entry["hidden"] for tokens, entry in completions.items() if entry is not None}
        return Trunk(PromptTrunk(**prompt), states)

    def _kept(self, wanted: Wanted, trunk: Trunk) -> Trunk:
        """The trunk as it is read back, so that what is trained on has been checked; without a cache, itself."""
        if self._cache is None:
            return trunk
        key = self._key(wanted)
        prompt = self._cache.put(key(None), vars(trunk.prompt))
        entries = {t: self._cache.put(key(t), {"hidden": hidden}) for t, hidden in trunk.completions.items()}
        return Trunk(PromptTrunk(**prompt), {t: entries[t]["hidden"] for t in wanted.completions})
