"""What is to be erased, and which records, files and names are its own."""

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from taskmem.errors import UserError
from taskmem.feedback.collection import Erasable, scoped, tombstone_of
from taskmem.records import Name, one_line
from taskmem.video.scan import stream_names

_SOURCE = re.compile(r"[0-9a-f]{64}")
_VIDEO = re.compile(r"\.(?!jsonl?\b|json$|txt$|md$|html?$)[A-Za-z0-9]{1,5}")
_SUBTITLES = re.compile(r"(\.[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*)?\.(srt|vtt)")
CLIPS, MARKERS = "clips", ".done"


@dataclass(frozen=True)
class Target:
    """A stream, in one `environment` or in all, or a source of feedback by its hash."""

    kind: Erasable
    name: str
    environment: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Target":
        """64 hex digits are a source, ENV/STREAM is an environment's stream, STREAM all of that name; UserError for any other."""
        if _SOURCE.fullmatch(text):
            return cls("source", text)
        environment, slash, stream = text.rpartition("/")
        try:
            for name in (stream, *([environment] if slash else ())):
                TypeAdapter(Name).validate_python(name, strict=True)
        except ValidationError:
            raise UserError(
                f"{one_line(text)}: neither STREAM, ENV/STREAM nor the hash of a source; give one of these"
            ) from None
        return cls("stream", stream, environment if slash else None)

    @property
    def title(self) -> str:
        """As `parse` takes it."""
        return self.name if self.environment is None else scoped(self.environment, self.name)

    @property
    def digest(self) -> str:
        """What its tombstone is called."""
        return tombstone_of(self.kind, self.title)

    def concerns(self, environment: object) -> bool:
        """Whether what is known of `environment` can be the target's."""
        return self.environment in (None, environment)

    def says(self, text: str, key: str) -> bool:
        """Whether `text`, the value of a record's field `key`, names the target: its name, the id of a memory or a context
        of it, or a file of its frames."""
        if self.kind == "source":
            return text == self.name
        if key == "stream":
            return text == self.name
        return bool(self._ids.fullmatch(text)) or (key in ("clip", "file", "source") and self.owns(text))

    def owns(self, path: str) -> bool:
        """Whether a file is the target's by its path: a clip or video of the stream, its subtitles or its marker."""
        if self.kind == "source" or self.environment is not None:
            # no path says of which environment it is
            return False
        parts = PurePosixPath(path).parts
        if any(pair == (CLIPS, self.name) for pair in itertools.pairwise(parts)):
            return True
        if not parts:
            return False
        if len(parts) > 1 and parts[-2] == MARKERS:
            return parts[-1] == f"{self.name}.json"
        stem, suffix = PurePosixPath(parts[-1]).stem, PurePosixPath(parts[-1]).suffix
        if subtitles := _SUBTITLES.search(parts[-1]):
            stem, suffix = parts[-1][: subtitles.start()], ".srt"
        return bool(_VIDEO.fullmatch(suffix)) and stream_names([f"{stem}.mp4"])[f"{stem}.mp4"] == self.name

    @cached_property
    def as_word(self) -> re.Pattern[bytes]:
        """The target's name where it stands alone in a text."""
        return _word(self.name)

    @cached_property
    def as_text(self) -> re.Pattern[bytes]:
        """What tells the target where it stands alone in a text that is no record."""
        return _word(self.title)

    @cached_property
    def _ids(self) -> re.Pattern[str]:
        return re.compile(re.escape(self.name) + r":[0-9]+(:[0-9a-f]{16})?")


def _word(text: str) -> re.Pattern[bytes]:
    return re.compile(rb"(?<![A-Za-z0-9_-])" + re.escape(text).encode() + rb"(?![A-Za-z0-9_-])")


def fields(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string in a JSON value with the key it stands under; keys themselves stand under "key"."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield "key", name
            yield from fields(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from fields(inner, key)
