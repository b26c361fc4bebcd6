"""An adapter made again from its recorded inputs, by the code that is installed here, and held against the registry's bytes.

No command of the lineage repository is run: it is asked for digests and settings, and everything it gives is held against the
registry's manifest and the run's record first.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from taskmem.audit.adapter import Traced, trace
from taskmem.audit.data import Data, remote_of, tracked_by
from taskmem.audit.evidence import KEPT, Evidence
from taskmem.audit.history import History
from taskmem.audit.links import Chain, Link, compared
from taskmem.audit.recorded import POLICY, RUN, Recorded, settings_link, settings_of
from taskmem.audit.vectors import Distance, distance, lay_files
from taskmem.config import Profile, parse_profile
from taskmem.errors import UserError
from taskmem.files import canonical_json, sha256_file, sha256_tree
from taskmem.lineage.code import commit
from taskmem.progress import Note, unheard
from taskmem.registry import Manifest
from taskmem.registry.versions import read_files
from taskmem.store import Store

INPUTS = ("policy", "rollouts", "segments")
"""What Phase Two needs beside the pairs."""
LIBRARIES = ("torch", "transformers", "peft", "numpy")


class Trainer(Protocol):
    """Phase Two: writes the adapter `out`/`name`."""

    def __call__(
        self,
        preferences: Path,
        rollouts: Path,
        segments: Path,
        policy: Path,
        name: str,
        profile: Profile,
        seed: int,
        out: Path,
    ) -> None:
        """Train; UserError if that is not possible."""


@dataclass(frozen=True)
class Rebuilt:
    """What became of it. `chain` are the inputs; if one does not hold, nothing was trained, and `files` is empty.

    `files` has the digests of each file: the registry's and the one made here. `sides` says what each side ran on.
    """

    chain: Chain
    files: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    distance: Distance | None = None
    sides: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def identical(self) -> bool:
        """True if every file has the registry's bytes."""
        return bool(self.files) and all(registered == here for registered, here in self.files.values())

    @property
    def verdict(self) -> str:
        """One sentence."""
        name = self.chain.subject
        if not self.files:
            return f"{name}: not trained again: {len(self.chain.broken)} of its inputs do not hold"
        if self.identical:
            return f"{name}: identical"
        apart = self.distance
        assert apart is not None
        if apart.cosine is None:
            return f"{name}: not identical: another layer or size than the registry's"
        said = f"cosine {apart.cosine:.9f}, norms {apart.norms[0]:.6g} and {apart.norms[1]:.6g}"
        if apart.explained:
            return (
                f"{name}: not identical: {said}; another processor or other versions explain a difference of this size"
            )
        return f"{name}: not identical: {said}; this is more than another processor or other versions explain"

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        apart = self.distance
        files = {name: {"registry": known, "here": here} for name, (known, here) in self.files.items()}
        return {
            **self.chain.document(),
            "identical": self.identical,
            "verdict": self.verdict,
            "files": files,
            "distance": {**apart.document(), "explained": apart.explained} if apart else None,
            "sides": {name: dict(side) for name, side in self.sides.items()},
        }


def rebuild(store: Store, lineage: str, name: str, work: Path, train: Trainer, note: Note = unheard) -> Rebuilt:
    """Make the version `name` again in the new folder `work` and compare. `note` is told the steps.

    UserError as `trace`, for a remote that gives nothing, for settings that are no profile, and where `train` fails.
    """
    traced = trace(store, History(lineage, work / "lineage"), name)
    manifest, recorded = traced.version.manifest, traced.recorded
    if manifest is None or recorded is None or traced.broken:
        return Rebuilt(Chain(name, traced.links, ()))
    note(f"{recorded.where} recorded it")
    links, at = _inputs(traced, recorded, manifest, work)
    chain = Chain(name, tuple(links), tuple(_notes(manifest)))
    if chain.broken:
        return Rebuilt(chain)
    note("every input is what the manifest and the run's record name")
    profile, seed = _settings(recorded), manifest.seed
    folder = recorded.place.rpartition("/")[2]
    train(at["preferences"], at["rollouts"], at["segments"], at["policy"], folder, profile, seed, work / "again")
    made = work / "again" / folder
    known = lay_files(read_files(store, manifest), work / "registered")
    files = {file: (digest, _digest(made / file)) for file, digest in manifest.files.by_name().items()}
    return Rebuilt(chain, files, distance(known, made), {"registry": _there(manifest), "here": _here()})


def _inputs(traced: Traced, recorded: Recorded, manifest: Manifest, work: Path) -> tuple[list[Link], dict[str, Path]]:
    """Every input fetched and held against its digests, and where it lies."""
    data = Data(remote_of(recorded.history), work / "dvc", traced.erased)
    known = {kind: tracked_by(recorded.history, recorded.commit, "shared", kind) for kind in INPUTS}
    own = (tracked_by(recorded.history, recorded.commit, recorded.place, name) for name in KEPT)
    data.fetch([tracked for tracked in (*known.values(), *own) if tracked])
    evidence = Evidence(recorded, data, work / "data")
    links = [*traced.links, settings_link(recorded, manifest), *evidence.links(manifest)]
    pairs = evidence.part("preferences").whole
    at = {"preferences": pairs} if pairs else {}
    for kind, tracked in known.items():
        where = f"shared/{kind} of {recorded.where}"
        problems = data.problems(tracked) if tracked else {}
        if tracked is not None and not problems:
            at[kind] = data.lay(tracked, work / "data" / kind)
        found = sha256_tree(at[kind]) if kind in at else None
        links.append(_input(kind, where, recorded, manifest, found, problems))
    return links, at


def _input(
    kind: str, where: str, recorded: Recorded, manifest: Manifest, found: str | None, problems: Mapping[str, Any]
) -> Link:
    if kind == POLICY:
        expected, named_by = manifest.policy, "the manifest"
    else:
        known = recorded.artifact(kind)
        expected, named_by = (found if found in known else next(iter(known), "")), "the run's record"
    return compared(
        kind, where, named_by, expected, found, rests_on=(RUN,) if kind != POLICY else (), problems=problems.values(),
        other=f"not the {kind} that it was trained on",
    )  # fmt: skip


def _settings(recorded: Recorded) -> Profile:
    settings = settings_of(recorded).get("profile")
    if not isinstance(settings, Mapping):
        raise UserError(
            f"{recorded.where}: {recorded.place}/params.yaml has no profile; restore the repository from a backup"
        )
    return parse_profile(canonical_json({**settings, "cluster": None}))


def _notes(manifest: Manifest) -> list[str]:
    here = commit()
    if here == manifest.commit:
        return []
    return [f"the code installed here is {here}, the registry's version was made by {manifest.commit}"]


def _digest(path: Path) -> str:
    return sha256_file(path) if path.is_file() else ""


def _there(manifest: Manifest) -> dict[str, str]:
    return {"code": manifest.commit, "image": manifest.image, "platform": "not recorded, but by the image"}


def _here() -> dict[str, str]:
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return {"code": commit(), "image": "this process", "platform": ", ".join([system, *map(_version, LIBRARIES)])}


def _version(library: str) -> str:
    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:
        return f"{library} not installed"
