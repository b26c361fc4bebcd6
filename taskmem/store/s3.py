"""The store in a bucket of S3 or of a server that speaks it. Needs the extra `stage` or `serve`.

    s3://bucket[/prefix]    the key "a/b" is the object "prefix/a/b"; what lies there: s3_object.py

A bucket with versioning keeps what was deleted or replaced, and a killed writer may leave parts of a large object: give
the bucket lifecycle rules for both (AbortIncompleteMultipartUpload, NoncurrentVersionExpiration) where this matters.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.store.protocol import (
    AlreadyExists,
    Conflict,
    CorruptObject,
    InvalidKey,
    KeyMissing,
    Stored,
    validate_key,
    validate_prefix,
)
from taskmem.store.s3_bucket import Bucket
from taskmem.store.s3_faults import NoAnswer, OutcomeUnknown, Refusal
from taskmem.store.s3_object import Sealed, new_write, seal, unseal
from taskmem.store.s3_proof import part_entry, prove_conditional_writes

_ABSENT = "NoSuchKey"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True)
class _Found:
    """The object under a key, and S3's own ETag, which names the write that put it there."""

    sealed: Sealed
    tag: str


class S3Store:
    """`Store` in a bucket, for any number of machines; the etag is the content's hex SHA-256, as on the local disk.

    A write is one request with a condition: If-None-Match for a new object, If-Match with S3's ETag for a swap. A
    refused write is looked at again: where the object or one that replaced it carries this write's id, an answer had
    got lost and the write had succeeded. Where that cannot be told (the object was deleted, or swapped more than 127
    times, between the attempts), it raises OutcomeUnknown. New objects longer than `part_size` bytes go up in parts,
    5 MiB at least as S3 has it; a swap is always one request, of 5 GiB at most.
    """

    def __init__(self, bucket: Bucket, prefix: str, part_size: int) -> None:
        self._bucket, self._prefix, self._part_size = bucket, prefix, part_size

    def get(self, key: str) -> Stored:
        """See `Store.get`."""
        validate_key(key)
        found = self._read(key)
        if found is None:
            raise KeyMissing(key)
        return Stored(found.sealed.data, found.sealed.sha256)

    def put_if_absent(self, key: str, data: bytes) -> str:
        """See `Store.put_if_absent`."""
        validate_key(key)
        etag, write = sha256_bytes(data), new_write()
        body = seal(data, (write,))
        for _ in self._bucket.tries():
            if self._refusal(key, body, IfNoneMatch="*") is None:
                return etag
            found = self._read(key)
            if found is None:  # deleted since, or another write is still under way
                continue
            if write in found.sealed.writes:
                return etag
            raise AlreadyExists(key, found.sealed.sha256, same=found.sealed.sha256 == etag)
        raise self._contended(key)

    def compare_and_swap(self, key: str, data: bytes, expected: str | None) -> str:
        """See `Store.compare_and_swap`."""
        if expected is None:
            try:
                return self.put_if_absent(key, data)
            except AlreadyExists as taken:
                raise Conflict(key, taken.etag) from None
        validate_key(key)
        etag, write = sha256_bytes(data), new_write()
        found = _expected(key, self._read(key), expected)
        for _ in self._bucket.tries():
            replaced = found.sealed.writes
            refusal = self._refusal(key, seal(data, (write, *replaced)), IfMatch=found.tag)
            if refusal is None:
                return etag
            now = self._read(key)
            writes = now.sealed.writes if now else ()
            if write in writes:
                return etag
            # A history that holds what was to be replaced, and not this write, proves that this write never was.
            if refusal.retried and replaced[0] not in writes:
                raise OutcomeUnknown(key, "an answer of the server got lost, and the object has changed since")
            found = _expected(key, now, expected)
        raise self._contended(key)

    def list(self, prefix: str) -> Iterator[str]:
        """See `Store.list`."""
        validate_prefix(prefix)
        return self._keys(prefix)

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        validate_key(key)
        try:
            self._bucket.call("delete_object", Key=self._name(key))
        except Refusal as refusal:  # some servers mind that there is none
            if refusal.code != _ABSENT:
                raise

    def _name(self, key: str) -> str:
        return f"{self._prefix}{key}"

    def _keys(self, prefix: str) -> Iterator[str]:
        for name in self._bucket.names(self._name(prefix)):
            key = name.removeprefix(self._prefix)
            try:
                validate_key(key)
            except InvalidKey:  # no object of the store
                continue
            yield key

    def _read(self, key: str) -> _Found | None:
        try:
            raw, tag = self._bucket.read(self._name(key))
        except Refusal as refusal:
            if refusal.code != _ABSENT:
                raise
            return None
        try:
            return _Found(unseal(raw), tag)
        except ValueError:
            raise CorruptObject(key, f"s3://{self._bucket.name}/{self._name(key)}") from None

    def _refusal(self, key: str, body: bytes, **condition: str) -> Refusal | None:
        """Write unless the condition is refused."""
        try:
            if "IfNoneMatch" in condition and len(body) > self._part_size:
                self._upload(self._name(key), body, condition)
            else:
                self._bucket.call("put_object", Key=self._name(key), Body=body, **condition)
        except Refusal as refusal:
            return refusal
        except NoAnswer as silence:
            raise OutcomeUnknown(key, str(silence)) from None
        return None

    def _upload(self, name: str, body: bytes, condition: dict[str, str]) -> None:
        upload = {"Key": name, "UploadId": self._bucket.call("create_multipart_upload", Key=name)["UploadId"]}
        try:
            parts: list[dict[str, Any]] = []
            for number, start in enumerate(range(0, len(body), self._part_size), start=1):
                piece = body[start : start + self._part_size]
                parts.append(
                    part_entry(number, self._bucket.call("upload_part", **upload, PartNumber=number, Body=piece))
                )
            self._bucket.call("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts}, **condition)
        except BaseException:
            # The first fault is the one to report.
            with suppress(UserError):
                self._bucket.call("abort_multipart_upload", **upload)
            raise

    def _contended(self, key: str) -> UserError:
        return UserError(f"{key}: other writers kept changing it in {self._bucket.where}; run again")


def _expected(key: str, found: _Found | None, expected: str) -> _Found:
    if found is None or found.sealed.sha256 != expected:
        raise Conflict(key, found.sealed.sha256 if found else None)
    return found


def open_s3(
    url: str, *, part_size: int = 64 * 2**20, attempts: int = 10, timeout: float = 60, prove: bool = True
) -> S3Store:
    """The store at s3://bucket[/prefix], after proof that its server honours conditional writes (`prove`; readers need none).

    Credentials, region and endpoint come by boto3's own chain (AWS_ENDPOINT_URL, AWS_PROFILE, a role, ...); botocore
    logs warnings only from then on, since below that it logs credentials. Raises UserError in one line if the URL, the
    bucket, the credentials, the endpoint or the server will not do. For `attempts` and `timeout` see `Bucket`.
    """
    name, prefix = _address(url)
    bucket = Bucket(name, attempts, timeout)
    if prove:
        prove_conditional_writes(bucket, prefix)
    return S3Store(bucket, prefix, part_size)


def _address(url: str) -> tuple[str, str]:
    """Bucket and prefix; the prefix is empty or ends in a slash."""
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        # Not shown: it may hold a credential.
        raise UserError(
            "store s3://...: only s3://bucket/prefix is allowed; credentials come from boto3's own settings"
        )
    prefix = parts.path.strip("/")
    try:
        if prefix:
            validate_key(prefix)
    except InvalidKey:
        raise UserError(f"store {url}: not a prefix of safe parts; give s3://bucket/prefix") from None
    if not _BUCKET.fullmatch(parts.netloc):
        raise UserError(f"store {url}: not a bucket's name; give s3://bucket/prefix")
    return parts.netloc, f"{prefix}/" if prefix else ""
