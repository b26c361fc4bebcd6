"""git as the lineage repository needs it: a clone to work in, a commit on top of another, a push of all or nothing."""

import base64
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from taskmem.errors import UserError
from taskmem.lineage.tools import Said, run_tool, without_userinfo
from taskmem.records import one_line

SECONDS = 600.0
BRANCH = "main"
IDENTITY = "taskmem lineage <lineage@taskmem>"
"""Who commits where nobody else is named; no configuration of git is needed."""
_IDENTITY = re.compile(r"([^<>\s][^<>\n]*?) <([^<>\s]+)>")
# what the process that calls us may have set for a repository of its own
_OTHERS = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT", "GIT_ALTERNATE", "GIT_NAMESPACE", "GIT_PREFIX")
_SETTINGS = {
    "commit.gpgSign": "false",
    "tag.gpgSign": "false",
    "core.hooksPath": "/dev/null",
    "core.autocrlf": "false",
    "core.excludesFile": "/dev/null",
    "advice.detachedHead": "false",
    "gc.auto": "0",
}


@dataclass(frozen=True)
class Remote:
    """A git URL, and the user and password that stood in it: these go to git's environment, into no file and no message."""

    url: str
    secret: str = ""

    @classmethod
    def parse(cls, url: str) -> "Remote":
        """`url` taken apart; UserError if there is none, or it would be taken for an option."""
        if not url or url.startswith("-"):
            raise UserError(f"lineage {without_userinfo(url) or '(empty)'}: not the URL of a git repository; give one")
        if is_folder(url):
            return cls(str(Path(url).resolve()))
        try:
            parts = urlsplit(url)
        except ValueError:
            raise UserError(
                f"lineage {one_line(without_userinfo(url))}: not a URL; give that of a git repository"
            ) from None
        if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
            return cls(url)
        userinfo, _, host = parts.netloc.rpartition("@")
        return cls(parts._replace(netloc=host).geturl(), unquote(userinfo))

    @property
    def shown(self) -> str:
        """The URL as a message may show it."""
        return one_line(without_userinfo(self.url))

    def variables(self, known: Mapping[str, str]) -> dict[str, str]:
        """The variables that give the secret to git, after whatever settings `known` already passes in this way."""
        if not self.secret:
            return {}
        number = int(known.get("GIT_CONFIG_COUNT") or 0)
        pair = self.secret if ":" in self.secret else f"{self.secret}:"
        header = f"Authorization: Basic {base64.b64encode(pair.encode()).decode()}"
        host = "://".join(urlsplit(self.url)[:2])
        return {
            "GIT_CONFIG_COUNT": str(number + 1),
            f"GIT_CONFIG_KEY_{number}": f"http.{host}/.extraHeader",
            f"GIT_CONFIG_VALUE_{number}": header,
        }


class PushRejectedError(UserError):
    """The repository has refused a push, all of it."""


class Git:
    """The repository in `folder`, made by `Git.clone`; it commits as `identity`, "Name <address>".

    What fails becomes a UserError of one line that names the remote's URL without credentials.
    """

    def __init__(self, folder: Path, remote: Remote, identity: str) -> None:
        found = _IDENTITY.fullmatch(identity)
        if not found:
            raise UserError(f"git identity {one_line(identity)}: give a name and an address, as in {IDENTITY}")
        self.folder, self.remote, self._identity = folder, remote, identity
        who = {"NAME": found[1], "EMAIL": found[2]}
        people = {f"GIT_{role}_{field}": value for role in ("AUTHOR", "COMMITTER") for field, value in who.items()}
        quiet = {
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_SSH_COMMAND": os.environ.get("GIT_SSH_COMMAND", "ssh -oBatchMode=yes"),
        }
        self._variables = {**people, **quiet, **remote.variables(os.environ)}

    @classmethod
    def clone(cls, url: str, folder: Path, identity: str = IDENTITY, *, create: bool = True) -> "Git":
        """Clone `url` to the new folder `folder`, nothing checked out.

        A path where nothing is becomes a bare repository first, unless who clones only reads and `create` is false.
        """
        git = cls(folder, Remote.parse(url), identity)
        if create and is_folder(git.remote.url):
            new_repository(Path(git.remote.url))
        folder.mkdir(parents=True)
        git._remote("clone", "--quiet", "--no-checkout", "--", git.remote.url, str(folder))
        return git

    @property
    def branch(self) -> str:
        """The remote's branch."""
        return self._say("symbolic-ref", "--short", "HEAD")

    def head(self) -> str | None:
        """The last commit of the remote's branch as last fetched, None for an empty repository."""
        said = self._run("rev-parse", "--quiet", "--verify", f"refs/remotes/origin/{self.branch}^{{commit}}")
        return said.out.strip() or None

    def tags(self) -> dict[str, str]:
        """The ids of all tags by name."""
        lines = self._say("for-each-ref", "--format=%(objectname) %(refname:lstrip=2)", "refs/tags").splitlines()
        return {name: id_ for id_, name in (line.split(" ", 1) for line in lines)}

    def branches(self) -> list[str]:
        """All branches of the remote."""
        return self._say("for-each-ref", "--format=%(refname)", "refs/remotes/origin").split()

    def fetch(self) -> None:
        """Take over the remote's branch and tags as they are now."""
        refs = f"+refs/heads/{self.branch}:refs/remotes/origin/{self.branch}"
        self._remote("fetch", "--quiet", "--force", "origin", refs, "+refs/tags/*:refs/tags/*")

    def read(self, commit: str, path: str) -> bytes | None:
        """A file as it is in a commit, None if it is not there."""
        said = self._run("show", f"{commit}:{path}")
        return said.out.encode() if said.code == 0 else None

    def trailers(self, commit: str, key: str) -> dict[str, str]:
        """The commits up to `commit` by the value of a trailer of theirs."""
        shape = f"--format=%H %(trailers:key={key},valueonly,separator=%x20)"
        lines = (line.split() for line in self._say("log", shape, commit).splitlines())
        return {value: id_ for id_, *values in lines for value in values}

    def tag_message(self, name: str) -> str | None:
        """What an annotated tag says, None if there is no such tag."""
        ref = f"refs/tags/{name}"
        if self._run("rev-parse", "--quiet", "--verify", ref).code:
            return None
        return self._say("for-each-ref", "--format=%(contents)", ref)

    def stage(self, parent: str | None, replaced: Sequence[str], files: Sequence[str]) -> str:
        """The tree of `parent` with `files` of the work folder in place of all that is below `replaced`; returns its id."""
        self._say("read-tree", parent) if parent else self._say("read-tree", "--empty")
        self._say("rm", "-r", "--force", "--quiet", "--cached", "--ignore-unmatch", "--", *replaced)
        self._say("update-index", "--add", "-z", "--stdin", given="".join(f"{name}\0" for name in files))
        return self._say("write-tree")

    def commit(self, tree: str, parent: str | None, message: str) -> str:
        """A commit of `tree` on top of `parent`; returns its id. No branch moves."""
        above = ("-p", parent) if parent else ()
        return self._say("commit-tree", tree, *above, "-F", "-", given=message)

    def tag(self, name: str, commit: str, message: str) -> str:
        """An annotated tag; returns its id. It bears the name once it is pushed."""
        head = f"object {commit}\ntype commit\ntag {name}\ntagger {self._identity} {int(time.time())} +0000\n\n"
        return self._say("mktag", given=head + message)

    def push(self, commit: str, tags: Mapping[str, str]) -> None:
        """Make `commit` the head of the remote's branch and push the tags, all or nothing; PushRejectedError if refused.

        `tags` has ids by name; none that is there is ever replaced.
        """
        refs = [f"{commit}:refs/heads/{self.branch}", *(f"{id_}:refs/tags/{name}" for name, id_ in tags.items())]
        said = self._run("push", "--quiet", "--porcelain", "--atomic", "origin", *refs)
        if said.code:
            refused = [line for line in said.out.splitlines() if line.startswith("!")]
            if refused:
                reason = " ".join(refused[0][1:].split()).rpartition(" [")[2]
                raise PushRejectedError(
                    f"{self.remote.shown}: refused the push ([{one_line(reason)}); see docs/audit.md"
                )
            raise self._unreachable(said)

    def _remote(self, *arguments: str) -> None:
        said = self._run(*arguments)
        if said.code:
            raise self._unreachable(said)

    def _unreachable(self, said: Said) -> UserError:
        return UserError(
            f"{self.remote.shown}: {said.reason}; give the URL of a git repository that can be written to, see docs/audit.md"
        )

    def _say(self, *arguments: str, given: str = "") -> str:
        said = self._run(*arguments, given=given)
        if said.code:
            raise UserError(f"{self.folder}: git {arguments[0]}: {said.reason}; run the stage again")
        return said.out.strip()

    def _run(self, *arguments: str, given: str = "") -> Said:
        settings = [part for name, value in _SETTINGS.items() for part in ("-c", f"{name}={value}")]
        command = ["git", *settings, *arguments]
        return run_tool(command, self.folder, self._variables, SECONDS, given, without=_OTHERS)


def is_folder(url: str) -> bool:
    """Whether a git URL is a path: it has no scheme and no host."""
    return "://" not in url and ":" not in url.partition("/")[0]


def new_repository(folder: Path) -> None:
    """Make an empty bare repository, whole or not at all; a folder that has something in it stays as it is."""
    if folder.is_dir() and any(folder.iterdir()):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    command = ["git", "init", "--quiet", "--bare", f"--initial-branch={BRANCH}", "--", str(temporary)]
    try:
        said = run_tool(command, folder.parent, {}, SECONDS, without=_OTHERS)
        if said.code:
            raise UserError(f"{folder}: {said.reason}; give another folder")
        with suppress(OSError):  # somebody else has made it
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
