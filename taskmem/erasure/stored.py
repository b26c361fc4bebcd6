"""The target in an object store: kept candidates of its contexts, and verdicts that quote it."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from taskmem.erasure.contents import Eraser
from taskmem.erasure.known import Known
from taskmem.erasure.objects import FolderObjects, Objects, objects_at
from taskmem.erasure.target import Target
from taskmem.erasure.trees import gather
from taskmem.progress import Note
from taskmem.store import LocalStore, open_store

ROLLOUTS, REGISTRY, VERDICTS = "rollouts/", "registry/", "verdicts"


class Keys(Protocol):
    """A store's objects, with what a bucket keeps of old ones."""

    where: str

    @property
    def kept_versions(self) -> bool:
        """True if old versions could not be looked at."""
        ...

    def keys(self) -> Iterable[str]:
        """All keys."""
        ...

    def read(self, key: str) -> bytes:
        """The bytes that were stored."""
        ...

    def erase(self, key: str) -> None:
        """Remove an object and all its versions."""
        ...


class _Local:
    kept_versions = False

    def __init__(self, root: Path) -> None:
        self._store, self._root, self.where = LocalStore(root), root, str(root)

    def keys(self) -> Iterable[str]:
        return list(self._store.list(""))

    def read(self, key: str) -> bytes:
        return self._store.get(key).data

    def erase(self, key: str) -> None:
        self._store.delete(key)
        # the store keeps emptied folders, and one of them is called after the stream
        with suppress(OSError):
            for folder in (self._root / "objects" / key).parents[:2]:
                folder.rmdir()


class _Sealed:
    """Objects of an `S3Store` without the line that it puts before the bytes."""

    def __init__(self, objects: Objects) -> None:
        self._objects, self.where = objects, objects.where

    @property
    def kept_versions(self) -> bool:
        return self._objects.kept_versions

    def keys(self) -> Iterable[str]:
        return self._objects.keys()

    def read(self, key: str) -> bytes:
        return self._objects.read(key).partition(b"\n")[2]

    def erase(self, key: str) -> None:
        self._objects.erase(key)


class StoredObjects:
    """The objects of a store that may have something of a target in them."""

    def __init__(self, keys: Keys) -> None:
        self.objects, self.where = keys, keys.where

    def gather(self, known: Known) -> None:
        """Take in what the candidates of a stream tell."""
        for key in self._of(known.target):
            gather(known, "rollouts.jsonl", self.objects.read(key))

    def doomed(self, eraser: Eraser) -> list[str]:
        """The keys to be erased; verdicts first, which are known by their text alone."""
        verdicts = [
            key for key in self._keys(REGISTRY) if key.split("/")[2:3] == [VERDICTS] and self._quotes(key, eraser)
        ]
        return [*verdicts, *self._of(eraser.target)]

    def quoted(self, eraser: Eraser) -> list[str]:
        """The keys of what quotes the target and cannot go: manifests, pointers and their logs."""
        others = [key for key in self._keys(REGISTRY) if key.split("/")[2:3] not in ([VERDICTS], ["files"])]
        return [key for key in others if self._quotes(key, eraser)]

    def erase(self, keys: Sequence[str], note: Note) -> None:
        """Erase objects one by one; `note` is told of each."""
        for key in keys:
            self.objects.erase(key)
            note(f"erased {key} in {self.where}")

    def _keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.objects.keys() if key.startswith(prefix))  # noqa: SIM118 - it is no mapping

    def _of(self, target: Target) -> list[str]:
        if target.kind == "source" or target.environment is not None:
            return []
        return [key for key in self._keys(ROLLOUTS) if key.split("/")[3:4] == [target.name]]

    def _quotes(self, key: str, eraser: Eraser) -> bool:
        return eraser.quotes(self.objects.read(key).decode(errors="replace"))


def local_objects(root: Path) -> StoredObjects:
    """The objects of a store in a folder."""
    return StoredObjects(_Local(root))


def stored_objects(url: str) -> StoredObjects:
    """The objects of the store at `url`; UserError as `open_store`."""
    open_store(url)  # refuses what is no store
    objects = objects_at(url)
    return StoredObjects(_Local(objects.root) if isinstance(objects, FolderObjects) else _Sealed(objects))
