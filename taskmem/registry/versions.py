"""Publish an adapter as a version, list versions, fetch one."""

import json
import math
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from taskmem.errors import UserError
from taskmem.files import atomic_write, replace_directory, sha256_bytes
from taskmem.records import one_line
from taskmem.registry.manifest import CONFIG, FILES, MANIFEST, TRAINING, WEIGHTS, Files, Manifest, Provenance
from taskmem.registry.objects import (
    file_key,
    key_of,
    parse,
    put_content,
    stored,
    to_bytes,
    version_key,
    version_number,
)
from taskmem.store import AlreadyExists, Store

LARGEST_FILE = 16 << 20  # bytes; a steer vector of the 30B policy takes 8 KiB


class Vector(Protocol):
    """A tensor of shape [hidden]."""

    def tolist(self) -> Any:
        """Its numbers."""
        ...


AdapterReader = Callable[[Path], tuple[int, Vector]]
"""The layer and the vector of an adapter folder, ValueError if it is none: `taskmem.steer.read_adapter`.

It is passed in because it needs torch, which a registry does not.
"""


def publish(
    store: Store,
    environment: str,
    adapter: Path,
    provenance: Provenance,
    read: AdapterReader,
    hidden_size: int | None = None,
) -> Manifest:
    """Make the adapter folder `adapter` the environment's next version, v1, v2 and so on; returns its manifest.

    The same files for the same policy are the version that exists already, whatever else is said of them now: the same
    night run again changes nothing. Of racing publishers each gets a version of its own, or the same one for the same files.
    A publish that was killed leaves no version. UserError for a folder that `read` refuses, a vector that is not of
    `hidden_size` (None: of the size of the policy's other versions here), one trained on another policy, or an unknown parent.
    """
    contents = _read_files(adapter)
    layer, size, norm = _check(adapter, contents, provenance.policy, read)
    files = Files(
        adapter_config=sha256_bytes(contents[CONFIG]),
        adapter_model=sha256_bytes(contents[WEIGHTS]),
        training=sha256_bytes(contents[TRAINING]),
    )
    for name, digest in files.by_name().items():
        put_content(store, file_key(environment, digest), contents[name])
    while True:
        known = versions(store, environment)
        number = version_number(known[-1].version) + 1 if known else 1
        new = Manifest(
            environment=environment,
            version=f"v{number}",
            layer=layer,
            size=size,
            norm=norm,
            files=files,
            **dict(provenance),
        )
        if same := next((old for old in known if old.content == new.content), None):
            return same
        _check_among(known, new, adapter, hidden_size)
        try:
            store.put_if_absent(version_key(environment, new.version), to_bytes(new))
        except AlreadyExists:  # somebody else's, perhaps of the same content
            continue
        return new


def adopt(store: Store, folder: Path) -> Manifest:
    """Put a version that `fetch` wrote to `folder` into another store, under its own name; its manifest.

    A version that is there already stays. UserError for a folder that is no fetched version, or whose bytes are not what its
    manifest names.
    """
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a version of a registry") from None
    manifest = parse(data, Manifest, str(path))
    if Files.of(folder) != manifest.files:
        raise UserError(f"{folder}: not the files that its manifest names; fetch {manifest.name} again")
    for name, digest in manifest.files.by_name().items():
        put_content(store, file_key(manifest.environment, digest), (folder / name).read_bytes())
    put_content(store, version_key(manifest.environment, manifest.version), data)
    return manifest


def versions(store: Store, environment: str) -> list[Manifest]:
    """The manifests of all versions of an environment, oldest first."""
    prefix = key_of(environment, "versions", "")
    numbers = [version_number(key.removeprefix(prefix)) for key in store.list(prefix)]
    # one that was written while listing may be missing from the list below one that is on it
    found = (_manifest(store, environment, f"v{number}") for number in range(1, max(numbers, default=0) + 1))
    return [manifest for manifest, _ in filter(None, found)]


def read_manifest(store: Store, environment: str, version: str, digest: str | None = None) -> Manifest:
    """The manifest of one version; UserError if there is none, it is damaged, or its SHA-256 is not `digest`."""
    return read_sealed(store, environment, version, digest)[0]


def read_sealed(store: Store, environment: str, version: str, digest: str | None = None) -> tuple[Manifest, str]:
    """The manifest of one version and the SHA-256 of its bytes; UserError as `read_manifest`."""
    found, key = _manifest(store, environment, version), version_key(environment, version)
    if found is None and digest is not None:
        raise UserError(f"{key}: the manifest is missing; restore the object from a backup")
    if found is None:
        known = ", ".join(m.version for m in versions(store, environment)) or "no version"
        raise UserError(f"{environment}@{version}: not in the registry, which has {known} of it; choose another")
    if digest not in (None, found[1]):
        raise UserError(f"{key}: not the manifest that was published; restore the object from a backup")
    return found


def fetch(store: Store, environment: str, version: str, out: Path) -> Manifest:
    """Write the adapter folder of a version, with its manifest.json, to `out`; an adapter that is there is replaced.

    Every byte is held against the manifest first. UserError if the version is unknown or anything of it is damaged or
    missing, and for an `out` that holds something else.
    """
    manifest = read_manifest(store, environment, version)
    contents = read_files(store, manifest)
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / CONFIG).is_file())):
        raise UserError(f"{out}: holds something else than an adapter; give another folder")
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    try:
        for name, data in contents.items():
            atomic_write(temporary / name, data)
        atomic_write(temporary / MANIFEST, to_bytes(manifest))
        replace_directory(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def read_files(store: Store, manifest: Manifest) -> dict[str, bytes]:
    """The bytes of each file of a version; UserError if they are missing or not those that were published."""
    return {name: read_file(store, manifest, name) for name in FILES}


def read_file(store: Store, manifest: Manifest, name: str) -> bytes:
    """The bytes of one file of a version; UserError as `read_files`."""
    digest = manifest.files.by_name()[name]
    key = file_key(manifest.environment, digest)
    object_ = stored(store, key)
    if object_ is None or sha256_bytes(object_.data) != digest:
        what = "missing" if object_ is None else "damaged"
        raise UserError(f"{key}: {name} of {manifest.name} is {what}; delete it and publish the adapter's folder again")
    return object_.data


def _manifest(store: Store, environment: str, version: str) -> tuple[Manifest, str] | None:
    key = version_key(environment, version)
    object_ = stored(store, key)
    if object_ is None:
        return None
    manifest = parse(object_.data, Manifest, key)
    if (manifest.environment, manifest.version) != (environment, version):
        raise UserError(f"{key}: the manifest of {manifest.name}; restore the object from a backup")
    return manifest, sha256_bytes(object_.data)


def _read_files(folder: Path) -> dict[str, bytes]:
    contents = {}
    for name in FILES:
        path = folder / name
        try:
            with path.open("rb") as handle:
                contents[name] = handle.read(LARGEST_FILE + 1)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); give a folder that phase-two wrote") from None
        if len(contents[name]) > LARGEST_FILE:
            raise UserError(f"{path}: over {LARGEST_FILE} bytes, which no adapter needs; train it again")
    return contents


def _check(folder: Path, contents: Mapping[str, bytes], policy: str, read: AdapterReader) -> tuple[int, int, float]:
    """Layer, size and norm of the vector in `contents`; UserError naming `folder` if they are no adapter of `policy`."""
    with tempfile.TemporaryDirectory() as copy:
        # the very bytes that will be stored are checked, whatever happens to the folder meanwhile
        for name, data in contents.items():
            (Path(copy) / name).write_bytes(data)
        try:
            layer, vector = read(Path(copy))
            json.loads(contents[TRAINING])
        except (ValueError, RecursionError) as error:
            raise UserError(f"{folder}: {one_line(str(error)).replace(copy, str(folder))}") from None
    trained_on = str(json.loads(contents[CONFIG]).get("base_model_name_or_path"))
    if trained_on.removeprefix("sha256:") != policy:
        raise UserError(
            f"{folder / CONFIG}: trained on {one_line(trained_on[:19])}, not on the policy {policy[:12]}; train it again"
        )
    numbers: Sequence[float] = vector.tolist()
    if layer < 0 or not numbers:
        raise UserError(f"{folder}: a vector of {len(numbers)} values after layer {layer}; train it again")
    return layer, len(numbers), math.hypot(*numbers)


def _check_among(known: Sequence[Manifest], new: Manifest, folder: Path, hidden_size: int | None) -> None:
    sizes = {old.size for old in known if old.policy == new.policy} if hidden_size is None else {hidden_size}
    if sizes and new.size not in sizes:
        raise UserError(
            f"{folder}: its vector has {new.size} values, the policy's hidden size is {min(sizes)}; train it again"
        )
    if new.parent not in (None, *(old.version for old in known)):
        raise UserError(
            f"{folder}: its parent {new.environment}@{new.parent} is not in the registry; publish that first"
        )
