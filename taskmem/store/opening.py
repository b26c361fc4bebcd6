"""A store by its URL."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from taskmem.errors import UserError
from taskmem.store.local import LocalStore
from taskmem.store.protocol import Store


def open_store(url: str, read_only: bool = False) -> Store:
    """The store at `url`: a folder's path, file:// URL or s3://bucket[/prefix]; UserError for any other scheme.

    With `read_only` nothing is written by opening it: an auditor needs no right to. A folder must then hold a store already, and
    the proof that an S3 server honours conditional writes is left out. For what S3 needs and promises see
    `taskmem.store.s3.open_s3`; UserError if boto3 is not installed.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3":
        return _open_s3(url, read_only)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return LocalStore(Path(unquote(parts.path)), read_only)
    if not url or parts.scheme:
        named = f"{parts.scheme}://..." if parts.scheme else "(empty)"
        raise UserError(f"store {named}: not a folder's path, file:// or s3:// URL; give one of these")
    return LocalStore(Path(url), read_only)


def _open_s3(url: str, read_only: bool) -> Store:
    try:
        from taskmem.store.s3 import open_s3  # noqa: PLC0415 - boto3 is in some extras only
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("boto3", "botocore"):
            raise
        raise UserError("store s3://...: boto3 is not installed; pip install 'taskmem[stage]'") from None
    return open_s3(url, prove=not read_only)
