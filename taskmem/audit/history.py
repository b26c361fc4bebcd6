"""The lineage repository's history: its commits, tags and files, read one by one. Nothing of it is checked out or run."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from taskmem.errors import UserError
from taskmem.files import canonical_json
from taskmem.lineage.git import SECONDS, Git
from taskmem.lineage.tools import Said, run_tool
from taskmem.records import one_line

LARGEST = 64 << 20  # characters of a file that is read at all
_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# a local repository needs no settings, hooks or filters of the machine's
_QUIET = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_TERMINAL_PROMPT": "0"}
_OTHERS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT", "GIT_ALTERNATE", "GIT_NAMESPACE", "GIT_CONFIG")


class _Reader(yaml.SafeLoader):
    """SafeLoader without aliases: a file of a stranger's could grow a billion nodes from a few."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """A node; ComposerError for an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not used here", self.peek_event().start_mark)
        return super().compose_node(parent, index)


@dataclass(frozen=True)
class Tag:
    """A tag as it stands: the commit it leads to (None for what is no commit), and its message if it is annotated."""

    name: str
    commit: str | None
    message: str | None


class History:
    """A clone of the lineage repository at `url` in the new folder `folder`, none of its files laid out.

    UserError for a repository that cannot be reached, and for a file that is not what the lineage's writer writes.
    """

    def __init__(self, url: str, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._git = Git.clone(url, folder, create=False)  # an auditor leaves nothing behind
        self.shown = self._git.remote.shown
        head = self._git.head()
        if head is None:
            raise UserError(f"{self.shown}: holds no commit; give the repository that lineage_record writes to")
        self.head = head

    def tag(self, name: str) -> Tag | None:
        """The tag `name`, None if there is none."""
        ref = f"refs/tags/{name}"
        if self._run("rev-parse", "--quiet", "--verify", ref).code:
            return None
        peeled = self._run("rev-parse", "--quiet", "--verify", f"{ref}^{{commit}}").out.strip() or None
        annotated = self._say("cat-file", "-t", ref) == "tag"
        return Tag(name, peeled, self._say("for-each-ref", "--format=%(contents)", ref) if annotated else None)

    def contains(self, commit: str) -> bool:
        """True if `commit` is the branch's head or one of those before it."""
        return self._run("merge-base", "--is-ancestor", commit, self.head).code == 0

    def promoted(self, name: str) -> str | None:
        """The first commit whose trailers promote the adapter `name`, None if there is none."""
        return self._git.trailers(self.head, "Promoted").get(name)

    def having(self, data: bytes) -> str | None:
        """The first commit that holds a file of these bytes below environments/, None if there is none."""
        blob = self._say("hash-object", "--stdin", given=data.decode(errors="surrogateescape"))
        said = self._say("log", f"--find-object={blob}", "--format=%H", self.head, "--", "environments")
        return _last(said)

    def naming(self, text: str) -> str | None:
        """The first commit whose run.json holds `text`, None if there is none."""
        said = self._say("log", f"-S{text}", "--format=%H", self.head, "--", "run.json")
        return _last(said)

    def trailers(self, commit: str) -> dict[str, list[str]]:
        """The trailers of a commit's message by key."""
        found: dict[str, list[str]] = {}
        for line in self._say("log", "-1", "--format=%(trailers:only,unfold)", commit).splitlines():
            key, colon, value = line.partition(": ")
            if colon:
                found.setdefault(key, []).append(value)
        return found

    def time(self, commit: str) -> str:
        """When a commit was made, ISO 8601."""
        return self._say("log", "-1", "--format=%cI", commit)

    def read(self, commit: str, path: str) -> bytes | None:
        """A file of a commit, None if it is not there."""
        if not _ID.fullmatch(commit):
            raise UserError(f"{self.shown}: commit {one_line(commit)[:80]}: not a commit's id; mend the repository")
        data = self._git.read(commit, path)
        if data is not None and len(data) > LARGEST:
            raise UserError(f"{self._at(commit, path)}: {len(data)} bytes, which nothing here has; mend the repository")
        return data

    def json(self, commit: str, path: str) -> dict[str, Any] | None:
        """A JSON object of a commit, None if there is no such file; UserError for anything else."""
        data = self.read(commit, path)
        if data is None:
            return None
        try:
            value = json.loads(data)
            canonical_json(value)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{self._at(commit, path)}: not valid JSON ({one_line(str(error))}); mend the repository"
            ) from None
        return self._mapping(value, commit, path)

    def yaml(self, commit: str, path: str) -> dict[str, Any] | None:
        """A YAML mapping of a commit, None if there is no such file; UserError for anything else."""
        data = self.read(commit, path)
        if data is None:
            return None
        try:
            value = yaml.load(data, Loader=_Reader)  # noqa: S506 - a SafeLoader
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            why = getattr(error, "problem", None) or type(error).__name__
            raise UserError(
                f"{self._at(commit, path)}: not valid YAML ({one_line(why)}); mend the repository"
            ) from None
        return self._mapping(value, commit, path)

    def _mapping(self, value: Any, commit: str, path: str) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise UserError(f"{self._at(commit, path)}: no mapping of names; mend the repository")
        return dict(value)

    def _at(self, commit: str, path: str) -> str:
        return f"{self.shown}: {path} of commit {commit[:12]}"

    def _say(self, *arguments: str, given: str = "") -> str:
        said = self._run(*arguments, given=given)
        if said.code:
            raise UserError(f"{self.shown}: git {arguments[0]}: {said.reason}; mend the repository")
        return said.out.strip()

    def _run(self, *arguments: str, given: str = "") -> Said:
        command = ["git", "-c", "core.hooksPath=/dev/null", *arguments]
        return run_tool(command, self._git.folder, _QUIET, SECONDS, given, without=_OTHERS)


def _last(said: str) -> str | None:
    return said.split()[-1] if said.split() else None
