"""Objects as they really lie in a folder or a bucket, with the old versions that a bucket may keep of them."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from taskmem.errors import UserError
from taskmem.files import atomic_write


class Objects(Protocol):
    """Files by key below one place, which `where` names."""

    where: str

    @property
    def kept_versions(self) -> bool:
        """True if old versions could not be looked at."""
        ...

    def keys(self) -> Iterator[str]:
        """All keys, in no order; those of which a bucket has old versions only are among them."""
        ...

    def read(self, key: str) -> bytes:
        """The bytes of an object, or of its newest version; UserError if there is none."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Put an object there, replacing one."""
        ...

    def erase(self, key: str) -> None:
        """Remove it and all its versions; no error if there is none."""
        ...

    def drop_old(self, prefix: str) -> None:
        """Remove what was replaced under the keys that begin with `prefix`, and leave what is there now."""
        ...


class FolderObjects:
    """`Objects` in a folder."""

    kept_versions = False

    def __init__(self, root: Path) -> None:
        self.root, self.where = root, str(root)

    def keys(self) -> Iterator[str]:
        """See `Objects.keys`."""
        for path in self.root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(self.root).as_posix()

    def read(self, key: str) -> bytes:
        """See `Objects.read`."""
        try:
            return (self.root / key).read_bytes()
        except OSError as error:
            raise UserError(f"{self.root / key}: cannot be read ({error.strerror}); restore it from a backup") from None

    def write(self, key: str, data: bytes) -> None:
        """See `Objects.write`."""
        atomic_write(self.root / key, data)

    def erase(self, key: str) -> None:
        """See `Objects.erase`."""
        (self.root / key).unlink(missing_ok=True)

    def drop_old(self, prefix: str) -> None:
        """See `Objects.drop_old`: a folder keeps nothing."""


class BucketObjects:
    """`Objects` in a bucket of S3, below `prefix` (empty or ending in a slash). Needs boto3."""

    def __init__(self, bucket: str, prefix: str) -> None:
        from taskmem.store.s3_bucket import Bucket  # noqa: PLC0415 - boto3 is in the extra `cluster` only

        self._bucket, self._prefix = Bucket(bucket, 10, 60), prefix
        self.where = f"s3://{bucket}/{prefix}".rstrip("/")
        self.kept_versions = False
        self._versions: dict[str, list[tuple[str | None, int]]] | None = None

    def keys(self) -> Iterator[str]:
        """See `Objects.keys`."""
        yield from list(self._known())

    def read(self, key: str) -> bytes:
        """See `Objects.read`."""
        from taskmem.store.s3_faults import Refusal  # noqa: PLC0415

        versions = self._known().get(key, [(None, 0)])
        # a marker of deletion has no bytes
        version = next((found for found, size in versions if size >= 0), None)
        try:
            if version in (None, "null"):
                return self._bucket.read(self._prefix + key)[0]
            answer = self._bucket.call("get_object", Key=self._prefix + key, VersionId=version)
        except Refusal:
            raise UserError(f"{self.where}/{key}: no such object; restore it from a backup") from None
        data: bytes = answer["Body"].read()
        return data

    def write(self, key: str, data: bytes) -> None:
        """See `Objects.write`."""
        self._bucket.call("put_object", Key=self._prefix + key, Body=data)

    def erase(self, key: str) -> None:
        """See `Objects.erase`."""
        # the newest last: killed in between, the object is found again
        for version, _ in reversed(self._known().get(key, [])):
            fields = {} if version in (None, "null") else {"VersionId": version}
            self._bucket.call("delete_object", Key=self._prefix + key, **fields)
        self._known().pop(key, None)

    def drop_old(self, prefix: str) -> None:
        """See `Objects.drop_old`."""
        from taskmem.store.s3_faults import Refusal  # noqa: PLC0415

        try:
            old = [(key, version) for key, latest, _, version, _ in self._pages(prefix) if not latest]
        except (Refusal, UserError):
            self.kept_versions = True
            return
        for key, version in old:
            self._bucket.call("delete_object", Key=self._prefix + key, VersionId=version)

    def _known(self) -> dict[str, list[tuple[str | None, int]]]:
        """The versions of each key, the newest first, with their sizes, -1 for a marker of deletion."""
        if self._versions is None:
            self._versions = self._listed()
        return self._versions

    def _listed(self) -> dict[str, list[tuple[str | None, int]]]:
        from taskmem.store.s3_faults import Refusal  # noqa: PLC0415

        found: dict[str, list[tuple[str, str | None, int]]] = {}
        with suppress(Refusal, UserError):
            for key, latest, time, version, size in self._pages(""):
                found.setdefault(key, []).append((f"{latest:d} {time}", version, size))
            newest = {key: sorted(versions, key=lambda v: v[0], reverse=True) for key, versions in found.items()}
            return {key: [(version, size) for _, version, size in versions] for key, versions in newest.items()}
        self.kept_versions = True
        names = [name.removeprefix(self._prefix) for name in self._bucket.names(self._prefix)]
        return {name: [(None, 0)] for name in names}

    def _pages(self, prefix: str) -> Iterator[tuple[str, bool, str, str, int]]:
        """Of each version: key, whether it is the newest, time, id and size."""
        following: dict[str, str] = {}
        while True:
            answer = self._bucket.call("list_object_versions", Prefix=self._prefix + prefix, **following)
            for entry in (*answer.get("Versions", ()), *answer.get("DeleteMarkers", ())):
                key, time = entry["Key"].removeprefix(self._prefix), entry["LastModified"].isoformat()
                yield key, entry["IsLatest"], time, entry["VersionId"], entry.get("Size", -1)
            if not answer.get("IsTruncated"):
                return
            following = {"KeyMarker": answer["NextKeyMarker"], "VersionIdMarker": answer["NextVersionIdMarker"]}


def objects_at(url: str) -> Objects:
    """The objects at a folder's path, a file:// or an s3:// URL."""
    parts = urlsplit(url)
    if parts.scheme == "s3":
        prefix = parts.path.strip("/")
        return BucketObjects(parts.netloc, f"{prefix}/" if prefix else "")
    return FolderObjects(Path(unquote(parts.path) if parts.scheme == "file" else url))
