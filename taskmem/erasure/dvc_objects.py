"""What DVC keeps in a remote or a cache: objects named by the MD5 of their bytes, and lists of a folder's files.

<xx>/<yyy...>        the bytes of a file
<xx>/<yyy...>.dir    [{"md5": ..., "relpath": ...}, ...], in the order of the paths
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from taskmem.erasure.contents import NUMBERS, Eraser
from taskmem.erasure.known import Known
from taskmem.erasure.objects import Objects
from taskmem.erasure.tombstones import Count
from taskmem.erasure.trees import clean_tree, gather, is_seal, reader
from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.progress import Note

_KEY = re.compile(r"([0-9a-f]{2})/([0-9a-f]{30}(?:\.dir)?)")
BELOW = "files/md5"
PAIRS = "preferences.jsonl"


@dataclass
class Pairs:
    """Digests of all preference files that were seen, and of those that rest on the target."""

    seen: set[str] = field(default_factory=set)
    resting: set[str] = field(default_factory=set)

    def note(self, path: str, data: bytes, rests: bool) -> None:
        """Take in a file, if it holds preferences."""
        if path.rpartition("/")[2] == PAIRS:
            self.seen.add(sha256_bytes(data))
            if rests:
                self.resting.add(sha256_bytes(data))


@dataclass
class Doomed:
    """Objects to be erased in this order, and those that could not be looked into."""

    objects: list[str] = field(default_factory=list)
    count: Count = field(default_factory=Count)
    sealed: list[str] = field(default_factory=list)


class DvcObjects:
    """The objects of DVC at `objects`."""

    def __init__(self, objects: Objects) -> None:
        self.objects, self.where = objects, objects.where
        self.names = {"".join(found.groups()): key for key in objects.keys() if (found := _KEY.fullmatch(key))}  # noqa: SIM118 - it is no mapping
        self._lists: dict[str, dict[str, str]] = {}

    def read(self, name: str) -> bytes:
        """The bytes of an object; UserError if it is missing."""
        return self.objects.read(f"{name[:2]}/{name[2:]}")

    def files_of(self, name: str) -> dict[str, str]:
        """The files of a folder by relative path; UserError if the object lists none."""
        if name not in self._lists:
            try:
                self._lists[name] = {str(entry["relpath"]): str(entry["md5"]) for entry in json.loads(self.read(name))}
            except (ValueError, KeyError, TypeError):
                where = f"{self.where}/{name[:2]}/{name[2:]}"
                raise UserError(f"{where}: lists no folder's files; restore the object from a backup") from None
        return self._lists[name]

    def add(self, data: bytes, suffix: str = "") -> str:
        """Keep new bytes; returns their name."""
        name = hashlib.md5(data, usedforsecurity=False).hexdigest() + suffix
        self.objects.write(f"{name[:2]}/{name[2:]}", data)
        return name

    def add_list(self, files: Mapping[str, str]) -> str:
        """Keep the list of a folder's files, byte for byte as DVC does; returns its name."""
        entries = [{"md5": files[path], "relpath": path} for path in sorted(files)]
        return self.add(json.dumps(entries, sort_keys=True).encode(), ".dir")

    def gather(self, known: Known) -> None:
        """Take in what all records tell."""
        seen = set()
        for folder in self._folders():
            for path, name in self.files_of(folder).items():
                if name in self.names and not path.endswith(NUMBERS) and (name, path.rpartition("/")[2]) not in seen:
                    seen.add((name, path.rpartition("/")[2]))
                    gather(known, path, self.read(name))
        for name in self._alone():
            gather(known, name, self.read(name))

    def doomed(self, eraser: Eraser, pairs: Pairs) -> Doomed:
        """Which objects have the target in them; `pairs` takes in the preferences that are met.

        What is known by its text alone comes first, the lists that tell the files' names last: a killed erasure finds the rest.
        """
        found = Doomed()
        by_text, by_record, lists, others = set[str](), set[str](), set[str](), set[str]()
        records = 0
        for folder in self._folders():
            files = {path: name for path, name in self.files_of(folder).items() if name in self.names}
            # a seal has nothing of the target in it
            changed = {path: e for path, e in clean_tree(self._readers(files), eraser) if not is_seal(path, files)}
            for path, name in files.items():
                erased = changed.get(path)
                if path.endswith(PAIRS):
                    pairs.note(path, self.read(name), bool(erased and erased.records))
                if eraser.owns(path):
                    lists.add(folder)
                if erased is None:
                    others.add(name)
                elif erased.sealed:
                    found.sealed.append(f"{path} ({name})")
                elif name not in by_text | by_record:
                    records += erased.records
                    (by_text if erased.by_text else by_record).add(name)
        for name in self._alone():
            erased = eraser.clean(name, data := self.read(name), None)
            if erased.data != data:
                records += erased.records
                (by_text if erased.by_text else by_record).add(name)
        # the same bytes may be somebody else's too, as an empty file is
        ordered = [*sorted(by_text - others), *sorted(by_record - others - by_text), *sorted(lists)]
        return Doomed(ordered, Count(records=records, files=len(ordered)), found.sealed)

    def erase(self, names: Sequence[str], note: Note) -> None:
        """Erase objects one by one; `note` is told of each."""
        for name in names:
            self.objects.erase(f"{name[:2]}/{name[2:]}")
            note(f"erased {name} in {self.where}")

    def _folders(self) -> list[str]:
        return sorted(name for name in self.names if name.endswith(".dir"))

    def _alone(self) -> list[str]:
        """Objects that are no folder's."""
        listed = {name for folder in self._folders() for name in self.files_of(folder).values()}
        return sorted(name for name in self.names if not name.endswith(".dir") and name not in listed)

    def _readers(self, files: Mapping[str, str]) -> dict[str, Callable[[], bytes]]:
        return {path: reader(self.read, name) for path, name in files.items()}
