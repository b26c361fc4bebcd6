"""The chain of evidence: each link names a thing, the digest that others know it by and the digest it was found with."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from taskmem.errors import UserError
from taskmem.records import one_line

Status = Literal["verified", "damaged", "missing", "erased"]


@dataclass(frozen=True)
class Link:
    """One thing that an adapter rests on.

    `where` is the object, file or tag; `expected` the digest in `named_by`, `found` that of what is there (None where there is
    none). `reason` says what is wrong with a link that does not hold. `facts` are what it tells: JSON values. `rests_on` are
    the names of the links that it was made of.
    """

    name: str
    status: Status
    where: str
    named_by: str = ""
    expected: str | None = None
    found: str | None = None
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    rests_on: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """True if it is there, and what it should be."""
        return self.status == "verified"

    @property
    def line(self) -> str:
        """One line on what is wrong."""
        digests = (
            f" ({self.named_by} says {_short(self.expected)}, found {_short(self.found)})" if self.expected else ""
        )
        return one_line(f"{self.name}: {self.status}: {self.where}: {self.reason}{digests}")

    def document(self) -> dict[str, Any]:
        """The link as JSON."""
        return {
            "name": self.name,
            "status": self.status,
            "where": self.where,
            "named_by": self.named_by,
            "expected": self.expected,
            "found": self.found,
            "reason": self.reason,
            "rests_on": list(self.rests_on),
            "facts": dict(self.facts),
        }


@dataclass(frozen=True)
class Chain:
    """Every link of `subject`, and what is to be said besides. `texts` are the questions' texts, if they are to be shown."""

    subject: str
    links: tuple[Link, ...]
    notes: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def broken(self) -> tuple[Link, ...]:
        """The links that do not hold."""
        return tuple(link for link in self.links if not link.holds)

    def link(self, name: str) -> Link | None:
        """A link by its name, None if the chain has no such link."""
        return next((link for link in self.links if link.name == name), None)

    def document(self) -> dict[str, Any]:
        """The chain as JSON."""
        texts = {"questions": dict(self.texts)} if self.texts else {}
        return {
            "schema": 1,
            "subject": self.subject,
            "holds": not self.broken,
            "links": [link.document() for link in self.links],
            "notes": list(self.notes),
            **texts,
        }


def compared(
    name: str,
    where: str,
    named_by: str,
    expected: str | None,
    found: str | None,
    facts: Mapping[str, Any] | None = None,
    rests_on: Sequence[str] = (),
    problems: Iterable["Problem"] = (),
    other: str = "not what was recorded",
) -> Link:
    """A link that holds if both digests are the same and there is no problem; else the first problem says what it is.

    `other` is the reason where the digests differ and nothing else is known.
    """
    first = next(iter(problems), None)
    status: Status = "verified"
    reason = ""
    if first is not None:
        status, where, reason = first.status, first.where or where, first.reason
    elif expected != found:
        status, reason = ("missing", "not there") if found is None else ("damaged", other)
    return Link(name, status, where, named_by, expected, found, reason, facts or {}, tuple(rests_on))


@dataclass(frozen=True)
class Problem:
    """Why something cannot be relied on."""

    status: Literal["damaged", "missing", "erased"]
    where: str
    reason: str


def split_name(name: str) -> tuple[str, str]:
    """Environment and version of environment@version; UserError if `name` is no such name."""
    environment, at, version = name.partition("@")
    if not (environment and at and version):
        raise UserError(f"adapter {one_line(name)}: names no version; give it as environment@version, as in door@v3")
    return environment, version


def _short(digest: str | None) -> str:
    return digest[:12] if digest else "nothing"
