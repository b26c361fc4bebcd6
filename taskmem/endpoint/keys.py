"""API keys: read at the edge, shown nowhere."""

from collections.abc import Mapping
from pathlib import Path

from taskmem.errors import UserError
from taskmem.roles import KeySource

HIDDEN = "[key]"


class ApiKey:
    """A key that prints as `[key]`; `reveal` is for the request's header alone."""

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return HIDDEN

    def reveal(self) -> str:
        """The key itself."""
        return self._value

    def stands_in(self, text: str) -> bool:
        """Whether `text` gives the key away."""
        return self._value in text

    def hide(self, text: str) -> str:
        """`text` with the key replaced by `[key]`."""
        return text.replace(self._value, HIDDEN)


def resolve_key(source: KeySource, environment: Mapping[str, str]) -> ApiKey:
    """The key that `source` names; UserError, which never shows it, if it is missing, empty or not printable ASCII."""
    if source.variable is not None:
        where, value = f"environment variable {source.variable}", environment.get(source.variable)
    else:
        where = f"{source.file}"
        try:
            value = Path(where).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            value = None
    key = (value or "").strip()
    if not key:
        raise UserError(f"{where}: holds no API key; set it, or name another source in the profile's `key`")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"{where}: no API key (not printable ASCII without spaces); set it again")
    return ApiKey(key)
