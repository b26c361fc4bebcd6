"""Where the preceding memories of a training context come from (METHOD section 3, History).

Off-policy: contexts drawn anywhere, with memories of a strong model. On-policy: each of B slots holds a video, a position and the
policy's own memories; after every step it is extended by one clip or resampled.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskmem.config import HistorySettings
from taskmem.errors import UserError
from taskmem.policy.stream import Streams, window_context
from taskmem.records import Context

StrongMemory = Callable[[str, int], str]


@dataclass
class Slot:
    """One on-policy place: its stream, where its history began and is now (positions in the stream's list of segments).

    `memories` are those it has, by segment index.
    """

    stream: str
    start: int
    position: int
    memories: dict[int, str] = field(default_factory=dict)

    @property
    def consumed(self) -> int:
        """c, the clips consumed so far, the current one included."""
        return self.position - self.start + 1


class History:
    """The contexts of every training step. All draws come from the seed and the step, so a resumed run goes on the same."""

    def __init__(
        self,
        streams: Streams,
        strong: StrongMemory,
        settings: HistorySettings,
        window: int,
        slots: int,
        off_policy_steps: int,
        seed: int,
    ) -> None:
        if not streams:
            raise UserError("phase-one: no segments to learn from; give the segments of at least one stream")
        self._streams = {name: list(streams[name]) for name in sorted(streams)}
        self._strong = strong
        self._settings = settings
        self._window = window
        self._count = slots
        self._off_policy_steps = off_policy_steps
        self._seed = seed
        self.slots: list[Slot] = []

    def contexts(self, step: int) -> list[Context]:
        """One context per slot for this step."""
        if step < self._off_policy_steps:
            return [self._off_policy(*place) for place in self._places(self._rng("off", step))]
        if not self.slots:
            for i in range(self._count):
                self.slots.append(self._resampled(self._rng("first", step, i)))
        return [self._on_policy(slot) for slot in self.slots]

    def advance(self, step: int, valid: Sequence[Sequence[str]]) -> None:
        """Extend or resample every slot after a step; `valid` holds each slot's valid memories among its rollouts."""
        if step < self._off_policy_steps:
            return
        for i, memories in enumerate(valid):
            rng = self._rng("advance", step, i)
            slot = self.slots[i]
            ended = slot.position + 1 >= len(self._streams[slot.stream])
            if ended or not self._extends(slot.consumed, rng):
                self.slots[i] = self._resampled(rng)
                continue
            if memories:
                slot.memories[self._streams[slot.stream][slot.position].index] = rng.choice(list(memories))
            slot.position += 1

    def state(self) -> list[dict[str, Any]]:
        """The slots as JSON, for a checkpoint."""
        return [{**vars(slot), "memories": {str(i): m for i, m in slot.memories.items()}} for slot in self.slots]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Take up the slots of a checkpoint."""
        self.slots = [Slot(**{**s, "memories": {int(i): m for i, m in s["memories"].items()}}) for s in state]

    def _rng(self, *name: object) -> random.Random:
        return random.Random(":".join(map(str, (self._seed, *name))))

    def _extends(self, consumed: int, rng: random.Random) -> bool:
        if consumed < self._settings.n_min:
            return True
        return consumed <= self._settings.n_max and rng.random() < self._settings.extend_probability

    def _places(self, rng: random.Random) -> list[tuple[str, int]]:
        """Different places for all slots, as far as there are so many: equal contexts would give equal rollouts."""
        every = [(name, i) for name, segments in self._streams.items() for i in range(len(segments))]
        if len(every) < self._count:
            return rng.choices(every, k=self._count)
        return rng.sample(every, self._count)

    def _resampled(self, rng: random.Random) -> Slot:
        """A new video, one that no slot holds if there is one, and a start with room for n_min clips if it is long enough."""
        held = {slot.stream for slot in self.slots}
        stream = rng.choice([name for name in self._streams if name not in held] or list(self._streams))
        start = rng.randrange(max(1, len(self._streams[stream]) - self._settings.n_min + 1))
        return Slot(stream, start, start)

    def _on_policy(self, slot: Slot) -> Context:
        window = min(self._window, slot.consumed)
        return window_context(self._streams[slot.stream], slot.memories, slot.position, window)

    def _off_policy(self, stream: str, position: int) -> Context:
        segments = self._streams[stream]
        earlier = segments[max(0, position - self._window + 1) : position]
        memories = {s.index: self._strong(stream, s.index) for s in earlier}
        return window_context(segments, memories, position, self._window)
