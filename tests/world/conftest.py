"""Contexts, memories and truths of the rendered world, without pixels."""

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from taskmem.records import Context, ContextMemory, Memory, Segment
from taskmem.world.judges import Truth, WorldTruth

ContextOf = Callable[..., Context]
MemoryOf = Callable[[int, str | None], Memory]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def _segment(index: int) -> Segment:
    return Segment(
        stream="s",
        index=index,
        start_s=index * 10.0,
        end_s=index * 10.0 + 10,
        source="s.mp4",
        clip=f"s/{index}.mp4",
        fps=0.2,
        width=64,
        height=64,
        sha256=f"{index:064d}",
    )


@pytest.fixture
def facts() -> dict[str, str]:
    """What is true of every segment of stream s, unless a test says otherwise."""
    return {"figure": "red", "room": "kitchen", "object": "cup", "door": "opens", "lamps": "two"}


@pytest.fixture
def truth(facts: Mapping[str, str]) -> WorldTruth:
    return WorldTruth([Truth(stream="s", index=i, facts=dict(facts)) for i in range(4)])


@pytest.fixture
def context_of() -> ContextOf:
    """A window whose current segment has as many segments before it as there are preceding memories."""

    def build(preceding: Sequence[str] = ()) -> Context:
        segments = tuple(_segment(i) for i in range(len(preceding) + 1))
        memories = tuple(ContextMemory(index=i, text=text) for i, text in enumerate(preceding))
        return Context(segments=segments, memories=memories)

    return build


@pytest.fixture
def memory_of() -> MemoryOf:
    def build(index: int, text: str | None) -> Memory:
        return Memory(
            stream="s",
            index=index,
            start_s=index * 10.0,
            end_s=index * 10.0 + 10,
            text=text,
            think_tokens=0,
            memory_tokens=5,
            policy="0" * 64,
        )

    return build
