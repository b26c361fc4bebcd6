"""One file without the target: which records go, which documents are pruned, which files go as a whole."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from taskmem.erasure.known import ASKED, PRIMARY, SOURCES, Known, is_sources, texts_of
from taskmem.erasure.needles import Needles, SealedArchiveError, unpacked
from taskmem.erasure.target import Target, fields

NUMBERS = (".safetensors", ".mp4", ".npy")
"""Weights and frames: nothing in them is text. Frames are the target's by their path."""
SETTINGS = (".yaml", ".yml", ".toml", ".cfg", ".ini", ".py", ".lock", ".dvc", ".jinja", "merges.txt", "vocab.txt")
"""Files in which a name may stand that is a stream's only by chance."""
CACHE_ENTRY = {"pipeline", "stage", "seconds", "outputs"}
ERASED_TEXT = "erased"


@dataclass(frozen=True)
class Erased:
    """What is left of a file: `data`, None where nothing may stay; `records` that went, and whether by their text alone.

    `sealed` is set where an archive could not be looked into.
    """

    data: bytes | None
    records: int = 0
    by_text: bool = False
    sealed: bool = False


class Eraser:
    """Takes the target out of files, by what is `known` of it."""

    def __init__(self, known: Known) -> None:
        self.target: Target = known.target
        self._needles, self._questions, self._files = Needles(known.texts), known.questions, frozenset(known.files)

    def owns(self, path: str) -> bool:
        """Whether a file goes by its path alone."""
        return self.target.owns(path) or any(path == name or path.endswith(f"/{name}") for name in self._files)

    def rests(self, record: Any, environment: str | None) -> bool:
        """Whether a record is the target's, or was made of what is: by its fields, in the environment it is about."""
        if isinstance(record, list):
            return any(self.rests(inner, environment) for inner in record)
        if not isinstance(record, Mapping):
            return False
        about = _about(record, environment)
        if any(self._named(record, key, text, about) for key, text in _own_fields(record)):
            return True
        return any(self.rests(inner, about) for inner in record.values() if isinstance(inner, (Mapping, list)))

    def clean(self, path: str, data: bytes, environment: str | None, only_by_text: bool = False) -> Erased:
        """`data`, the file `path`, without the target; with `only_by_text`, its own records stay for now.

        `environment` is whose file it is, None where that is unknown: then a question's id is the target's in any.
        """
        if self.owns(path):
            return Erased(data if only_by_text else None)
        name = PurePosixPath(path).name
        try:
            return self._clean(name, data, environment, only_by_text)
        except RecursionError:  # nested deeper than anything that was written here
            return self._clean_whole(name, data)

    def _clean(self, name: str, data: bytes, environment: str | None, only_by_text: bool) -> Erased:
        if name.endswith(NUMBERS):
            return Erased(data)
        if name.endswith(".jsonl"):
            return self._clean_lines(data, environment, only_by_text)
        document = _parsed(data)
        if name.endswith(".json") and document is not None:
            return self._clean_document(name, data, document, environment, only_by_text)
        if (lines := _records(data)) and "." not in name:
            return self._clean_lines(b"".join(lines), environment, only_by_text)
        return self._clean_whole(name, data)

    def _clean_lines(self, data: bytes, environment: str | None, only_by_text: bool) -> Erased:
        kept, gone, by_text = [], 0, False
        quoting = self._needles.within(data)
        if not quoting and not self._questions and not self.target.as_word.search(data):
            return Erased(data)
        for line in lines_of(data):
            record = _parsed(line)
            rests = record is not None and self.rests(record, environment)
            told = not rests and (self._said(line) if record is None else quoting and self._quoted(record))
            by_text |= told
            if told or (rests and not only_by_text):
                gone += 1
            else:
                kept.append(line)
        return Erased(b"".join(kept) if gone else data, gone, by_text)

    def _clean_document(
        self, name: str, data: bytes, document: Any, environment: str | None, only_by_text: bool
    ) -> Erased:
        told = self._needles.within("\n".join(text for _, text in fields(document)).encode("utf-8", "surrogatepass"))
        if only_by_text and not told:
            return Erased(data)
        pruning = _Pruning(self, only_by_text)
        left = (
            pruning.sources(document)
            if name == SOURCES and is_sources(document)
            else pruning.pruned(document, environment)
        )
        if not pruning.count:
            return Erased(data)
        if left is _GONE or (isinstance(document, dict) and document.keys() == CACHE_ENTRY):
            return Erased(None, pruning.count, told)
        text = json.dumps(left, ensure_ascii=False, indent=2 if b"\n " in data else None)
        return Erased(f"{text}\n".encode() if data.endswith(b"\n") else text.encode(), pruning.count, told)

    def _clean_whole(self, name: str, data: bytes) -> Erased:
        try:
            found = any(self._said(part, name.endswith(SETTINGS)) for part in unpacked(data))
        except SealedArchiveError:
            return Erased(data, sealed=True)
        return Erased(None if found else data, by_text=found)

    def _said(self, data: bytes, settings: bool = False) -> bool:
        return self._needles.within(data) or (not settings and bool(self.target.as_text.search(data)))

    def _quoted(self, record: Any) -> bool:
        """Whether a record that is not the target's quotes it. What others wrote themselves is theirs."""
        others = isinstance(record, Mapping) and not {"stream", "context", "source"}.isdisjoint(record)
        return self.quotes(texts_of(record, PRIMARY if others else ()))

    def quotes(self, text: str) -> bool:
        """Whether a text has one of the target's in it."""
        return self._needles.within(text.encode("utf-8", "surrogatepass"))

    def asked(self, question: str, environment: str | None) -> bool:
        """Whether a question is the target's."""
        if environment is None:
            return any(question in asked for asked in self._questions.values())
        return question in self._questions.get(environment, ())

    def _named(self, record: Mapping[str, Any], key: str, text: str, environment: str | None) -> bool:
        is_question = key in ("question", "questions") or (key == "id" and ASKED in record and "question" not in record)
        said = self.target.says(text, key) and self.target.concerns(environment)
        return said or (is_question and self.asked(text, environment))


class _Gone:
    """In place of a part of a document that goes."""


_GONE = _Gone()


class _Pruning:
    """A document without the parts that are the target's; `count` says how many went."""

    def __init__(self, eraser: Eraser, only_by_text: bool) -> None:
        self._eraser, self._only_by_text = eraser, only_by_text
        self.count = 0

    def pruned(self, value: Any, environment: str | None) -> Any:
        """`value` without them, or _GONE."""
        if isinstance(value, Mapping):
            about = _about(value, environment)
            own = {key: inner for key, inner in value.items() if not isinstance(inner, Mapping)}
            own = {key: inner for key, inner in own.items() if not _holds_mappings(inner)}
            if self._eraser.rests(own, about):
                # what is known of the target is known from here
                self.count += not self._only_by_text
                return value if self._only_by_text else _GONE
            parts = {key: self._part(key, inner, about) for key, inner in value.items()}
            return {key: inner for key, inner in parts.items() if inner is not _GONE}
        if isinstance(value, list):
            return [left for inner in value if (left := self.pruned(inner, environment)) is not _GONE]
        if isinstance(value, str) and self._eraser.quotes(value):
            self.count += 1
            return ERASED_TEXT
        return value

    def sources(self, document: Mapping[str, Mapping[str, list[str]]]) -> Any:
        """The sources.json of a collection: questions that are the target's go, and so does its own name."""
        if self._only_by_text:
            return document
        left: dict[str, dict[str, list[str]]] = {}
        for environment, questions in document.items():
            left[environment] = {}
            for question, sources in questions.items():
                others = [source for source in sources if source != self._eraser.target.name]
                if others and not self._eraser.asked(question, environment):
                    left[environment][question] = others
                self.count += left[environment].get(question) != sources
        return left

    def _part(self, key: str, value: Any, environment: str | None) -> Any:
        if self._eraser.target.kind == "source" and key == self._eraser.target.name and not self._only_by_text:
            self.count += 1
            return _GONE
        return self.pruned(value, environment)


def _about(record: Mapping[str, Any], environment: str | None) -> str | None:
    """The environment that a record names, else the one it was found in."""
    named = record.get("environment")
    return named if isinstance(named, str) else environment


def _own_fields(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    given = [(key, value if isinstance(value, list) else [value]) for key, value in record.items()]
    return [(key, text) for key, values in given for text in values if isinstance(text, str)]


def _holds_mappings(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(inner, (Mapping, list)) for inner in value)


def _parsed(data: bytes) -> Any:
    """A JSON value, None where it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def lines_of(data: bytes) -> list[bytes]:
    """The lines of a log, each with its end."""
    return io.BytesIO(data).readlines()


def _records(data: bytes) -> list[bytes]:
    """The lines of a file without a telling name that holds JSON objects, one a line; none if it holds anything else."""
    lines = lines_of(data)
    return lines if lines and all(isinstance(_parsed(line), dict) for line in lines if line.strip()) else []
