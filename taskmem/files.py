"""Bytes on disk: atomic writes, canonical JSON and digests. The one home of each."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `data` to `path` so that a reader sees the old bytes or the new ones, also after a power cut."""
    with atomic_file(path) as handle:
        handle.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to in pieces, which becomes `path` at the end as `atomic_write` does it, and is gone after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
        fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def fsync_directory(path: Path) -> None:
    """Make a rename inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_directory(source: Path, target: Path) -> None:
    """Move the finished folder `source` to `target`; an older `target` is moved aside first and then removed.

    Its safetensors, which their library writes for the owner alone, become as readable as the folder.
    """
    for path in source.rglob("*.safetensors"):
        path.chmod(source.stat().st_mode & 0o666)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.old")
    if target.exists():
        target.replace(aside)
    source.replace(target)
    fsync_directory(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def sweep(root: Path) -> None:
    """Remove what killed writers left below `root`: temporary files, and folders that were being replaced."""
    for path in [*root.rglob(".*.tmp"), *root.rglob(".*.old")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_bytes(data: bytes | str) -> str:
    """Hex SHA-256 of bytes, or of a string's UTF-8."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_tree(root: Path, files: Iterable[Path] | None = None) -> str:
    """Hex SHA-256 over the relative names and contents of the files below `root` (or of `files`, all below it)."""
    chosen = sorted(p for p in (root.rglob("*") if files is None else files) if p.is_file())
    return sha256_bytes(canonical_json([[p.relative_to(root).as_posix(), sha256_file(p)] for p in chosen]))
