"""Runs laid out by hand as the stages leave them, their registry, and a lineage repository to record them in."""

import hashlib
import json
import multiprocessing
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file, save_file

from taskmem.config import Profile, load_profile, override
from taskmem.files import canonical_json, sha256_bytes, sha256_tree
from taskmem.lineage.git import new_repository
from taskmem.lineage.layout import Member
from taskmem.lineage.outcome import OUTCOMES, Outcome
from taskmem.lineage.record import write_lineage
from taskmem.lineage.repository import record_run
from taskmem.lineage.run import Run
from taskmem.records import Judge, write_records
from taskmem.registry import Provenance, champion, promote, publish
from taskmem.store import LocalStore, Store

CANARY = "the-teal-umbrella-of-mrs-abernathy"
"""What a user wrote and the policy remembered; git may hold it nowhere."""
IMAGE = "registry.test/taskmem/train@sha256:" + "7" * 64
NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
SHARED = ("segments", "policy", "rollouts", "judgements", "gate_segments", "gate_questions", "champion")
KEY = "base_model.model.model.language_model.layers.1.steer_vector"
# name: environment, status, shard
ENDED = {
    "shop": ("shop", "promoted", "one"),
    "cafe": ("cafe", "kept", "one"),
    "shop-random": ("shop", "skipped", "two"),
    "home": ("home", "failed", "two"),
}


@dataclass(frozen=True)
class Place:
    """A registry, a lineage repository and its remote."""

    root: Path
    remote: str

    @property
    def store(self) -> Store:
        return LocalStore(self.root / "store")

    @property
    def lineage(self) -> Path:
        return self.root / "lineage.git"

    def git(self, *arguments: str) -> str:
        """What git says of the repository itself."""
        return git(self.lineage, *arguments)

    def head(self) -> str:
        return self.git("rev-parse", "main")

    def tags(self) -> dict[str, str]:
        """The commit that each tag stands on."""
        lines = self.git("for-each-ref", "--format=%(refname:lstrip=2) %(*objectname)", "refs/tags").splitlines()
        return dict(line.split() for line in lines)

    def clone(self, out: Path) -> Path:
        """A fresh clone, as an auditor makes it, with all data that its head names."""
        git(self.root, "clone", "--quiet", str(self.lineage), str(out))
        dvc(out, "pull")
        return out


def place(root: Path, remote: str | None = None) -> Place:
    """A place with nothing in it yet."""
    new_repository(root / "lineage.git")
    return Place(root, remote or str(root / "remote"))


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def dvc(folder: Path, *arguments: str) -> str:
    """DVC as an auditor runs it: nothing of the recording machine is at hand."""
    aside = folder.parent / f"{folder.name}.dvc-site"
    variables = {"DVC_SITE_CACHE_DIR": str(aside), "DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "dvc", *arguments]
    environment = {**os.environ, **variables, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@dataclass(frozen=True)
class Night:
    """A finished run of a place: its artifacts by kind, its outcomes and what the stages were told."""

    root: Path
    place: Place
    seed: int
    artifacts: Mapping[str, Sequence[Path]]
    outcomes: tuple[Outcome, ...]
    members: Mapping[str, Member]

    def run(self) -> Run:
        """The run with its record written."""
        record = self.root / "record"
        if not record.exists():
            used = self.artifacts
            write_lineage(used, self.outcomes, profile(), IMAGE, self.seed, record, self.root / "summary.md")
        return Run(record, self.artifacts, self.members)

    def record(self, work: str = "work", **more: Any) -> str:
        """Record it in its place; returns the commit."""
        where = (str(self.place.lineage), self.place.remote, self.place.store, self.root / work)
        return record_run(self.run(), *where, **more)

    def made(self, name: str, kind: str) -> Path:
        """What a stage made for an adapter."""
        shard = ENDED[name][2]
        return self.root / "made" / shard / kind / name


def profile() -> Profile:
    return load_profile("miniature")


def write(folder: Path, **files: Any) -> Path:
    """Files of JSON or text; "__" in a name is a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else canonical_json(content)
        (folder / name.replace("__", ".")).write_text(f"{text}\n")
    return folder


def write_adapter(folder: Path, content: int, policy: str) -> Path:
    """A steer adapter whose vector is drawn from `content`."""
    folder.mkdir(parents=True)
    rng = random.Random(content)
    save_file({KEY: np.array([rng.gauss(0, 1) for _ in range(8)], np.float32)}, folder / "adapter_model.safetensors")
    config = {"peft_type": "STEER", "layer": 1, "base_model_name_or_path": f"sha256:{policy}"}
    return write(folder, adapter_config__json=config, training__json={"trained_norm": content, "steps": []})


def read_light(folder: Path) -> tuple[int, Any]:
    """What `taskmem.steer.read_adapter` gives of a good adapter, without torch."""
    (vector,) = load_file(folder / "adapter_model.safetensors").values()
    return int(json.loads((folder / "adapter_config.json").read_text())["layer"]), vector


def night(where: Place, name: str = "night", seed: int = 3, ended: Mapping[str, tuple[str, str, str]] = ENDED) -> Night:
    """A run of `where` in a folder of its own; another seed gives other feedback, pairs and adapters on the same policy."""
    root = where.root / name
    artifacts: dict[str, list[Path]] = {kind: [_shared(root / kind, kind)] for kind in SHARED}
    artifacts["events"] = [root / "events"]
    policy = sha256_tree(root / "policy")
    outcomes, members = [], {}
    for adapter, (environment, status, shard) in ended.items():
        text = canonical_json({"environment": environment, "text": f"where is {CANARY}?", "seed": seed})
        write(root / "events", **{f"{environment}__jsonl": text})
        made = root / "made" / shard
        version = _made(where.store, made, adapter, environment, status, policy, seed)
        outcomes.append(_outcome(adapter, environment, status, version))
        settings = {"phase_two": {"steps": 5}} if adapter == "cafe" else {}
        own = override(profile(), settings, adapter)
        members[adapter] = Member(environment, adapter, own, drawn=adapter.endswith("random"))
    for kind in ("feedback", "preferences", "adapters", "verdicts"):
        artifacts[kind] = []
        for shard in sorted({shard for _, _, shard in ended.values()}):
            artifacts[kind].append(root / "made" / shard / kind)
            artifacts[kind][-1].mkdir(parents=True, exist_ok=True)
            write_records(artifacts[kind][-1] / OUTCOMES, [])
    return Night(root, where, seed, artifacts, tuple(outcomes), members)


def _shared(folder: Path, kind: str) -> Path:
    write(folder, **{f"{kind}__jsonl": {"kind": kind, "memories": f"a {kind} saw {CANARY}"}})
    write(folder / "clips" / "s0", **{"0__mp4": f"frames of {kind}"})
    return folder


def _outcome(name: str, environment: str, status: str, version: str | None) -> Outcome:
    reason = {"failed": f"the judge said: {CANARY}", "skipped": "a control is never promoted"}.get(status, "9 wins")
    fields = {"environment": environment, "name": name, "stage": "promotion", "status": status, "reason": reason}
    return Outcome.model_validate({**fields, "version": version})


def _made(store: Store, made: Path, name: str, environment: str, status: str, policy: str, seed: int) -> str | None:
    """What an environment's stages left, as far as it got, and what they did to the registry; returns the champion's name."""
    since = {"offset": seed, "lines": 1, "sha256": "5" * 64} if seed != 3 else None
    write(made / "feedback" / name, since__json=since, watermark__json={"events": 1})
    asked = {f"{environment}__jsonl": {"text": f"where is {CANARY}?", "seed": seed}}
    write(made / "feedback" / name / "questions", **asked)
    if status == "failed":
        return None
    write(made / "preferences" / name, preferences__jsonl=f"pairs {name} {seed}", comparisons__jsonl=CANARY)
    adapter = write_adapter(made / "adapters" / name, seed * 100 + len(name), policy)
    if status == "skipped":
        return None
    verdict = {"environment": environment, "promote": status == "promoted", "seed": seed}
    folder = write(made / "verdicts" / name, verdict__json=verdict, held__json={"environment": environment})
    write(folder / "challenger", memories__jsonl=f"I saw {CANARY}")
    now = champion(store, environment)
    if now is not None:
        write(folder / "champion", memories__jsonl=f"we saw {CANARY}", graded__jsonl="{}")
    version = publish(store, environment, adapter, _provenance(policy, seed), read_light).version
    if status == "promoted":
        document = (folder / "verdict.json").read_bytes()
        now = promote(store, environment, version, now, document, by="the night", time=NOW)
    return now.name if now else None


def _provenance(policy: str, seed: int) -> Provenance:
    judge = Judge(role="helpfulness", model="world/1", prompt_sha256="e" * 64)
    digests = {"policy": policy, "pairs": sha256_bytes(f"{seed}"), "feedback": "d" * 64}
    return Provenance(
        **digests, parent=None, feedback_count=5, judges=(judge,), commit="unknown", image=IMAGE, seed=seed
    )


def files(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, but git's and DVC's own."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {name.as_posix(): path.read_bytes() for name, path in found.items() if name.parts[0] not in (".git", ".dvc")}


def objects(where: Place, commit: str) -> set[str]:
    """The DVC objects that a commit names, each of which must be in the remote with the content that its name says."""
    names = git(where.lineage, "ls-tree", "-r", "--name-only", commit).splitlines()
    named = set()
    for name in names:
        if name.endswith((".dvc", "dvc.lock")):
            text = where.git("show", f"{commit}:{name}")
            document = yaml.safe_load(text)
            parts = document["stages"].values() if "stages" in document else [document]
            named |= {out["md5"] for part in parts for out in part["outs"]}
    found = set()
    while named:
        md5 = named.pop()
        data = (Path(where.remote) / "files" / "md5" / md5[:2] / md5[2:]).read_bytes()
        assert hashlib.md5(data).hexdigest() == md5[:32]
        found.add(md5)
        if md5.endswith(".dir"):
            named |= {entry["md5"] for entry in json.loads(data)} - found
    return found


def every_object(folder: Path) -> bytes:
    """Everything that a git repository holds, reachable or not."""
    command = ["git", "-C", str(folder), "cat-file", "--batch-all-objects", "--batch", "--unordered"]
    return subprocess.run(command, capture_output=True, check=True).stdout


def in_processes(*work: Callable[[], object]) -> list[int | None]:
    """Do each piece of work in a process of its own, all at once; how they ended."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=piece) for piece in work]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]
