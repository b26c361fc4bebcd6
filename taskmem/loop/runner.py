"""Runs stages into folders, skips what is done, survives `kill -9`.

A stage works in `<folder>.partial` and is renamed when it is finished; its marker, written last, holds the key of its inputs, the
digest of what it wrote, and the seconds it took. A stage is skipped if the marker has the same key and the folder the same
digest; a partial folder of the same key is handed to the stage again, so that it can go on.
"""

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Protocol

from taskmem.files import atomic_write, canonical_json, replace_directory, sha256_bytes, sha256_tree, sweep
from taskmem.progress import Progress
from taskmem.records import read_json, write_json

Work = Callable[[Path, Progress], None]
STANDS_ON = (
    *("torch", "torchvision", "transformers", "tokenizers", "accelerate", "datasets", "trl", "peft"),
    *("av", "numpy", "pydantic", "jinja2"),
)


class Display(Protocol):
    """Shows a person what goes on."""

    def stage(self, name: str) -> AbstractContextManager[Progress]:
        """A running stage: its progress callback, until the block ends."""
        ...

    def skipped(self, name: str) -> None:
        """A stage that was done already."""
        ...


@dataclass(frozen=True)
class Done:
    """A finished stage: its folder, the digest of its content and the seconds its last, uninterrupted attempt took."""

    folder: Path
    digest: str
    seconds: float


def code_digest() -> str:
    """Digest of the library's own files and the versions it stands on: a stage is redone when the code has changed."""
    versions = [sys.version, *(metadata.version(name) for name in STANDS_ON)]
    with resources.as_file(resources.files("taskmem")) as root:
        files = [path for kind in ("*.py", "*.html", "*.css") for path in root.rglob(kind)]
        return sha256_bytes(canonical_json([sha256_tree(root, files), versions]))


class Runner:
    """Stages below the folder `root`, whose outputs are named after them."""

    def __init__(self, root: Path, display: Display) -> None:
        self._root = root
        self._display = display
        self._code = code_digest()
        self._done: dict[str, Done] = {}

    def __call__(self, name: str, work: Work, inputs: Mapping[str, Done | str], settings: Any) -> Done:
        """Run or skip one stage. `inputs` are finished stages or digests, `settings` anything JSON that decides the output."""
        digests = {k: v.digest if isinstance(v, Done) else v for k, v in inputs.items()}
        parts = {"code": self._code, "stage": name, "inputs": digests, "settings": settings}
        key = sha256_bytes(canonical_json(parts))
        folder = self._root / name
        marker = self._root / ".stages" / f"{name.replace('/', '.')}.json"
        done = self._finished(folder, marker, key)
        if done:
            self._display.skipped(name)
        else:
            done = self._run(name, work, folder, marker, key)
        self._done[name] = done
        return done

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of every stage so far, skipped ones as they once took."""
        return {name: round(done.seconds, 2) for name, done in self._done.items()}

    def _finished(self, folder: Path, marker: Path, key: str) -> Done | None:
        if not marker.exists() or not folder.exists():
            return None
        kept = read_json(marker)
        # a folder that somebody changed is made again
        if kept.get("key") != key or sha256_tree(folder) != kept["digest"]:
            return None
        return Done(folder, kept["digest"], kept["seconds"])

    def _run(self, name: str, work: Work, folder: Path, marker: Path, key: str) -> Done:
        partial = folder.with_name(f"{folder.name}.partial")
        begun = marker.with_suffix(".begun")
        if partial.exists() and (not begun.exists() or begun.read_text() != key):
            shutil.rmtree(partial)
        sweep(partial)
        atomic_write(begun, key)
        partial.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        with self._display.stage(name) as progress:
            work(partial, progress)
        seconds = time.monotonic() - start
        digest = sha256_tree(partial)
        replace_directory(partial, folder)
        write_json(marker, {"key": key, "digest": digest, "seconds": seconds})
        begun.unlink()
        return Done(folder, digest, seconds)
