"""Run folders and caches: records are filtered, frames and whatever quotes the target are deleted, trunk states go."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from taskmem.erasure.contents import CACHE_ENTRY, NUMBERS, Erased, Eraser
from taskmem.erasure.dvc_objects import BELOW, Doomed, DvcObjects, Pairs
from taskmem.erasure.known import Known
from taskmem.erasure.objects import FolderObjects
from taskmem.erasure.stored import StoredObjects, local_objects
from taskmem.erasure.tombstones import Count
from taskmem.erasure.trees import clean_tree, gather, json_object, read_file
from taskmem.errors import UserError
from taskmem.files import atomic_write
from taskmem.progress import Note

_TRUNKS = re.compile(r"[0-9a-f]{64}\.safetensors")
_STORE = {"objects", "staging", "locks"}
_CACHE = "cache"


@dataclass
class Plan:
    """What goes from a folder: changed files by relative path, trunk states, objects of DVC's caches and of stores."""

    files: dict[str, Erased] = field(default_factory=dict)
    trunks: list[Path] = field(default_factory=list)
    caches: list[tuple[DvcObjects, Doomed]] = field(default_factory=list)
    stores: list[tuple[StoredObjects, list[str]]] = field(default_factory=list)
    entries: list[str] = field(default_factory=list)

    @property
    def count(self) -> Count:
        """All of it in numbers."""
        whole = [path for path, erased in self.files.items() if erased.data is None and not erased.sealed]
        records = sum(erased.records for erased in self.files.values() if erased.data is not None)
        count = Count(records=records, files=len(whole) + len(self.trunks) + len(self.entries))
        for _, doomed in self.caches:
            count = count.plus(doomed.count)
        return count.plus(Count(files=sum(len(keys) for _, keys in self.stores)))

    @property
    def sealed(self) -> list[str]:
        """Archives that could not be looked into."""
        inner = [name for _, doomed in self.caches for name in doomed.sealed]
        return [path for path, erased in self.files.items() if erased.sealed] + inner


class Folder:
    """One folder given to the erasure; files below `spared` belong to somebody else. UserError if it is not there."""

    def __init__(self, root: Path, spared: Path | None = None) -> None:
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; give one that is there")
        self.root = root
        self._spared = spared.resolve() if spared else None
        self._paths: dict[str, Path] = {}
        self._trunks: list[Path] = []
        self._caches: list[DvcObjects] = []
        self._stores: list[StoredObjects] = []
        self._walk()

    def gather(self, known: Known) -> None:
        """Take in what all records tell."""
        for name, path in self._paths.items():
            if not name.endswith(NUMBERS):
                gather(known, name, read_file(path))
        for cache in self._caches:
            cache.gather(known)
        for store in self._stores:
            store.gather(known)

    def plan(self, eraser: Eraser, pairs: Pairs) -> Plan:
        """What will go; `pairs` takes in the preferences that are met."""
        plan = Plan(files=dict(clean_tree(self._readers(), eraser)))
        for name, path in self._paths.items():
            if path.name.endswith("preferences.jsonl"):
                pairs.note(name, read_file(path), name in plan.files)
        if eraser.target.kind == "stream":
            # named by digests, so that nothing tells whose they are; they are computed again when needed
            plan.trunks = list(self._trunks)
        plan.caches = [(cache, doomed) for cache in self._caches if (doomed := cache.doomed(eraser, pairs)).objects]
        plan.stores = [(store, keys) for store in self._stores if (keys := store.doomed(eraser))]
        plan.entries = list(self._stale(plan.files))
        return plan

    def erase_quotes(self, eraser: Eraser, note: Note) -> None:
        """First what is known by its text alone, and entries of a run's cache whose artifacts change."""
        changed = dict(clean_tree(self._readers(), eraser))
        for name in list(self._stale(changed)):
            self._paths.pop(name).unlink(missing_ok=True)
            note(f"erased {name}")
        self._apply(dict(clean_tree(self._readers(), eraser, only_by_text=True)), note)

    def erase(self, eraser: Eraser, plan: Plan, note: Note) -> None:
        """Then everything else."""
        for cache, doomed in plan.caches:
            cache.erase(doomed.objects, note)
        for store, keys in plan.stores:
            store.erase(keys, note)
        self._apply(dict(clean_tree(self._readers(), eraser)), note)
        for path in plan.trunks:
            path.unlink(missing_ok=True)
            note(f"erased {path}")
        self._remove_emptied(eraser)

    def _apply(self, changed: Mapping[str, Erased], note: Note) -> None:
        for name, erased in changed.items():
            path = self._paths[name]
            if erased.sealed:
                continue
            if erased.data is None:
                path.unlink(missing_ok=True)
                del self._paths[name]
            else:
                mode = path.stat().st_mode
                atomic_write(path, erased.data)
                path.chmod(mode)
            note(f"erased from {path}")

    def _remove_emptied(self, eraser: Eraser) -> None:
        """Folders called after the stream whose clips are gone."""
        for path in sorted(self.root.rglob(eraser.target.name), reverse=True):
            if eraser.owns(f"{path.relative_to(self.root).as_posix()}/x") and path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    def _walk(self) -> None:
        for here, folders, files in os.walk(self.root):
            at = Path(here)
            relative = at.relative_to(self.root).as_posix()
            if self._spared and at.resolve().is_relative_to(self._spared):
                folders.clear()
                continue
            if set(folders) >= _STORE:
                self._stores.append(local_objects(at))
                folders[:] = [name for name in folders if name not in _STORE]
            if (at / BELOW).is_dir():
                self._caches.append(DvcObjects(FolderObjects(at / BELOW)))
                folders[:] = [name for name in folders if name != "files"]
            folders[:] = sorted(name for name in folders if name != ".git" and not (at / name).is_symlink())
            for name in sorted(files):
                path = at / name
                if path.is_symlink() or not path.is_file():
                    continue
                if _TRUNKS.fullmatch(name):
                    self._trunks.append(path)
                else:
                    self._paths[name if relative == "." else f"{relative}/{name}"] = path

    def _readers(self) -> dict[str, Callable[[], bytes]]:
        return {name: partial(read_file, path) for name, path in self._paths.items()}

    def _stale(self, changed: Mapping[str, Erased]) -> Iterator[str]:
        """Entries of a run's cache one of whose artifacts changes: what was made of it is not to be taken again."""
        for name, path in self._paths.items():
            if path.parent.name != _CACHE or path.suffix != ".json":
                continue
            entry = json_object(read_file(path))
            if entry is None or entry.keys() != CACHE_ENTRY or name in changed:
                continue
            artifacts = [value["artifact"] for value in entry["outputs"].values() if "artifact" in value]
            places = [path.parent.parent / artifact["uri"] for artifact in artifacts if artifact["inside"]]
            if any(self._paths[odd].is_relative_to(place) for odd in changed for place in places):
                yield name
