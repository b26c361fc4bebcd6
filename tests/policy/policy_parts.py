"""Rendered clips in memory, and a policy whose memories a test decides."""

import random
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from taskmem.files import sha256_bytes
from taskmem.policy.grammar import completion_for
from taskmem.policy.protocols import Completion
from taskmem.records import Context, ContextMemory, Segment
from taskmem.world.facts import sample_facts
from taskmem.world.render import SIDE, render_segment

KEPT = (2, 7, 9, 4)


class Films:
    """Segments whose frames are rendered from their stream and index; read them with `frames_of`."""

    def __init__(self) -> None:
        self._frames: dict[str, NDArray[np.uint8]] = {}
        self.read: list[str] = []

    def segment(self, index: int, stream: str = "stream", frames: int = 2, fps: float = 0.2) -> Segment:
        rng = random.Random(f"{stream}-{index}")
        film = render_segment(sample_facts(rng), rng)[list(KEPT[:frames])]
        digest = sha256_bytes(film.tobytes())
        self._frames[digest] = film
        return Segment(
            stream=stream,
            index=index,
            start_s=index * 10.0,
            end_s=index * 10.0 + 10.0,
            source=f"{stream}.mp4",
            clip=f"{stream}/{index:05d}.mp4",
            fps=fps,
            width=SIDE,
            height=SIDE,
            sha256=digest,
        )

    def stream(self, name: str, length: int) -> list[Segment]:
        return [self.segment(index, name) for index in range(length)]

    def context(
        self, *indices: int, stream: str = "stream", memories: Sequence[str] = (), task: str | None = None
    ) -> Context:
        kept = [ContextMemory(index=i, text=text) for i, text in zip(indices, memories, strict=False)]
        return Context(segments=tuple(self.segment(i, stream) for i in indices), memories=tuple(kept), task=task)

    def frames_of(self, segment: Segment) -> NDArray[np.uint8]:
        self.read.append(segment.sha256)
        return self._frames[segment.sha256]


class Scribe:
    """A policy that writes what `say` gives for a context (None: a broken output) and remembers what it was shown."""

    def __init__(self, say: Callable[[Context], str | None], adapter: str = "none") -> None:
        self.digest = "0" * 64
        self.adapter = adapter
        self.shown: list[list[Context]] = []
        self._say = say

    def write(self, contexts: Sequence[Context], n: int, seed: int) -> list[list[Completion]]:
        self.shown.append(list(contexts))
        return [[self._completion(self._say(context))] * n for context in contexts]

    @staticmethod
    def _completion(memory: str | None) -> Completion:
        text = "no tags" if memory is None else completion_for(memory)
        return Completion(
            text=text, tokens=(1, 2), think_tokens=2, memory=memory, memory_tokens=len((memory or "").split())
        )
