"""What DVC keeps, fetched from its remote into a folder of our own and held against its digests, byte by byte.

DVC only carries: it is told of nothing but digests, in files and settings that are written here. It never sees the lineage
repository's own.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import TypeAdapter

from taskmem.audit.history import History
from taskmem.audit.links import Problem
from taskmem.errors import UserError
from taskmem.files import atomic_write, sha256_bytes
from taskmem.lineage.dvc import CONFIG, REMOTE, SECONDS, known_remote, remote_url
from taskmem.lineage.graph import LOCK
from taskmem.lineage.tools import Said, run_tool
from taskmem.records import RelativePath

_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")
_SAFE = re.compile(r"[^\x00-\x1f\x7f'\"#;%\\]+")
_OTHERS = ("DVC_STUDIO", "DVC_EXP", "DVC_ROOT", "DVC_STAGE", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
_OBJECTS = "files/md5"
_PIECE = 1 << 20


@dataclass(frozen=True)
class Tracked:
    """A file or folder that DVC keeps: where it is in the repository, and its MD5, which ends in .dir for a folder."""

    path: str
    md5: str

    @property
    def is_folder(self) -> bool:
        """True if the object of this MD5 lists a folder's files."""
        return self.md5.endswith(".dir")


@dataclass(frozen=True)
class Item:
    """One file of what is tracked: its path in it ("" for a file itself), its MD5 and where its bytes are, once fetched."""

    name: str
    md5: str
    at: Path


def tracked_by(history: History, commit: str, place: str, name: str) -> Tracked | None:
    """What a commit says of the file or folder `name` of the folder `place`, None if nothing; UserError if it is malformed."""
    path = f"{place}/{name}"
    document = history.yaml(commit, f"{path}.dvc")
    if document is not None:
        return _tracked(_outs(document, path), path, name)
    stages = (history.yaml(commit, f"{place}/{LOCK}") or {}).get("stages")
    outs = [out for stage in _mappings(stages) for out in _outs(stage, path) if out.get("path") == name]
    return _tracked(outs, path, name) if outs else None


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value.values() if isinstance(each, Mapping)] if isinstance(value, Mapping) else []


def _outs(document: Mapping[str, Any], path: str) -> list[Mapping[str, Any]]:
    outs = document.get("outs", [])
    if not isinstance(outs, list) or not all(isinstance(out, Mapping) for out in outs):
        raise _malformed(path)
    return outs


def _tracked(outs: Sequence[Mapping[str, Any]], path: str, name: str) -> Tracked:
    md5 = str(outs[0].get("md5")) if len(outs) == 1 else ""
    if not _MD5.fullmatch(md5) or outs[0].get("hash") != "md5" or outs[0].get("path") != name:
        raise _malformed(path)
    return Tracked(path, md5)


def _malformed(path: str) -> UserError:
    return UserError(f"lineage: {path}: not tracked as DVC writes it; mend the repository")


def remote_of(history: History) -> str:
    """The DVC remote that the repository names; UserError if it names none, or one that is no bucket and no folder."""
    url = known_remote(history.read(history.head, CONFIG))
    if url is None:
        raise UserError(f"{history.shown}: {CONFIG} names no remote {REMOTE}; mend the repository")
    checked = remote_url(url)
    if not _SAFE.fullmatch(checked):
        raise UserError(f"{history.shown}: {CONFIG}: the remote's URL has characters of no URL; mend the repository")
    return checked


class Data:
    """Objects of the DVC remote `url`, fetched to the new folder `folder`. `erased` are the MD5s that an erasure removed."""

    def __init__(self, url: str, folder: Path, erased: Collection[str] = ()) -> None:
        self.url, self._folder, self._erased = url, folder, erased
        self._checked: dict[str, bool] = {}
        (folder / ".dvc").mkdir(parents=True)
        config = f"[core]\n    no_scm = true\n    analytics = false\n    remote = {REMOTE}\n"
        (folder / CONFIG).write_text(f'{config}[\'remote "{REMOTE}"\']\n    url = "{url}"\n', encoding="utf-8")

    def fetch(self, wanted: Sequence[Tracked]) -> None:
        """Fetch all of `wanted` that can be had; what cannot is found by `problems`. UserError if the remote gives nothing."""
        if urlsplit(self.url).scheme == "s3":
            self._pull([tracked for tracked in wanted if not self._here(tracked)])
        else:
            self._take(wanted)

    def _here(self, tracked: Tracked) -> bool:
        return self._at(tracked.md5).is_file() and not self.problems(tracked)

    def _pull(self, wanted: Sequence[Tracked]) -> None:
        if not wanted:
            return
        for tracked in wanted:
            out = {"md5": tracked.md5, "hash": "md5", "path": _told(tracked)}
            atomic_write(self._folder / f"{_told(tracked)}.dvc", json.dumps({"outs": [out]}))
        said = self._dvc("fetch", *dict.fromkeys(f"{_told(tracked)}.dvc" for tracked in wanted))
        if said.code and not self._cache.is_dir():
            raise UserError(f"remote {self.url}: {said.reason}; check its URL and your credentials")
        for tracked in wanted:
            if tracked.is_folder and not self._at(tracked.md5).is_file():
                self._restore_list(tracked)

    def _take(self, wanted: Sequence[Tracked]) -> None:
        """Take objects out of a folder by hand: DVC would delete those there whose bytes are not what they should be."""
        for tracked in wanted:
            self._link(tracked.md5)
            whole = self._problem(tracked.path, tracked.md5) is None
            for item in self.items(tracked) if whole and tracked.is_folder else ():
                self._link(item.md5)

    def _link(self, md5: str) -> None:
        source, at = Path(self.url, _OBJECTS, md5[:2], md5[2:]), self._at(md5)
        if source.is_file() and not at.exists():
            _hard_link(source, at)

    def _restore_list(self, tracked: Tracked) -> None:
        """Write the list of a folder of which DVC could not fetch every file, so that the missing ones have a name."""
        said = self._dvc("list", ".", _told(tracked), "-R", "--dvc-only", "--show-hash", "--json")
        if said.code:
            return
        entries = [{"md5": str(entry["md5"]), "relpath": str(entry["path"])} for entry in json.loads(said.out)]
        data = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]), sort_keys=True).encode()
        if f"{hashlib.md5(data, usedforsecurity=False).hexdigest()}.dir" == tracked.md5:
            atomic_write(self._at(tracked.md5), data)

    def _dvc(self, verb: str, *arguments: str) -> Said:
        aside = self._folder / "aside"
        places = {
            f"DVC_{n}": str(aside / n.lower()) for n in ("SITE_CACHE_DIR", "GLOBAL_CONFIG_DIR", "SYSTEM_CONFIG_DIR")
        }
        variables = {**places, "DVC_NO_ANALYTICS": "1", "PYTHONUTF8": "1"}
        command = [sys.executable, "-P", "-m", "dvc", verb, *arguments]
        return run_tool(command, self._folder, variables, SECONDS, without=_OTHERS)

    def problems(self, tracked: Tracked) -> dict[str, Problem]:
        """What is wrong with a fetched thing: by path in the repository, each object that is not as it should be."""
        listing = self._problem(tracked.path, tracked.md5)
        if listing is not None:
            return {tracked.path: listing}
        paths = {f"{tracked.path}/{item.name}" if item.name else tracked.path: item.md5 for item in self.items(tracked)}
        found = {path: self._problem(path, md5) for path, md5 in paths.items()}
        return {path: problem for path, problem in found.items() if problem is not None}

    def items(self, tracked: Tracked) -> list[Item]:
        """The files of a fetched thing, whole or not; none if a folder's own list is missing. UserError if it is no such list."""
        at = self._at(tracked.md5)
        if not tracked.is_folder:
            return [Item("", tracked.md5, at)]
        if not at.is_file():
            return []
        try:
            listed = [(entry["relpath"], entry["md5"]) for entry in json.loads(at.read_bytes())]
            names = [TypeAdapter(RelativePath).validate_python(name, strict=True) for name, _ in listed]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise self._no_list(tracked) from None
        if len(set(names)) != len(names) or not all(_MD5.fullmatch(str(m)) and "." not in str(m) for _, m in listed):
            raise self._no_list(tracked)
        return [Item(name, md5, self._at(md5)) for name, md5 in listed]

    def sha256(self, tracked: Tracked, name: str = "") -> str | None:
        """The hex SHA-256 of a file's bytes as they came, None if it is not there."""
        item = next((item for item in self.items(tracked) if item.name == name), None)
        return _digest(item.at, "sha256") if item is not None and item.at.is_file() else None

    def lay(self, tracked: Tracked, target: Path) -> Path:
        """The sound files of a fetched thing at `target`, a new folder or file, hard-linked; returns it."""
        for item in self.items(tracked):
            if self._problem(tracked.path, item.md5) is None:
                _hard_link(item.at, target / item.name if item.name else target)
        return target

    @property
    def _cache(self) -> Path:
        return self._folder / ".dvc" / "cache" / _OBJECTS

    def _at(self, md5: str) -> Path:
        return self._cache / md5[:2] / md5[2:]

    def _problem(self, path: str, md5: str) -> Problem | None:
        at, where = self._at(md5), f"{path} ({_OBJECTS}/{md5[:2]}/{md5[2:]} in {self.url})"
        if not at.is_file():
            if md5 in self._erased:
                return Problem("erased", where, "erased, see the tombstone")
            return Problem("missing", where, "the object is not in the remote")
        if md5 not in self._checked:
            self._checked[md5] = _digest(at, "md5") == md5.removesuffix(".dir")
        return (
            None if self._checked[md5] else Problem("damaged", where, "the object holds other bytes than its name says")
        )

    def _no_list(self, tracked: Tracked) -> UserError:
        return UserError(f"{tracked.path}: its object {tracked.md5} in {self.url} lists no folder's files; restore it")


def _told(tracked: Tracked) -> str:
    """What DVC is told that a thing is called."""
    return sha256_bytes(tracked.md5)[:16]


def _hard_link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _digest(path: Path, kind: str) -> str:
    digest = hashlib.new(kind, usedforsecurity=kind != "md5")
    with path.open("rb") as handle:
        while piece := handle.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
