"""DVC as the lineage repository needs it: what is laid in its place becomes objects, which go to the remote."""

import io
import sys
from collections.abc import Sequence
from configparser import ConfigParser, Error
from pathlib import Path
from urllib.parse import unquote, urlsplit

from taskmem.errors import UserError
from taskmem.files import atomic_write
from taskmem.lineage.tools import run_tool, without_userinfo
from taskmem.records import one_line

REMOTE = "lineage"
CONFIG = ".dvc/config"
INITIAL = (CONFIG, ".dvc/.gitignore", ".dvcignore")
"""What makes a git repository DVC's."""
SECONDS = 12 * 3600.0  # a policy of 60 GB takes its time
# as `dvc init` writes them
_NEW = {
    ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
    ".dvcignore": "# Add patterns of files dvc should ignore, which could improve\n# the performance. Learn more at\n"
    "# https://dvc.org/doc/user-guide/dvcignore\n",
}
_SECTION = f"'remote \"{REMOTE}\"'"
_LOCAL = "[cache]\n    type = hardlink,copy\n"
# a token for somebody's studio would have dvc tell it of every run
_OTHERS = ("DVC_STUDIO", "DVC_EXP", "DVC_ROOT", "DVC_STAGE", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")


def remote_url(url: str) -> str:
    """A remote as DVC is told of it: s3://bucket[/prefix] or the absolute path of a folder.

    UserError for anything else, and for a URL with credentials, which would go down in history.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _refused(url, "not a URL") from None
    if parts.scheme == "s3":
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise _refused(url, "more than bucket and prefix; AWS's own variables or files hold credentials")
        if not parts.netloc:
            raise _refused(url, "names no bucket")
        told = url.rstrip("/")
    elif parts.scheme == "file" and parts.netloc in ("", "localhost"):
        told = str(Path(unquote(parts.path)).resolve())
    elif url and not parts.scheme:
        told = str(Path(url).resolve())
    else:
        raise _refused(url, "neither s3:// nor a folder")
    if not told.isprintable() or '"' in told:
        raise _refused(url, "has characters that no file of settings can hold")
    return told


def _refused(url: str, why: str) -> UserError:
    shown = one_line(without_userinfo(url.partition("?")[0])) or "(empty)"
    return UserError(f"remote {shown}: {why}; give s3://bucket/prefix or a folder")


def known_remote(config: bytes | None) -> str | None:
    """The URL of the remote in a repository's .dvc/config, None if there is none."""
    url = _parsed(config).get(_SECTION, "url", fallback=None)
    return url.strip("\"'") if url else None


def _parsed(config: bytes | None) -> ConfigParser:
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string((config or b"").decode())
    except (Error, UnicodeDecodeError):
        raise UserError(f"lineage repository: {CONFIG}: cannot be read; mend it there") from None
    return parser


def _with_remote(config: bytes | None, url: str) -> str:
    """.dvc/config as it was, but for its remote; DVC itself cannot write one whose URL is not ASCII."""
    parser = _parsed(b"[core]\nanalytics = false\n" if config is None else config)
    for section, name, value in ((_SECTION, "url", f'"{url}"'), ("core", "remote", REMOTE)):
        if not parser.has_section(section):
            parser.add_section(section)
        parser.set(section, name, value)
    text = io.StringIO()
    parser.write(text)
    return text.getvalue()


class Dvc:
    """DVC in the git work folder `folder`, with caches and settings of its own in `aside`: nothing stays on the machine.

    Objects are read and written with the credentials and the endpoint that boto3 finds. What fails becomes a UserError.
    """

    def __init__(self, folder: Path, aside: Path, url: str) -> None:
        self._folder, self.url = folder, url
        places = {
            name: str(aside / name.lower()) for name in ("SITE_CACHE_DIR", "GLOBAL_CONFIG_DIR", "SYSTEM_CONFIG_DIR")
        }
        self._variables = {f"DVC_{name}": place for name, place in places.items()} | {
            "DVC_NO_ANALYTICS": "1",
            "PYTHONUTF8": "1",
        }

    def set_up(self) -> None:
        """Make the folder a DVC repository, if it is none yet, whose default remote is at `url`."""
        path = self._folder / CONFIG
        config = path.read_bytes() if path.exists() else None
        if config is None:
            for name, text in _NEW.items():
                atomic_write(self._folder / name, text)
        if known_remote(config) != self.url:
            atomic_write(path, _with_remote(config, self.url))
        # not pushed: here the objects and what is laid out share their bytes
        atomic_write(self._folder / ".dvc" / "config.local", _LOCAL)

    def add(self, paths: Sequence[str]) -> None:
        """Track files and folders: <path>.dvc."""
        if paths:
            self._run("add", *paths)

    def commit(self, place: str) -> None:
        """Record the stages of all dvc.yaml below a folder as they stand, executed elsewhere: dvc.lock beside each."""
        self._run("commit", "--force", "--recursive", place)

    def push(self, paths: Sequence[str]) -> None:
        """Send the objects of .dvc and dvc.yaml files to the remote; UserError naming it if that fails."""
        if paths:
            self._run("push", *paths, what=f"remote {self.url}", remedy="check its URL and your credentials")

    def _run(self, verb: str, *arguments: str, what: str = "", remedy: str = "run the stage again") -> None:
        command = [sys.executable, "-P", "-m", "dvc", verb, *arguments]
        said = run_tool(command, self._folder, self._variables, SECONDS, without=_OTHERS)
        if said.code:
            raise UserError(f"{what or f'{self._folder}: dvc {verb}'}: {said.reason}; {remedy}")
