"""The store on a local disk.

    ROOT/objects/<key>~      one object: a line "sha256 <hex>", then its bytes
    ROOT/staging/<random>    objects being written
    ROOT/locks/<hex>         what compare-and-swap and delete of a key lock; 256 files at most

Digest and bytes share one file, so one link or rename publishes both. "~" is no character of a key: the file of "a" and
the folder of "a/b" never meet. The file system must know hard links, flock and case.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from taskmem.errors import UserError
from taskmem.files import fsync_directory, sha256_bytes
from taskmem.store.locks import acquire, locked, release
from taskmem.store.protocol import (
    AlreadyExists,
    Conflict,
    CorruptObject,
    KeyMissing,
    Stored,
    is_key_part,
    validate_key,
    validate_prefix,
)

_SUFFIX = "~"


class LocalStore:
    """`Store` in the folder `root`, which is created unless `read_only`; for the processes and threads of one machine.

    The etag is the content's hex SHA-256. A write that returned survives a power cut; one that was killed leaves the
    old object or the new one. Raises UserError if `root` cannot be used.
    """

    def __init__(self, root: Path, read_only: bool = False) -> None:
        self._objects = root / "objects"
        self._staging = root / "staging"
        self._locks = root / "locks"
        if read_only:
            if not self._objects.is_dir():
                raise UserError(f"{root}: holds no store; give the folder of one, or its URL")
            return
        try:
            for folder in (self._objects, self._staging, self._locks):
                folder.mkdir(parents=True, exist_ok=True)
            fsync_directory(root)
            fsync_directory(root.parent)
            self._sweep()
        except OSError as error:
            raise UserError(f"{root}: cannot hold a store ({error.strerror}); give a writable folder") from None

    def get(self, key: str) -> Stored:
        """See `Store.get`."""
        path = self._path(key)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            raise KeyMissing(key) from None
        header, _, data = raw.partition(b"\n")
        etag = sha256_bytes(data)
        if header != _header(etag):
            raise CorruptObject(key, str(path))
        return Stored(data, etag)

    def put_if_absent(self, key: str, data: bytes) -> str:
        """See `Store.put_if_absent`."""
        path = self._path(key)
        with self._staged(data) as (temporary, etag):
            path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    current = self._current(key)
                    if current is None:  # deleted since
                        continue
                    # The loser may rely on the winner's object as its own: it must be as durable.
                    self._sync(path)
                    raise AlreadyExists(key, current, same=current == etag) from None
                self._sync(path)
                return etag

    def compare_and_swap(self, key: str, data: bytes, expected: str | None) -> str:
        """See `Store.compare_and_swap`."""
        if expected is None:
            try:
                return self.put_if_absent(key, data)
            except AlreadyExists as taken:
                raise Conflict(key, taken.etag) from None
        path = self._path(key)
        with self._staged(data) as (temporary, etag), locked(self._lock(key)):
            current = self._current(key)
            if current != expected:
                raise Conflict(key, current)
            temporary.replace(path)
            self._sync(path)
            return etag

    def list(self, prefix: str) -> Iterator[str]:
        """See `Store.list`."""
        validate_prefix(prefix)
        return self._walk(prefix)

    def delete(self, key: str) -> None:
        """See `Store.delete`."""
        path = self._path(key)
        with locked(self._lock(key)):
            # The emptied folder stays: removing it would race with a writer that has just found it.
            with suppress(FileNotFoundError):
                path.unlink()
            if path.parent.exists():
                fsync_directory(path.parent)

    def _path(self, key: str) -> Path:
        validate_key(key)
        return self._objects / f"{key}{_SUFFIX}"

    def _lock(self, key: str) -> Path:
        return self._locks / sha256_bytes(key)[:2]

    def _current(self, key: str) -> str | None:
        try:
            return self.get(key).etag
        except KeyMissing:
            return None

    @contextmanager
    def _staged(self, data: bytes) -> Iterator[tuple[Path, str]]:
        """A durable file with the object's bytes, ready to be linked or renamed, and its etag."""
        etag = sha256_bytes(data)
        temporary = self._staging / uuid.uuid4().hex
        # The shared lock tells _sweep that somebody is writing.
        with locked(self._locks / "staging", shared=True):
            try:
                with temporary.open("xb") as handle:
                    handle.write(_header(etag) + b"\n")
                    handle.write(data)
                    handle.flush()
                    os.fsync(handle.fileno())
                yield temporary, etag
            finally:
                temporary.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what killed writers left; if somebody is writing, the next opening does it."""
        try:
            descriptor = acquire(self._locks / "staging", wait=False)
        except BlockingIOError:
            return
        try:
            for leftover in self._staging.iterdir():
                leftover.unlink()
        finally:
            release(descriptor)

    def _sync(self, path: Path) -> None:
        """Make the entry of `path` durable, and every folder above it, which another writer may have just made."""
        folder = path.parent
        while folder != self._objects:
            fsync_directory(folder)
            folder = folder.parent
        fsync_directory(self._objects)

    def _walk(self, prefix: str) -> Iterator[str]:
        # A folder's name ends in "/": sorted so, its keys come where the order of whole keys puts them.
        pending = [""]
        while pending:
            name = pending.pop()
            if name == "" or name.endswith("/"):
                pending.extend(sorted(self._children(name, prefix), reverse=True))
            else:
                yield name

    def _children(self, folder: str, prefix: str) -> Iterator[str]:
        with os.scandir(self._objects / folder) as entries:
            for entry in entries:
                is_folder = entry.is_dir()
                if not is_folder and not entry.name.endswith(_SUFFIX):
                    continue
                part = entry.name if is_folder else entry.name.removesuffix(_SUFFIX)
                name = f"{folder}{part}/" if is_folder else f"{folder}{part}"
                if is_key_part(part) and (name.startswith(prefix) or (is_folder and prefix.startswith(name))):
                    yield name


def _header(etag: str) -> bytes:
    return b"sha256 " + etag.encode()
