"""What is known of one version of an adapter."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field

from taskmem.errors import UserError
from taskmem.files import sha256_file
from taskmem.records import Index, Judge, Name, Part, Record, Sha256

CONFIG, WEIGHTS, TRAINING = "adapter_config.json", "adapter_model.safetensors", "training.json"
FILES = (CONFIG, WEIGHTS, TRAINING)
MANIFEST = "manifest.json"

VersionName = Annotated[str, Field(pattern=r"^v[1-9][0-9]{0,8}$")]


class Provenance(Part):
    """Where an adapter comes from; digests are hex SHA-256.

    `parent` is the champion it was trained to replace, which it does not start from (METHOD section 4, step 5); `policy` the
    frozen policy's digest, `pairs` that of the preference pairs, `feedback` that of the ids of the feedback they were mined
    with, `feedback_count` of them; `commit` and `image` may be "unknown" and "local".
    """

    parent: VersionName | None
    policy: Sha256
    pairs: Sha256
    feedback: Sha256
    feedback_count: Index
    judges: tuple[Judge, ...]
    commit: Annotated[str, Field(min_length=1)]
    image: Annotated[str, Field(min_length=1)]
    seed: int


class Files(Part):
    """The hex SHA-256 of each file of an adapter folder."""

    adapter_config: Sha256
    adapter_model: Sha256
    training: Sha256

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Those of an adapter folder; UserError if one is missing."""
        try:
            config, model, training = (sha256_file(folder / name) for name in FILES)
        except OSError as error:
            raise UserError(
                f"{error.filename}: cannot be read ({error.strerror}); give a folder that phase-two wrote"
            ) from None
        return cls(adapter_config=config, adapter_model=model, training=training)

    def by_name(self) -> dict[str, str]:
        """File name -> digest."""
        return dict(zip(FILES, (self.adapter_config, self.adapter_model, self.training), strict=True))


class Manifest(Provenance, Record):
    """One immutable version: `layer`, `size` and Euclidean `norm` are those of its vector, found when it was checked.

    The gate's verdict is not in it: a version may be judged again, against another champion, and each promotion names its own
    (see `Pointer`).
    """

    environment: Name
    version: VersionName
    layer: Index
    size: Annotated[int, Field(ge=1)]
    norm: Annotated[float, Field(ge=0)]
    files: Files

    @property
    def name(self) -> str:
        """environment@version, as memories and events name an adapter."""
        return f"{self.environment}@{self.version}"

    @property
    def content(self) -> tuple[str, Files]:
        """Policy and file digests: what makes two adapters of one environment the same."""
        return self.policy, self.files
