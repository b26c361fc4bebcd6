"""The trunk cache on disk: one safetensors file per entry, named by its key, shared by all environments of one policy.

It can be thrown away at any time. An entry is written beside and renamed, carries its key and the SHA-256 of its tensors, and
both are checked before it is used: what is cut off, changed or in another's place is reported, removed and built again.
"""

import errno
import hashlib
import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from transformers import __version__ as transformers_version

from taskmem.errors import UserError
from taskmem.files import atomic_write, canonical_json, sha256_bytes, sweep
from taskmem.records import one_line
from taskmem.store.locks import locked

Tensors = dict[str, torch.Tensor]
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SEAL = "taskmem"
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class TrunkKey:
    """What an entry depends on: digest of the policy, steer layer, dtype, digest of the context as the policy reads it.

    `candidate` is the digest of a completion's tokens, None for the prompt itself.
    """

    policy: str
    layer: int
    dtype: str
    context: str
    candidate: str | None = None

    @property
    def document(self) -> str:
        """The key as it stands in the entry; another version of transformers may compute other states."""
        return canonical_json({**asdict(self), "format": 1, "transformers": transformers_version})

    @property
    def file(self) -> str:
        """The entry's file name."""
        return sha256_bytes(self.document) + _SUFFIX


class TrunkCache:
    """The entries below `folder`, at most `max_bytes` of them; the least recently used go first.

    Several processes may share a folder. What one of them has opened stays readable to it when another evicts it.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.damaged: list[str] = []
        self._mine: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                sweep(folder)
        except OSError as error:
            raise UserError(f"{folder}: cannot hold the trunk cache ({error.strerror}); give another folder") from None

    def get(self, key: TrunkKey) -> Tensors | None:
        """The entry's tensors, mapped from the file, or None if it is missing or damaged; a damaged one is removed."""
        path = self.folder / key.file
        try:
            tensors = _read(path, key)
        except FileNotFoundError:
            return None
        except ValueError as damage:
            self.damaged.append(key.file)
            print(f"{path}: damaged ({damage}); it is built again", file=sys.stderr)
            path.unlink(missing_ok=True)
            return None
        with suppress(FileNotFoundError):  # another process has just evicted it, which takes nothing from this one
            os.utime(path)  # the time of last use is what eviction goes by
        self._mine.add(key.file)
        return tensors

    def put(self, key: TrunkKey, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """Write an entry and give it as it is read back, evicting others if needed.

        UserError if the disk or the bound is full; nothing is left half-written.
        """
        ordered = {name: tensors[name].contiguous() for name in sorted(tensors)}
        data = save(ordered, metadata={_SEAL: _seal(key, ordered)})
        try:
            with self._locked():
                self._make_room(len(data))
                atomic_write(self.folder / key.file, data)
                self._mine.add(key.file)
                return _read(self.folder / key.file, key)
        except ValueError as damage:
            raise UserError(f"{self.folder}: does not give back what was written ({damage}); check the disk") from None
        except OSError as error:
            what = f"no room for {len(data)} bytes of trunk states" if error.errno in _FULL else "cannot be written"
            raise UserError(
                f"{self.folder}: {what} ({error.strerror}); free space there, or put the trunk cache elsewhere"
            ) from None

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self.folder / ".lock")

    def _make_room(self, size: int) -> None:
        """Evict until `size` more bytes fit. The lock is held."""
        # counted in a file, for looking at every entry each time would take longer with each; it may be too high, never too low
        counter = self.folder / ".size"
        text = counter.read_text(errors="replace") if counter.exists() else ""
        used = int(text) if text.isdecimal() and len(text) < 20 else None
        if used is None or used + size > self.max_bytes:
            used = self._evict(size)
        counter.write_text(str(used + size))

    def _evict(self, size: int) -> int:
        """Remove the least recently used entries until `size` more bytes fit; the bytes that are left."""
        entries = [(path, path.stat()) for path in self.folder.glob(f"*{_SUFFIX}")]
        used = sum(stat.st_size for _, stat in entries)
        for path, stat in sorted(entries, key=lambda entry: (entry[1].st_mtime_ns, entry[0].name)):
            # what this run needs is not worth evicting for what it needs as well
            if used + size > self.max_bytes and path.name not in self._mine:
                path.unlink()
                used -= stat.st_size
        if used + size > self.max_bytes:
            raise UserError(
                f"{self.folder}: this run needs {used + size} bytes of trunk states, phase_two.trunk_cache_bytes is "
                f"{self.max_bytes}; raise it"
            )
        return used


def _read(path: Path, key: TrunkKey) -> Tensors:
    """ValueError saying what is wrong with a damaged entry."""
    try:
        with safe_open(path, framework="pt") as file:
            sealed = (file.metadata() or {}).get(_SEAL)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except SafetensorError as error:
        raise ValueError(one_line(str(error))) from None
    if sealed != _seal(key, tensors):
        raise ValueError("it holds another entry, or its bytes have changed")
    return tensors


def _seal(key: TrunkKey, tensors: Mapping[str, torch.Tensor]) -> str:
    # one value, for safetensors writes several in any order
    return canonical_json({"key": key.document, "sha256": _digest(tensors)})


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hex SHA-256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
