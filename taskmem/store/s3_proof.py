"""Whether a server honours conditional writes: some take the conditions, ignore them and answer 200."""

import uuid
from contextlib import suppress
from typing import Any

from taskmem.errors import UserError
from taskmem.store.s3_bucket import Bucket
from taskmem.store.s3_faults import Refusal

_STALE = f'"{"0" * 32}"'


def prove_conditional_writes(bucket: Bucket, prefix: str) -> None:
    """Raise UserError unless the server refuses a write whose condition does not hold, and takes one whose does.

    Works on an object of its own below `prefix` that no store lists, and removes it. Takes 11 requests.
    """
    key = f"{prefix}.probe/{uuid.uuid4().hex}"
    try:
        # If the answer got lost, the retry is refused, rightly.
        _refusal(bucket, "put_object", Key=key, Body=b"new", IfNoneMatch="*")
        _must_refuse(bucket, "If-None-Match", "put_object", Key=key, Body=b"taken", IfNoneMatch="*")
        _must_refuse(bucket, "If-Match", "put_object", Key=key, Body=b"stale", IfMatch=_STALE)
        tag = _holds(bucket, key, b"new")
        _refusal(bucket, "put_object", Key=key, Body=b"swapped", IfMatch=tag)
        _prove_multipart(bucket, key)
        _holds(bucket, key, b"swapped")
    finally:
        bucket.call("delete_object", Key=key)


def _prove_multipart(bucket: Bucket, key: str) -> None:
    upload = {"Key": key, "UploadId": bucket.call("create_multipart_upload", Key=key)["UploadId"]}
    try:
        part = bucket.call("upload_part", **upload, PartNumber=1, Body=b"parts")
        _must_refuse(
            bucket,
            "If-None-Match on a multipart upload",
            "complete_multipart_upload",
            **upload,
            MultipartUpload={"Parts": [part_entry(1, part)]},
            IfNoneMatch="*",
        )
    finally:
        with suppress(Refusal):
            bucket.call("abort_multipart_upload", **upload)


def part_entry(number: int, answer: dict[str, Any]) -> dict[str, Any]:
    """The line that completes an upload has for a part, from the server's answer to it."""
    checks = {name: value for name, value in answer.items() if name == "ETag" or name.startswith("Checksum")}
    return {"PartNumber": number, **checks}


def _refusal(bucket: Bucket, operation: str, **parameters: Any) -> str | None:
    try:
        bucket.call(operation, **parameters)
    except Refusal as refusal:
        return refusal.code
    return None


def _must_refuse(bucket: Bucket, condition: str, operation: str, **parameters: Any) -> None:
    if _refusal(bucket, operation, **parameters) != "PreconditionFailed":
        raise _unfit(bucket, f"does not honour {condition}")


def _holds(bucket: Bucket, key: str, expected: bytes) -> str:
    data, tag = bucket.read(key)
    if data != expected:
        raise _unfit(bucket, "does not keep to the conditions of a write")
    return tag


def _unfit(bucket: Bucket, what: str) -> UserError:
    return UserError(
        f"{bucket.where}: the server {what}, so that two writers could overwrite each other; "
        "use a server with conditional writes, as Amazon S3 has them, or a folder"
    )
