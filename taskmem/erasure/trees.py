"""A folder's files together: what one of them says of the others, and what must change with them."""

import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from taskmem.erasure.contents import NUMBERS, Erased, Eraser, lines_of
from taskmem.erasure.known import SOURCES, Known
from taskmem.errors import UserError
from taskmem.feedback.collection import reseal
from taskmem.files import atomic_write

Files = Mapping[str, Callable[[], bytes]]
"""The files of a folder by relative path, each read when it is looked at."""
SEAL, SUMMARY, INFLUENCE, GRADIENTS = "watermark.json", "summary.json", "influence.json", "gradients.safetensors"


def gather(known: Known, path: str, data: bytes) -> None:
    """Take in what the records of one file tell."""
    # what is nested deeper than anything that was written here tells nothing
    with suppress(RecursionError):
        _gather(known, path, data)


def _gather(known: Known, path: str, data: bytes) -> None:
    name = PurePosixPath(path).name
    if name.endswith(NUMBERS):
        return
    if name == SOURCES and (document := json_object(data)):
        known.note_sources(document)
    elif name.endswith(".json") and (document := json_object(data)) is not None:
        known.note(document)
    else:
        for line in lines_of(data):
            if line.startswith(b"{"):
                known.note(json_object(line))


def clean_tree(
    files: Files, eraser: Eraser, environment: str | None = None, only_by_text: bool = False
) -> Iterator[tuple[str, Erased]]:
    """Every file that changes, as it is without the target; `environment` is whose folder it is, None to find that out.

    A collection of feedback stays whole: its seal changes with its files. What changes with others comes before them, so that
    who is killed in between finds it again.
    """
    changed: dict[str, Erased] = {}
    for path in files:
        data = b"" if path.endswith(NUMBERS) else files[path]()
        erased = eraser.clean(path, data, environment or _environment(files, path), only_by_text)
        if erased.sealed or erased.data != data:
            changed[path] = erased
    for path in [path for path in files if PurePosixPath(path).name == GRADIENTS]:
        # what each pair moved the vector by, in the order of influence.json
        if f"{_above(path)}{INFLUENCE}" in changed:
            changed[path] = Erased(None)
    for path in [path for path in files if is_seal(path, files)]:
        below = {name.removeprefix(_above(path)): name for name in files if name.startswith(_above(path))}
        parts = {name: whole for name, whole in below.items() if _sealed(name)}
        if any(whole in changed for whole in parts.values()):
            changed[path] = Erased(_resealed(files, changed, {**parts, SEAL: path}))
    for path in sorted(changed, key=lambda path: PurePosixPath(path).name not in (SEAL, GRADIENTS)):
        yield path, changed[path]


def is_seal(path: str, files: Collection[str]) -> bool:
    """Whether a file is the last of a collection of feedback, which has the digest of the others."""
    return PurePosixPath(path).name == SEAL and f"{_above(path)}{SOURCES}" in files


def _sealed(name: str) -> bool:
    return name in (SOURCES, "refused.jsonl") or PurePosixPath(name).match("questions/*.jsonl")


def _resealed(files: Files, changed: Mapping[str, Erased], parts: Mapping[str, str]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="taskmem-erase-") as folder:
        for name, whole in parts.items():
            data = changed[whole].data if whole in changed else files[whole]()
            if data is not None:
                atomic_write(Path(folder) / name, data)
        reseal(Path(folder))
        return (Path(folder) / SEAL).read_bytes()


def _environment(files: Files, path: str) -> str | None:
    """Whose pairs a file is about, by the summary that mining wrote beside it."""
    beside = f"{_above(path)}{SUMMARY}"
    if beside not in files or beside == path:
        return None
    summary = json_object(files[beside]())
    found = summary.get("environment") if isinstance(summary, dict) else None
    return found if isinstance(found, str) else None


def _above(path: str) -> str:
    return path[: path.rfind("/") + 1]


def json_object(data: bytes) -> dict[str, Any] | None:
    """A JSON document that is an object, None where it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def reader(read: Callable[[str], bytes], key: str) -> Callable[[], bytes]:
    """Reads one object when it is called; UserError as `read`."""

    def read_one() -> bytes:
        return read(key)

    return read_one


def read_file(path: Path) -> bytes:
    """The bytes of a file; UserError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable and run again") from None
