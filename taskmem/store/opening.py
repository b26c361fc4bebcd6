"""A store by its URL."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from taskmem.errors import UserError
from taskmem.store.local import LocalStore
from taskmem.store.protocol import Store


def open_store(url: str) -> Store:
    """The store at `url`: a folder's path or file:// URL; UserError for any other scheme."""
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return LocalStore(Path(unquote(parts.path)))
    if not url or parts.scheme:
        raise UserError(f"store {url or '(empty)'}: not a folder's path or file:// URL; give one of these")
    return LocalStore(Path(url))
