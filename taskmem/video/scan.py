"""Finds the videos of a folder, names their streams and finds the subtitle file beside each."""

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.records import Refusal

SUBTITLE_SUFFIXES = (".srt", ".vtt")
SIDE_SUFFIXES = (*SUBTITLE_SUFFIXES, ".json", ".jsonl", ".txt", ".md")
NAME_LENGTH = 96
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_LANGUAGE = re.compile(r"\.[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")


@dataclass(frozen=True)
class Found:
    """A file to try as a video: where it is, its name relative to the folder, its stream, its subtitle file."""

    path: Path
    name: str
    stream: str
    sidecar: Path | None


def find_videos(videos: Path) -> tuple[list[Found], list[Refusal]]:
    """The files below `videos` (or the one file it is) that may be videos, by relative name, and what is no such file.

    Hidden files and side files are passed over. Links that leave the folder, links to folders and broken links are
    refused. Raises UserError if there is nothing at `videos`.
    """
    if not videos.exists():
        raise UserError(f"{videos}: no such file or folder; give a video or a folder of videos")
    refusals: list[Refusal] = []
    if videos.is_dir():
        root = videos.resolve()
        found, refusals = _walk(root)
    else:
        found = [(printable(videos.name), videos)]
    names = stream_names([name for name, _ in found])
    return [Found(path.resolve(), name, names[name], _sidecar(path)) for name, path in found], refusals


def _walk(root: Path) -> tuple[list[tuple[str, Path]], list[Refusal]]:
    found: list[tuple[str, Path]] = []
    refusals: list[Refusal] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(".")]
        links = [f for f in folders if (Path(folder) / f).is_symlink()]
        refusals += [Refusal(file=_shown(Path(folder) / f, root), reason="a link to a folder") for f in links]
        for file in files:
            path = Path(folder) / file
            if file.startswith(".") or path.suffix.lower() in SIDE_SUFFIXES:
                continue
            if _inside(path, root):
                found.append((_shown(path, root), path))
            else:
                reason = "a link that is broken or leads outside the folder"
                refusals.append(Refusal(file=_shown(path, root), reason=reason))
    return sorted(found), refusals


def _inside(path: Path, root: Path) -> bool:
    try:
        return not path.is_symlink() or path.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):
        return False


def _shown(path: Path, root: Path) -> str:
    return printable(path.relative_to(root).as_posix())


def printable(name: str) -> str:
    """A file name as valid Unicode, whatever bytes it is made of."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def stream_names(names: list[str]) -> dict[str, str]:
    """A distinct stream name for each relative file name: its stem made safe.

    Files whose stems give the same name (upper and lower case being the same) all get a suffix made from their own
    relative name, so that a stream's name does not depend on the order of the others.
    """
    safe = {name: _safe(Path(name).stem) for name in names}
    chosen = dict(safe)
    for length in (12, 24, 48):  # a file may be named after the suffix of another; it cannot be so three times
        groups = Counter(stream.lower() for stream in chosen.values())
        for name, stream in chosen.items():
            if groups[stream.lower()] > 1:
                chosen[name] = f"{safe[name][:64]}-{sha256_bytes(name)[:length]}"
    return chosen


def _safe(stem: str) -> str:
    return _UNSAFE.sub("_", stem).lstrip("._-")[:NAME_LENGTH] or "video"


def _sidecar(video: Path) -> Path | None:
    """`<stem>.srt`, else `<stem>.vtt`, else the first with a language between, as in `<stem>.en.srt`."""
    plain: list[tuple[int, Path]] = []
    tagged: list[Path] = []
    for path in sorted(p for p in video.parent.iterdir() if p.suffix.lower() in SUBTITLE_SUFFIXES):
        if path.stem == video.stem:
            plain.append((SUBTITLE_SUFFIXES.index(path.suffix.lower()), path))
        elif path.stem.startswith(video.stem) and _LANGUAGE.fullmatch(path.stem[len(video.stem) :]):
            tagged.append(path)
    return min(plain)[1] if plain else next(iter(tagged), None)
