"""What every object store promises, whatever disk or service is behind it."""

# ruff: noqa: N818 - these are outcomes a caller decides on, named after what happened.

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from taskmem.errors import UserError

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@=+-]{0,199}")
_LONGEST_KEY = 1024


class StoreFault(Exception):
    """Base of what can go wrong with one object; `key` names it."""

    def __init__(self, key: str, *details: object) -> None:
        # All arguments reach Exception, so that a fault survives the way back from a worker process.
        super().__init__(key, *details)
        self.key = key


class InvalidKey(StoreFault, ValueError):
    """The key is not a relative POSIX path of safe parts."""

    def __str__(self) -> str:
        return f"{self.key!r}: not a key; join parts of letters, digits, _ and inner .@=+- with single slashes"


class KeyMissing(StoreFault):
    """No object has this key."""

    def __str__(self) -> str:
        return f"{self.key}: no such object in the store"


class AlreadyExists(StoreFault):
    """The key is taken by the object `etag`; `same` tells whether its bytes are those that were to be stored."""

    def __init__(self, key: str, etag: str, same: bool) -> None:
        super().__init__(key, etag, same)
        self.etag = etag
        self.same = same

    def __str__(self) -> str:
        return f"{self.key}: already in the store, with {'the same' if self.same else 'other'} content"


class Conflict(StoreFault):
    """The object is not the one that was expected: `current` is its etag, or None where there is none."""

    def __init__(self, key: str, current: str | None) -> None:
        super().__init__(key, current)
        self.current = current

    def __str__(self) -> str:
        return f"{self.key}: changed by someone else, it is now {self.current or 'absent'}"


class CorruptObject(StoreFault, UserError):
    """The stored bytes do not match their digest; `where` names the file or address that holds them."""

    def __init__(self, key: str, where: str) -> None:
        super().__init__(key, where)
        self.where = where

    def __str__(self) -> str:
        return f"{self.key}: damaged in {self.where}; delete the object and store it again from its source"


@dataclass(frozen=True)
class Stored:
    """An object as read: its bytes and the tag of this version."""

    data: bytes
    etag: str


class Store(Protocol):
    """Named byte strings with atomic, durable writes; every method may be called from many processes and threads.

    An etag is an opaque string that equal bytes under one key share. A key is a relative POSIX path, see
    `validate_key`; every method raises InvalidKey for anything else. "a" and "a/b" are two keys and may both exist.
    """

    def get(self, key: str) -> Stored:
        """The object `key`; raises KeyMissing, and CorruptObject if its bytes are not those that were stored."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> str:
        """Store a new object and return its etag; of several racing callers exactly one succeeds.

        Raises AlreadyExists if the key is taken, CorruptObject if it is taken by a damaged object.
        """
        ...

    def compare_and_swap(self, key: str, data: bytes, expected: str | None) -> str:
        """Replace the object whose etag is `expected` (None: there must be none) and return the new etag.

        Raises Conflict with the current etag, CorruptObject if the current object is damaged.
        """
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """The keys that begin with the characters of `prefix` ("" for all), in code point order of the whole key.

        Keys written or deleted while listing may or may not appear.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove the object, damaged or not; no error if there is none, so that a retry is safe."""
        ...


def is_key_part(name: str) -> bool:
    """True if `name` may stand between two slashes of a key: at most 200 characters of a set that is safe in paths."""
    return _PART.fullmatch(name) is not None


def validate_key(key: str) -> None:
    """Raise InvalidKey unless `key` is a relative path, at most 1,024 long: no empty or hidden part, no traversal."""
    if len(key) > _LONGEST_KEY or not all(is_key_part(part) for part in key.split("/")):
        raise InvalidKey(key)


def validate_prefix(prefix: str) -> None:
    """Raise InvalidKey unless some key can begin with `prefix`."""
    if prefix and not all(is_key_part(part) for part in f"{prefix}x".split("/")):
        raise InvalidKey(prefix)
