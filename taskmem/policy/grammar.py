"""The output grammar, over prompt and completion: reasoning, one closing </think>, one JSON object {"description": ...}.

The chat template opens <think> in the prompt, so a completion holds the closing tag alone (METHOD section 1).
"""

import json
import re
from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<think>", "</think>"
_SPECIAL = re.compile(r"<\|[^|>]*\|>")
_FACE_LIKE = re.compile(r"<[^<>]*face[^<>]*>|\bface_\w*", re.IGNORECASE)
_FACE = re.compile(r"<face_[0-9]+>")


@dataclass(frozen=True)
class Output:
    """A parsed completion. `memory` is None where the grammar is broken; `violation` then says how."""

    thinking: str
    memory: str | None
    violation: str | None = None


def _single_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key comes twice")
    return dict(pairs)


def _memory_or_violation(answer: str) -> tuple[str | None, str | None]:
    try:
        value = json.loads(answer, object_pairs_hook=_single_keys)
    except (ValueError, RecursionError) as error:
        return None, f"not one JSON object: {error}"
    if not isinstance(value, dict) or list(value) != ["description"]:
        return None, 'the JSON is not an object with exactly the key "description"'
    memory = value["description"]
    if not isinstance(memory, str) or not memory.strip():
        return None, '"description" is not a non-empty string'
    if any("\ud800" <= c <= "\udfff" for c in memory):
        return None, "half a surrogate pair stands in the memory"  # valid JSON, but no text
    if _SPECIAL.search(memory) or OPEN in memory or CLOSE in memory:
        return None, "a control token stands in the memory"
    return memory.strip(), None


def parse(completion: str) -> Output:
    """Parse a completion (end-of-turn token already removed). METHOD section 3, r_fmt."""
    thinking, close, answer = completion.partition(CLOSE)
    if not close:
        return Output(completion, None, f"{CLOSE} is missing")
    if CLOSE in answer or OPEN in completion:
        return Output(thinking, None, "the think tags are not closed exactly once")
    memory, violation = _memory_or_violation(answer.strip())
    return Output(thinking, memory, violation)


def completion_for(memory: str, thinking: str = "") -> str:
    """The completion that says `memory`, as training data and off-policy history need it."""
    return f"{thinking}{CLOSE}{json.dumps({'description': memory}, ensure_ascii=False)}"


def faces_well_formed(memory: str) -> bool:
    """True if every mention of a face is a complete tag <face_N> (METHOD section 3, r_qual)."""
    return all(_FACE.fullmatch(match.group()) for match in _FACE_LIKE.finditer(memory))
