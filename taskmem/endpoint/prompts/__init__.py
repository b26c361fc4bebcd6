"""The one home of the prompts of judges, answerer and grader: a file each, named in the records by its SHA-256.

A prompt is the system message. What is judged travels in the user message, as one JSON object whose strings are data.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from taskmem.files import sha256_bytes

Part = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """The text of a prompt file and its SHA-256."""

    text: str
    sha256: str


def prompt_of(role: str) -> Prompt:
    """The prompt of a role; its first line is its name and version."""
    text = resources.files("taskmem.endpoint.prompts").joinpath(f"{role}.md").read_text(encoding="utf-8")
    return Prompt(text, sha256_bytes(text))


def messages(prompt: Prompt, data: Mapping[str, Any], media: Sequence[Part] = ()) -> list[Part]:
    """The prompt, then `data` as one JSON object, then the media: no string of `data` can end the object it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, indent=1)
    return [
        {"role": "system", "content": prompt.text},
        {"role": "user", "content": [{"type": "text", "text": text}, *media]},
    ]
