"""The one place of image names."""

from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, ValidationError

from taskmem.errors import UserError
from taskmem.records import read_json
from taskmem.settings import Settings

REGISTRY = "ghcr.io/taskmem"
UNPLACED = "unplaced.invalid/taskmem:none"
"""What a component names before `placement.place` has given it an image: no registry has it, so nothing runs by accident."""

_HOST = r"[a-z0-9-]+(\.[a-z0-9-]+)*"
_REGISTRY = rf"(localhost|[a-z0-9-]+(\.[a-z0-9-]+)+|{_HOST}:[0-9]+)(:[0-9]+)?"
_PART = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"@sha256:[0-9a-f]{64}"
Reference = Annotated[str, Field(pattern=rf"^{_REGISTRY}(/{_PART})+(:{_TAG}|(:{_TAG})?{_DIGEST})$")]
"""A full image reference: registry, name and a tag, a digest or both. No short names: what they mean is up to each node."""
Kind = Literal["data", "train"]


def is_pinned(reference: str) -> bool:
    """Whether a reference names bytes (a digest), not a tag that can move."""
    return "@sha256:" in reference


class Images(Settings):
    """One reference for each kind of image that a stage can ask for, and the services', which no pipeline starts."""

    data: Reference
    train: Reference
    serve: Reference | None = None

    def reference(self, kind: Kind) -> str:
        """The reference of one kind."""
        return self.data if kind == "data" else self.train

    @property
    def pinned(self) -> bool:
        """Whether every image is named by digest, so that the same pipeline always runs the same code."""
        return is_pinned(self.data) and is_pinned(self.train)


def load_images(path: Path | None) -> Images:
    """The images of a JSON file `{"data": REFERENCE, "train": REFERENCE}`; without one, this version's, by tag.

    UserError with file and field if the file cannot be read or a reference is malformed.
    """
    if path is None:
        version = metadata.version("taskmem")
        return Images(data=f"{REGISTRY}/data:{version}", train=f"{REGISTRY}/train:{version}")
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; give a JSON file with one reference for each of {', '.join(get_args(Kind))}"
        )
    document = read_json(path)
    try:
        return Images.model_validate(document)
    except ValidationError as error:
        raise _mistake(path, error) from None


def _mistake(path: Path, error: ValidationError) -> UserError:
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "the document"
    if first["type"] == "string_pattern_mismatch":
        return UserError(
            f"{path}: {field}: {first['input']!r} is not a full image reference; "
            "write registry/name:tag or registry/name@sha256:<64 hex digits>"
        )
    return UserError(f"{path}: {field}: {first['msg']}; give one reference for each of {', '.join(get_args(Kind))}")
