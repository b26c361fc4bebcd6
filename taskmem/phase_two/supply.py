"""Where the trunks of a run come from: the cache, and the lower half for what is not in it.

The lower half is loaded only if something is missing, and is gone before the upper half comes.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from taskmem.errors import UserError
from taskmem.files import canonical_json, sha256_bytes
from taskmem.phase_two.cache import TrunkCache, TrunkKey
from taskmem.phase_two.halves import LowerHalf, load_lower
from taskmem.phase_two.trunk import PromptTrunk, Tokens, Trunk, trunks
from taskmem.policy.checkpoint import check_policy
from taskmem.policy.encoding import PromptEncoder
from taskmem.policy.renderer import render
from taskmem.policy.transformers_policy import policy_digest
from taskmem.records import Context


@dataclass(frozen=True)
class Wanted:
    """A context and the completions that are trained on; `also` are computed with them, for others may train on those."""

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
        """The checkpoint as it lies there now; UserError for a folder that holds none."""
        check_policy(path)
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
    """Gives trunks of one policy at one steer layer, from `cache` if there is one, and computes those that are missing.

    `computed` counts the contexts whose trunk was; `make_room` is called before the lower half is loaded. The same context and
    candidates give the same bytes, with a cache or without.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        layer: int,
        encoder: PromptEncoder,
        cache: TrunkCache | None = None,
        dtype: torch.dtype | None = None,
        make_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._checkpoint = checkpoint
        self._layer = layer
        self._encoder = encoder
        self._cache = cache
        self._dtype = dtype
        self._make_room = make_room
        self.computed = 0

    def trunks(self, wanted: Sequence[Wanted]) -> list[Trunk]:
        """The trunk of every context with its completions, in order."""
        found = {i: trunk for i, each in enumerate(wanted) if (trunk := self._cached(each)) is not None}
        missing = [i for i in range(len(wanted)) if i not in found]
        if missing:
            self._make_room()
            lower = load_lower(self._checkpoint.path, self._layer, self._dtype)
            self._checkpoint.check()
            for i in missing:
                found[i] = self._built(lower, wanted[i])
            del lower
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return [found[i] for i in range(len(wanted))]

    def _built(self, lower: LowerHalf, wanted: Wanted) -> Trunk:
        prompt = self._encoder.encode(wanted.context, render(wanted.context, self._encoder.settings))
        # alone and with all its candidates: the bytes must not depend on what else is missing, nor on who asks first
        group = tuple(dict.fromkeys((*wanted.also, *wanted.completions)))
        (built,) = trunks(lower, self._encoder, [prompt], [group])
        self.computed += 1
        return self._kept(wanted, built)

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
        """The trunk of what is trained on; as it is read back from the cache, if there is one, so that it has been checked."""
        if self._cache is None:
            return Trunk(trunk.prompt, {tokens: trunk.completions[tokens] for tokens in wanted.completions})
        key = self._key(wanted)
        prompt = self._cache.put(key(None), vars(trunk.prompt))
        entries = {t: self._cache.put(key(t), {"hidden": hidden}) for t, hidden in trunk.completions.items()}
        return Trunk(PromptTrunk(**prompt), {t: entries[t]["hidden"] for t in wanted.completions})
