"""What judges over HTTP are asked about."""

from dataclasses import dataclass
from typing import Any

from taskmem.records import Context, ContextMemory, Question, Segment, Subtitle


@dataclass(frozen=True)
class Written:
    """A candidate."""

    memory: str | None
    memory_tokens: int = 10


def segment_of(index: int, said: str = "") -> Segment:
    spoken = (Subtitle(start_s=index * 10.0, end_s=index * 10.0 + 2, text=said, speaker="<face_1>"),) if said else ()
    return Segment(
        stream="s",
        index=index,
        start_s=index * 10.0,
        end_s=index * 10.0 + 10,
        source="s.mp4",
        clip=f"s/{index}.mp4",
        fps=0.2,
        width=6,
        height=4,
        subtitles=spoken,
        sha256=f"{index:064d}",
    )


def context_of(before: str = "", said: str = "") -> Context:
    """Two segments; `before` was remembered of the first, and `said` is heard in the second."""
    memories = (ContextMemory(index=0, text=before),) if before else ()
    return Context(segments=(segment_of(0), segment_of(1, said)), memories=memories)


def question(text: str, **changes: Any) -> Question:
    fields: dict[str, Any] = {
        "id": "q1",
        "environment": "home",
        "stream": "s",
        "asked_at_s": 100.0,
        "type": "where",
        "text": text,
    }
    return Question(**{**fields, **changes})
