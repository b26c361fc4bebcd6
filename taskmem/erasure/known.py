"""What is known of a target before anything is erased: its texts, its questions, its files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from taskmem.erasure.target import Target, fields
from taskmem.files import sha256_bytes

Owner = Literal["ours", "others"] | None
PRIMARY = frozenset({"text", "memory", "answer", "correction", "options"})
"""The fields in which people and the policy write; every other text of a record was made of these, or of nothing."""
DERIVED = frozenset({"reason"})
ASKED = "asked_at_s"  # what a question has and no other record
SOURCES = "sources.json"


@dataclass
class Known:
    """Gathered from all records before the first one goes.

    `questions` has the ids of the target's questions by environment: those about the stream, or those that the source alone has
    asked. A text is the target's if no record of others has it too.
    """

    target: Target
    files: set[str] = field(default_factory=set)
    _texts: set[str] = field(default_factory=set)
    _elsewhere: set[str] = field(default_factory=set)
    _asked: dict[str, set[str]] = field(default_factory=dict)
    _asked_by_others: dict[str, set[str]] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        """The texts that are the target's alone."""
        return sorted(text for text in self._texts if _mark(text) not in self._elsewhere)

    @property
    def questions(self) -> dict[str, frozenset[str]]:
        """The ids of its questions, by environment."""
        return {name: frozenset(asked - self._asked_by_others.get(name, set())) for name, asked in self._asked.items()}

    def note(self, value: Any, owner: Owner = None) -> None:
        """Take in a record, or a document of records."""
        if isinstance(value, list):
            for inner in value:
                self.note(inner, owner)
        elif isinstance(value, Mapping):
            mine = self._owner(value) or owner
            self._note_texts(value, mine)
            self._note_question(value, mine)
            for inner in value.values():
                if isinstance(inner, (Mapping, list)):
                    self.note(inner, mine)

    def note_sources(self, document: Any) -> None:
        """Take in the sources.json of a collection: environment, question, sources."""
        if self.target.kind != "source" or not is_sources(document):
            return
        for environment, questions in document.items():
            for question, sources in questions.items():
                if self.target.name in sources:
                    self._asked.setdefault(environment, set()).add(question)
                if set(sources) - {self.target.name}:
                    self._asked_by_others.setdefault(environment, set()).add(question)

    def _owner(self, record: Mapping[str, Any]) -> Owner:
        if self.target.kind == "stream":
            stream, context = record.get("stream"), record.get("context")
            if not isinstance(stream, str) and isinstance(context, str):
                stream = context.partition(":")[0]
            if not isinstance(stream, str):
                return None
            if stream != self.target.name:
                return "others"
            # another environment may have a stream that is called the same
            known = self.target.environment is None or "environment" in record
            return ("ours" if self.target.concerns(record.get("environment")) else "others") if known else None
        source = record.get("source")
        if isinstance(source, str) and "question" in record:
            return "ours" if source == self.target.name else "others"
        # a question and its answer tell nothing of who asked
        if ASKED in record or "question" in record:
            return None
        return "others" if isinstance(record.get("stream"), str) or isinstance(record.get("context"), str) else None

    def _note_texts(self, record: Mapping[str, Any], owner: Owner) -> None:
        if owner is None:
            return
        for name, value in record.items():
            given = value if isinstance(value, list) else [value]
            texts = [text for text in given if isinstance(text, str)]
            if name in PRIMARY and owner == "others":
                self._elsewhere.update(_mark(text) for text in texts)
            elif name in PRIMARY | DERIVED and owner == "ours":
                self._texts.update(texts)
        if owner == "ours" and "clip" in record and isinstance(record.get("source"), str):
            self.files.add(str(record["source"]))

    def _note_question(self, record: Mapping[str, Any], owner: Owner) -> None:
        if ASKED not in record or owner is None:
            return
        # an event has an id of its own
        identity = record.get("question", record.get("id"))
        known = self._asked if owner == "ours" else self._asked_by_others
        known.setdefault(str(record.get("environment")), set()).add(str(identity))


def is_sources(document: Any) -> bool:
    """Whether a document has the shape of a collection's sources.json."""
    if not isinstance(document, Mapping) or not all(isinstance(asked, Mapping) for asked in document.values()):
        return False
    sources = [named for asked in document.values() for named in asked.values()]
    return all(isinstance(named, list) and all(isinstance(each, str) for each in named) for named in sources)


def _mark(text: str) -> str:
    return sha256_bytes(text.encode("utf-8", "surrogatepass"))[:24]


def texts_of(record: Any, skipped: Iterable[str] = ()) -> str:
    """All strings of a record in one, without those of the fields `skipped`."""
    left_out = frozenset(skipped)
    return "\n".join(text for key, text in fields(record) if key not in left_out)
