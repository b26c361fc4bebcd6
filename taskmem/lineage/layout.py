"""What a run made, laid where the lineage repository has it."""

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.feedback import log_path
from taskmem.feedback.kept import EVENTS
from taskmem.files import atomic_write, canonical_json
from taskmem.lineage.graph import (
    CHAMPION,
    LOCK,
    OUTS,
    PARAMS,
    PIPELINE,
    SHARED,
    SINCE,
    Stage,
    Variant,
    completed_lock,
    pipeline,
    to_yaml,
)
from taskmem.records import read_json

FEEDBACK = "feedback"
SHARDED = {"feedback": FEEDBACK, "preferences": "preferences", "adapters": "adapter", "verdicts": "verdict"}
"""The kinds of artifacts that a run has one of for each shard, and the folder of an environment's part."""
LINKED = 64 << 20  # bytes from which a file is hard-linked, not copied
IGNORED = ".gitignore"
ENVIRONMENTS = "environments"


@dataclass(frozen=True)
class Member:
    """An environment of a run: `name` is its adapter's, `profile` its own settings; `drawn` says its pairs were random."""

    environment: str
    name: str
    profile: Profile
    drawn: bool = False


@dataclass
class Laid:
    """One environment's folder `at` in the work folder: which files git keeps, what DVC tracks, which stages it went through."""

    name: str
    at: Path
    stages: list[Stage] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    @property
    def tracked(self) -> list[str]:
        """What DVC tracks and no stage made."""
        return [f"{self.place}/{name}" for name in self.data]

    @property
    def place(self) -> str:
        """The folder's path in the repository."""
        return f"{ENVIRONMENTS}/{self.name}"

    @property
    def files(self) -> list[str]:
        """All that git keeps of it."""
        dvc = [f"{name}.dvc" for name in self.data]
        pipeline = [PARAMS, PIPELINE, LOCK] if self.stages else []
        ignored = [IGNORED] if self.stages or self.data else []
        return [f"{self.place}/{name}" for name in (*self.kept, *dvc, *pipeline, *ignored)]

    def keep(self, name: str, data: bytes | str) -> None:
        """A file that git keeps: no text that a user or the policy wrote."""
        atomic_write(self.at / name, data)
        self.kept.append(name)

    def complete(self, shared: Mapping[str, str]) -> None:
        """Write down the shared inputs too, by the .dvc files in `shared`, once DVC has written dvc.lock."""
        if self.stages:
            lock = (self.at / LOCK).read_text(encoding="utf-8")
            atomic_write(self.at / LOCK, completed_lock(lock, self.stages, shared))
            atomic_write(self.at / PIPELINE, pipeline(self.stages))


class Layout:
    """A work folder, and how files get into it: big ones as hard links, where one file system holds both."""

    def __init__(self, root: Path, linked: int = LINKED) -> None:
        self.root = root
        self._linked = linked
        self._modes: dict[Path, int] = {}

    def lay(self, source: Path, place: str, without: Collection[str] = ()) -> None:
        """The file or all files of the folder `source` but those called as in `without`, at `place` in the work folder."""
        files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
        files = [path for path in files if path.name not in without]
        if not files:
            raise UserError(f"{source}: has no files, so it cannot be recorded; run the stage that writes it")
        for path in files:
            target = self.root / place if path == source else self.root / place / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._lay(path, target)

    def give_back(self) -> None:
        """Give hard-linked files their modes back: DVC makes what it keeps read-only."""
        for path, mode in self._modes.items():
            path.chmod(mode)

    def _lay(self, path: Path, target: Path) -> None:
        status = path.stat()
        if status.st_size >= self._linked and not path.is_symlink():
            try:
                os.link(path, target)
            except OSError:  # another file system, or one without links
                shutil.copyfile(path, target)
            else:
                self._modes[path] = status.st_mode
            return
        shutil.copyfile(path, target)


def lay_environment(
    layout: Layout, name: str, member: Member | None, artifacts: Mapping[str, Sequence[Path]], seed: int
) -> Laid:
    """Lay what the stages made of one environment, and write its params.yaml and dvc.yaml if they made anything."""
    laid = Laid(name, layout.root / ENVIRONMENTS / name)
    made = {out: found for kind, out in SHARDED.items() if (found := part_of(name, artifacts[kind]))}
    if not made:
        return laid
    if member is None:
        raise UserError(
            f"{next(iter(made.values()))}: no environment of the run's shards; give the shards it was made for"
        )
    for out, source in made.items():
        # what a collection started from lies beside what it made
        layout.lay(source, f"{laid.place}/{out}", (EVENTS, SINCE) if out == FEEDBACK else ())
    _lay_inputs(layout, laid, member, made, artifacts.get("events", ()))
    variant = Variant(SINCE in laid.kept, member.drawn, CHAMPION in laid.data, member.profile.world is not None)
    laid.stages = variant.stages(made)
    stages = {stage.out for stage in laid.stages}
    laid.data += [out for out in OUTS if out in made and out not in stages]
    atomic_write(laid.at / PARAMS, _params(member, seed))
    # DVC hashes the shared inputs once, where they are
    atomic_write(laid.at / PIPELINE, pipeline(laid.stages, shared=False))
    write_ignored(laid.at, [*laid.data, *stages])
    return laid


def _lay_inputs(layout: Layout, laid: Laid, member: Member, made: Mapping[str, Path], events: Sequence[Path]) -> None:
    if FEEDBACK in made:
        # what a collection from parts has read lies with it
        kept = [made[FEEDBACK] / EVENTS] if (made[FEEDBACK] / EVENTS).is_file() else []
        (source,) = kept or [log_path(logs, member.environment) for logs in events]
        layout.lay(source, f"{laid.place}/{EVENTS}")
        laid.data.append(EVENTS)
        since = read_json(made[FEEDBACK] / SINCE)
        if since is not None:
            laid.keep(SINCE, canonical_json(since))
    if "verdict" in made and (made["verdict"] / CHAMPION).is_dir():
        layout.lay(made["verdict"] / CHAMPION, f"{laid.place}/{CHAMPION}")
        laid.data.append(CHAMPION)


def part_of(name: str, shards: Sequence[Path]) -> Path | None:
    """The folder of an environment in what the shards made, None if it got no further; UserError if two shards have one."""
    found = [shard / name for shard in shards if (shard / name).is_dir()]
    if len(found) > 1:
        raise UserError(
            f"{found[1]}: {found[0]} is of that name too; give each adapter a name of its own in all shards"
        )
    return found[0] if found else None


def shared_of(artifacts: Mapping[str, Sequence[Path]]) -> dict[str, Path]:
    """The one folder of each shared kind; UserError for a kind that is missing or there twice."""
    if odd := [kind for kind in SHARED if len(artifacts.get(kind, ())) != 1] or _without_events(artifacts):
        raise UserError(f"artifacts: {odd[0]}: there must be one, as every environment of a run uses the same; give it")
    if absent := [kind for kind in SHARDED if kind not in artifacts]:
        raise UserError(f"artifacts: {absent[0]}: missing; give the folder of each shard")
    return {kind: artifacts[kind][0] for kind in SHARED}


def _without_events(artifacts: Mapping[str, Sequence[Path]]) -> list[str]:
    """The kind of the logs, if there are several folders of them, or none and feedback that came from logs."""
    collected = [folder for shard in artifacts.get("feedback", ()) for folder in shard.glob("*/") if folder.is_dir()]
    needed = any(not (folder / EVENTS).is_file() for folder in collected)
    there = len(artifacts.get("events", ()))
    return ["events"] if there > 1 or (needed and not there) else []


def write_ignored(folder: Path, names: Sequence[str]) -> None:
    """What git ignores in a folder because DVC keeps it."""
    atomic_write(folder / IGNORED, "".join(f"/{name}\n" for name in sorted(names)))


def _params(member: Member, seed: int) -> str:
    profile = member.profile.model_copy(update={"cluster": None}).model_dump(mode="json", exclude={"cluster"})
    return to_yaml({"seed": seed, "environment": member.environment, "profile": profile})
