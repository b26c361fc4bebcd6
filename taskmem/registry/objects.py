"""Keys of the registry, and its records as objects of a store."""

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from taskmem.errors import UserError
from taskmem.records import Name, Record, Sha256, dump_record, one_line
from taskmem.registry.manifest import VersionName
from taskmem.store import AlreadyExists, KeyMissing, Store, Stored

R = TypeVar("R", bound=Record)


def key_of(environment: str, *parts: str) -> str:
    """The key of an environment's object; UserError for a name that is not safe in a key."""
    name = _checked(environment, Name, "environment", "letters, digits and inner '.', '_', '-'")
    return "/".join(("registry", name, *parts))


def version_key(environment: str, version: str) -> str:
    """The key of a version's manifest; UserError for a name that is none."""
    return key_of(environment, "versions", checked_version(version))


def environments(store: Store) -> list[str]:
    """The names of all environments that the registry knows anything of."""
    return sorted({key.split("/")[1] for key in store.list("registry/")})


def version_number(version: str) -> int:
    """The N of vN; UserError for a name that is none."""
    return int(checked_version(version)[1:])


def checked_version(version: str) -> str:
    """`version` if it is a version's name; UserError otherwise."""
    return _checked(version, VersionName, "version", "v1, v2 and so on")


def file_key(environment: str, digest: str) -> str:
    """The key of a file's bytes."""
    return key_of(environment, "files", digest)


def verdict_key(environment: str, digest: str) -> str:
    """The key of a verdict; UserError if `digest` is none."""
    return key_of(environment, "verdicts", _checked(digest, Sha256, "verdict", "the hex SHA-256 of one"))


def checked_policy(digest: str) -> str:
    """`digest` if it can be a policy's; UserError otherwise."""
    return _checked(digest, Sha256, "policy", "the hex SHA-256 of one")


def _checked(value: str, kind: Any, what: str, allowed: str) -> str:
    try:
        checked: str = TypeAdapter(kind).validate_python(value, strict=True)
    except ValidationError:
        raise UserError(f"{what} {value!r}: not a safe name; use {allowed}") from None
    return checked


def stored(store: Store, key: str) -> Stored | None:
    """The object `key`, or None; UserError if it is damaged."""
    try:
        return store.get(key)
    except KeyMissing:
        return None


def put_content(store: Store, key: str, data: bytes) -> None:
    """Store bytes under a key that names them by digest; UserError if other bytes are there."""
    try:
        store.put_if_absent(key, data)
    except AlreadyExists as taken:
        if not taken.same:
            raise UserError(f"{key}: holds other bytes than its name says; delete the object and try again") from None


def to_bytes(record: Record) -> bytes:
    """A record as it is stored: one JSON line."""
    return f"{dump_record(record)}\n".encode()


def parse(data: bytes, kind: type[R], key: str) -> R:
    """A stored record; UserError naming the key and the field if it is none, or not in the bytes it is written in."""
    try:
        record = kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = one_line(".".join(str(part) for part in first["loc"])) or "the document"
        raise UserError(
            f"{key}: no {kind.__name__} of this registry ({field}: {first['msg']}); restore the object from a backup"
        ) from None
    # a record of before a field was added has it unset
    said = record.model_dump(mode="json", exclude_unset=True)
    if f"{json.dumps(said, ensure_ascii=False, allow_nan=False)}\n".encode() != data:
        raise UserError(f"{key}: written by somebody else than this registry; restore the object from a backup")
    return record
