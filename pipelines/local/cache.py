"""What stages made, kept by the digest of their code and of the content of their inputs."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp.dsl import Artifact
from kfp.dsl.executor import create_artifact_instance

from taskmem.errors import UserError
from taskmem.files import atomic_write, canonical_json, sha256_bytes, sha256_file, sha256_tree
from taskmem.loop.runner import code_digest
from taskmem.records import read_json

SCHEMA = 1


@dataclass(frozen=True)
class Entry:
    """A stage's outputs, parameters and artifacts by name, and the seconds it took."""

    outputs: dict[str, Any]
    seconds: float


class Cache:
    """One JSON file per finished stage in `out`/cache; the artifacts stay where Kubeflow put them, below `out`/runs."""

    def __init__(self, out: Path, pipeline: str) -> None:
        self._out = out
        self._folder = out / "cache"
        self._pipeline = pipeline
        self._code = code_digest()
        self._digests: dict[Path, tuple[str, str]] = {}
        self._used: set[Path] = set()

    def key(self, component: str, container: Any, arguments: Mapping[str, Any]) -> str:
        """Digest of all that decides a stage's outputs: its component's name, command and environment, its arguments
        (artifacts by content and metadata, not by place), and the library's code."""
        parts = {
            "schema": SCHEMA,
            "code": self._code,
            "component": component,
            "command": [*container.command, *container.args],
            "environment": {variable.name: variable.value for variable in container.env},
            "arguments": {name: self._content(value) for name, value in arguments.items()},
        }
        return sha256_bytes(canonical_json(parts))

    def get(self, key: str) -> Entry | None:
        """The entry of `key`, unless an artifact no longer has the content it was kept with."""
        path = self._path(key)
        if not path.exists():
            return None
        kept, outputs = _read(path), {}
        for name, value in kept["outputs"].items():
            if "artifact" in value:
                outputs[name] = self._artifact(value["artifact"])
                if self._digest(Path(outputs[name].path)) != value["artifact"]["digest"]:
                    return None
            else:
                outputs[name] = value["parameter"]
        self._used.add(path)
        return Entry(outputs, kept["seconds"])

    def put(self, key: str, stage: str, entry: Entry) -> None:
        """Keep what a stage has just made."""
        outputs = {}
        for name, value in entry.outputs.items():
            if isinstance(value, Artifact):
                outputs[name] = {"artifact": self._description(value)}
            else:
                outputs[name] = {"parameter": value}
        kept = {"pipeline": self._pipeline, "stage": stage, "seconds": entry.seconds, "outputs": outputs}
        atomic_write(self._path(key), canonical_json(kept))
        self._used.add(self._path(key))

    def forget_unused(self) -> None:
        """Remove this pipeline's entries that were neither read nor written: another code or other inputs made them."""
        for path in self._folder.glob("*.json"):
            if path not in self._used and _read(path)["pipeline"] == self._pipeline:
                path.unlink()

    def remove_unkept(self, runs: Path) -> None:
        """Remove whatever lies below `runs` and is no artifact of an entry."""
        kept = [_read(path)["outputs"] for path in self._folder.glob("*.json")]
        values = [value["artifact"] for outputs in kept for value in outputs.values() if "artifact" in value]
        _remove_except(runs, {Path(self._artifact(value).path) for value in values})

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"

    def _content(self, value: Any) -> Any:
        if isinstance(value, Artifact):
            # what lies elsewhere is known by its address alone
            content = value.uri if "://" in value.uri else self._digest(Path(value.path))
            return {"type": value.schema_title, "metadata": value.metadata, "content": content}
        if isinstance(value, list):
            return [self._content(item) for item in value]
        return value

    def _description(self, artifact: Artifact) -> dict[str, Any]:
        # relative, so that the folder can be moved
        inside = Path(artifact.uri).is_relative_to(self._out)
        return {
            "type": artifact.schema_title,
            "name": artifact.name,
            "inside": inside,
            "uri": str(Path(artifact.uri).relative_to(self._out)) if inside else artifact.uri,
            "custom_path": artifact.custom_path,
            "metadata": artifact.metadata,
            "digest": self._digest(Path(artifact.path)),
        }

    def _artifact(self, value: Mapping[str, Any]) -> Artifact:
        uri = str(self._out / value["uri"]) if value["inside"] else value["uri"]
        made = {"name": value["name"], "uri": uri, "metadata": value["metadata"]}
        artifact = create_artifact_instance({**made, "type": {"schemaTitle": value["type"]}})
        artifact.custom_path = value["custom_path"]
        return artifact

    def _digest(self, path: Path) -> str:
        """Digest of a file's or folder's content; computed again only if a size or time of change is another."""
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        stats = [(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in files]
        mark = f"{path.is_dir()} {sha256_bytes(canonical_json(stats))}"
        known = self._digests.get(path)
        if known is None or known[0] != mark:
            known = (mark, _content_digest(path, files))
            self._digests[path] = known
        return known[1]


def _read(path: Path) -> dict[str, Any]:
    kept = read_json(path)
    known = isinstance(kept, dict) and {"pipeline", "seconds", "outputs"} <= kept.keys()
    if not known or not isinstance(kept["outputs"], dict):
        raise UserError(f"{path}: not an entry of this cache; remove it and run again")
    return dict(kept)


def _content_digest(path: Path, files: Iterable[Path]) -> str:
    if path.is_dir():
        return f"folder {sha256_tree(path, files)}"
    # artifacts that hold metadata only need not write anything
    return f"file {sha256_file(path)}" if path.is_file() else "nothing"


def _remove_except(path: Path, kept: set[Path]) -> None:
    if path in kept:
        return
    if any(path in place.parents for place in kept):
        for child in list(path.iterdir()) if path.is_dir() else ():
            _remove_except(child, kept)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
