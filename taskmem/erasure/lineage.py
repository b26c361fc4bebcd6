"""The target in the lineage repository: every commit's data, and a head that stays whole without it."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from taskmem.erasure.contents import Eraser
from taskmem.erasure.dvc_objects import BELOW, DvcObjects
from taskmem.erasure.objects import objects_at
from taskmem.erasure.trees import clean_tree, reader
from taskmem.errors import UserError
from taskmem.files import atomic_write
from taskmem.lineage.dvc import CONFIG, known_remote, remote_url
from taskmem.lineage.git import SECONDS, Git, PushRejectedError
from taskmem.lineage.graph import LOCK, to_yaml
from taskmem.lineage.tools import run_tool
from taskmem.progress import Note
from taskmem.records import parse_line
from taskmem.registry import Manifest

ATTEMPTS = 20
_OTHERS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT", "GIT_ALTERNATE", "GIT_NAMESPACE", "GIT_PREFIX")


class Lineage:
    """The lineage repository at `url`, cloned to the new folder `folder`. UserError if it cannot be reached or is none."""

    def __init__(self, url: str, folder: Path) -> None:
        self.git = Git.clone(url, folder, create=False)
        self.shown = self.git.remote.shown
        self._blobs = dict(self._listed())
        self.remotes = [DvcObjects(objects_at(f"{at.rstrip('/')}/{BELOW}")) for at in self._remote_urls()]

    def manifests(self) -> Iterator[Manifest]:
        """The manifest of every version that a run published."""
        for text in self._texts("/manifest.json"):
            yield parse_line(text, Manifest, f"{self.shown}: manifest.json")

    def rewrite_head(self, eraser: Eraser, tombstone: str, note: Note) -> bool:
        """One commit on top of the head whose data is without the target, its objects in the remote first; False if it is so.

        A run that is recorded meanwhile is taken up. UserError if the remote or the repository cannot be written.
        """
        for _ in range(ATTEMPTS):
            head = self.git.head()
            if head is None:
                return False
            files = _Head(self, head).without(eraser)
            note("objects of the head")
            if not files:
                return False
            for path, text in files.items():
                atomic_write(self.git.folder / path, text)
            tree = self.git.stage(head, list(files), list(files))
            message = f"Erase {tombstone[:16]}\n\nErased: {tombstone}\n"
            commit = self.git.commit(tree, head, message)
            try:
                self.git.push(commit, {})
            except PushRejectedError:
                self.git.fetch()
                if self.git.head() == head:
                    raise
                continue
            self.git.fetch()
            note("head pushed")
            return True
        raise UserError(f"{self.shown}: {ATTEMPTS} runs came first; erase again")

    def needed(self) -> set[str]:
        """The objects that the head needs."""
        head = self.git.head()
        return _Head(self, head).objects() if head else set()

    def head_changes(self, eraser: Eraser) -> int:
        """How many files and folders that DVC keeps of the head have something of the target."""
        head = self.git.head()
        return len(_Head(self, head).changes(eraser)) if head else 0

    def say(self, *arguments: str, given: str = "") -> str:
        """What git says in the clone; UserError if it fails."""
        said = run_tool(["git", *arguments], self.git.folder, {}, SECONDS, given, without=_OTHERS)
        if said.code:
            raise UserError(f"{self.shown}: git {arguments[0]}: {said.reason}; give a lineage repository")
        return said.out

    def remote(self) -> DvcObjects:
        """The remote of the head."""
        return self.remotes[-1]

    def _remote_urls(self) -> list[str]:
        """Of all commits; the head's last."""
        head = self.git.head()
        now = known_remote(self.git.read(head, CONFIG)) if head else None
        if head is not None and now is None:
            raise UserError(f"{self.shown}: its {CONFIG} names no remote; give a lineage repository")
        urls = [known_remote(text.encode()) for text in self._texts(CONFIG)]
        earlier = {remote_url(url) for url in urls if url} - {remote_url(now) if now else ""}
        return [*sorted(earlier), *([remote_url(now)] if now else [])]

    def _listed(self) -> Iterator[tuple[str, str]]:
        if self.git.head() is None:
            return
        for line in self.say("rev-list", "--objects", "--all").splitlines():
            identity, _, path = line.partition(" ")
            yield identity, path

    def _texts(self, suffix: str) -> list[str]:
        """The contents that files called so ever had."""
        wanted = [identity for identity, path in self._blobs.items() if f"/{path}".endswith(suffix)]
        if not wanted:
            return []
        said = self.say("cat-file", "--batch", given="".join(f"{identity}\n" for identity in wanted)).encode()
        texts = []
        for _ in wanted:
            header, _, said = said.partition(b"\n")
            size = int(header.rpartition(b" ")[2])
            texts.append(said[:size].decode())
            said = said[size + 1 :]
        return texts


class _Head:
    """One commit's files that name what DVC keeps: *.dvc and dvc.lock."""

    def __init__(self, lineage: Lineage, commit: str) -> None:
        self._lineage, self._commit, self._remote = lineage, commit, lineage.remote()
        names = lineage.say("ls-tree", "-r", "--name-only", "-z", commit).split("\0")
        self._documents: dict[str, Any] = {
            name: yaml.safe_load(lineage.git.read(commit, name) or b"")
            for name in names
            if name.endswith(".dvc") or name.rpartition("/")[2] == LOCK
        }

    def without(self, eraser: Eraser) -> dict[str, str]:
        """The new text of every file that changes; what they name is in the remote by then."""
        new = {name: self._kept(name, changed) for name, changed in self.changes(eraser).items()}
        texts = {}
        for path, document in self._documents.items():
            before = to_yaml(document)
            for out in _outs(document):
                if out["md5"] in new:
                    name, larger, files = new[out["md5"]]
                    out.update({"md5": name, "size": out["size"] + larger})
                    out.update({"nfiles": files} if "nfiles" in out else {})
            if to_yaml(document) != before:
                texts[path] = to_yaml(document)
        return texts

    def objects(self) -> set[str]:
        """Everything it needs of the remote."""
        named = {out["md5"] for document in self._documents.values() for out in _outs(document)}
        folders = [name for name in named if name.endswith(".dir")]
        return named | {file for folder in folders for file in self._remote.files_of(folder).values()}

    def changes(self, eraser: Eraser) -> dict[str, dict[str, bytes | None]]:
        """By object of the head: the files in it that change ("" for a file itself), None for those that go."""
        found: dict[str, dict[str, bytes | None]] = {}
        for path, document in self._documents.items():
            for out in _outs(document):
                if out["md5"] not in found:
                    place = f"{path.rpartition('/')[0]}/{out['path']}"
                    found[out["md5"]] = self._changed(out["md5"], place, self._environment(path), eraser)
        return {name: changed for name, changed in found.items() if changed}

    def _changed(self, name: str, place: str, environment: str | None, eraser: Eraser) -> dict[str, bytes | None]:
        if not name.endswith(".dir"):
            data = self._remote.read(name)
            erased = eraser.clean(place, data, environment)
            return {"": erased.data or b""} if erased.data != data else {}
        files = self._remote.files_of(name)
        return {path: e.data for path, e in clean_tree(self._readers(files), eraser, environment) if not e.sealed}

    def _kept(self, name: str, changed: Mapping[str, bytes | None]) -> tuple[str, int, int]:
        """Put what changes into the remote; the new object's name, how many bytes larger it is, and how many files it has."""
        if "" in changed:
            data = changed[""] or b""
            return self._remote.add(data), len(data) - len(self._remote.read(name)), 1
        files, larger = dict(self._remote.files_of(name)), 0
        for path, new in changed.items():
            larger += len(new or b"") - len(self._remote.read(files[path]))
            if new is None:
                del files[path]
            else:
                files[path] = self._remote.add(new)
        return self._remote.add_list(files), larger, len(files)

    def _environment(self, path: str) -> str | None:
        """Whose folder a file is in."""
        parts = path.split("/")
        if parts[0] != "environments" or len(parts) < 3:
            return None
        outcome = self._lineage.git.read(self._commit, f"environments/{parts[1]}/outcome.json")
        found = json.loads(outcome).get("environment") if outcome else None
        return found if isinstance(found, str) else None

    def _readers(self, files: Mapping[str, str]) -> dict[str, Callable[[], bytes]]:
        return {path: reader(self._remote.read, name) for path, name in files.items()}


def _outs(document: Any) -> Iterator[dict[str, Any]]:
    """Every file or folder with its digest that a .dvc file or a dvc.lock names."""
    if isinstance(document, dict):
        if isinstance(document.get("md5"), str) and isinstance(document.get("path"), str):
            yield document
        for inner in document.values():
            yield from _outs(inner)
    elif isinstance(document, list):
        for inner in document:
            yield from _outs(inner)
