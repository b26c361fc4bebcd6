"""Answers by the content of their request: one file each, kept for good."""

from pathlib import Path

from pydantic import ValidationError

from taskmem.endpoint.reply import Reply
from taskmem.errors import UserError
from taskmem.files import atomic_write


class Answers:
    """`folder`/<2 digits>/<key>.json; whole or absent, also after a power cut."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> Reply | None:
        """The reply kept under a key; UserError if its file is damaged."""
        path = self._path(key)
        try:
            return Reply.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError):
            raise UserError(f"{path}: damaged answer; remove the file, and it is asked again") from None

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply."""
        atomic_write(self._path(key), reply.model_copy(update={"kept": True}).model_dump_json() + "\n")
