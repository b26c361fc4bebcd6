"""Context to chat messages: the one place that decides what the policy reads.

The checkpoint's own chat template turns the messages into tokens, so that any OpenAI-compatible server renders the same ids.
"""

import re
from collections.abc import Sequence
from typing import Any

from taskmem.config import PolicySettings
from taskmem.records import Context, Question

Message = dict[str, Any]
PROMPT_VERSION = 1
"""Raised when the same context is rendered otherwise: candidates sampled under another version are not used again."""


def clock(seconds: float) -> str:
    """Stream time as mm:ss; minutes run past 59."""
    whole = int(seconds)
    return f"{whole // 60:02d}:{whole % 60:02d}"


_TAG = re.compile(r"<(?!face_[0-9]+>)(?=[|/A-Za-z])")


def plain(text: str) -> str:
    """Text of others on one line, with tags other than <face_N> defused: a tokenizer would read some of them as structure."""
    return _TAG.sub("< ", " ".join(text.split()))


def task_prompt(questions: Sequence[Question], shown: int) -> str:
    """The task-prompt arm's text: the newest questions of the deployment."""
    return " ".join(q.text for q in questions[-shown:])


def _text(text: str) -> Message:
    return {"type": "text", "text": text}


def render(context: Context, settings: PolicySettings) -> list[Message]:
    """Chat messages for a context: one user turn of text parts and one video part per segment (its `clip`).

    The order of videos and preceding memories is `settings.prompt_order`; the instruction comes first, a task prompt next.
    """
    starts = {s.index: s.start_s for s in context.segments}
    head = "\n".join(plain(t) for t in (settings.instruction, context.task) if t)
    memories = [f"[{clock(starts[m.index])}] {plain(m.text)}" for m in context.memories]
    memory_part = _text("memory:\n" + "".join(f"{line}\n" for line in memories))
    videos: list[Message] = []
    for segment in context.segments:
        videos += [_text(f"[{clock(segment.start_s)}]"), {"type": "video", "video": segment.clip}]
    body = [*videos, memory_part] if settings.prompt_order == "video_first" else [memory_part, *videos]
    content = [_text(f"{head}\n"), *body] if head else body
    return [{"role": "user", "content": content}]
