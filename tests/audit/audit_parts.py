"""A deployment of two nights, written by hand in the stages' own formats, published, promoted and recorded."""

import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from taskmem.audit.adapter import audit_adapter
from taskmem.audit.links import Chain
from taskmem.config import load_profile, override
from taskmem.evaluation.gate import Gold, Rate, Unscored, Verdict, Wins
from taskmem.feedback import Collection, EventLog, FeedbackParts, collect_parts, write_collection
from taskmem.feedback.collection import read_collection
from taskmem.feedback.collector import collect
from taskmem.files import canonical_json, sha256_bytes, sha256_file, sha256_tree
from taskmem.lineage.git import new_repository
from taskmem.lineage.layout import Member
from taskmem.lineage.outcome import Outcome
from taskmem.lineage.record import write_lineage
from taskmem.lineage.repository import record_run
from taskmem.lineage.run import Run
from taskmem.records import Comparison, FeedbackEvent, Judge, Preference, write_json, write_records
from taskmem.registry import Provenance, champion, promote, publish
from taskmem.store import LocalStore, open_store

IMAGE = "registry.test/taskmem/train@sha256:" + "7" * 64
CODE = "c0de" * 10
NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
CANARY = "who hid the teal umbrella?"
SHARED = ("segments", "policy", "rollouts", "judgements", "gate_segments", "gate_questions", "champion")
KEY = "base_model.model.model.language_model.layers.1.steer_vector"
SHARD = "one"
SOURCES = ("1" * 64, "2" * 64, "3" * 64)


@dataclass(frozen=True)
class Place:
    """A registry, a lineage repository and its DVC remote."""

    root: Path

    @property
    def store(self) -> LocalStore:
        return LocalStore(self.root / "store")

    @property
    def lineage(self) -> str:
        return str(self.root / "lineage.git")

    @property
    def remote(self) -> Path:
        return self.root / "remote"

    def options(self) -> list[str]:
        return ["--store", str(self.root / "store"), "--lineage", self.lineage]

    def audit(self, name: str, work: Path, **more: Any) -> Chain:
        return audit_adapter(open_store(str(self.root / "store")), self.lineage, name, work / "audit", **more)

    def git(self, *arguments: str, given: bytes = b"", **variables: str) -> str:
        command = ["git", "-C", self.lineage, "-c", "user.name=Eve", "-c", "user.email=eve@example.org", *arguments]
        done = subprocess.run(command, env={**os.environ, **variables}, input=given, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode().strip()

    def object_of(self, data: bytes) -> Path:
        """The file of the remote that holds these bytes."""
        (path,) = [path for path in self.remote.rglob("*") if path.is_file() and path.read_bytes() == data]
        return path


@contextmanager
def changed(path: Path, data: bytes | None) -> Iterator[None]:
    """A file with other bytes, or away, for a while."""
    mode, before = path.stat().st_mode, path.read_bytes()
    path.chmod(0o644)
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)
        path.chmod(mode)


@contextmanager
def objects_kept(place: Place) -> Iterator[None]:
    """The store and the lineage's refs as they were, whatever is done to them meanwhile."""
    kept = place.root / "kept"
    for name in ("store", "lineage.git"):
        shutil.copytree(place.root / name, kept / name)
    try:
        yield
    finally:
        for name in ("store", "lineage.git"):
            shutil.rmtree(place.root / name)
            (kept / name).replace(place.root / name)
        shutil.rmtree(kept)


def one_byte_off(data: bytes, at: int = -10) -> bytes:
    turned = bytearray(data)
    turned[at] ^= 1
    return bytes(turned)


def overwrite(place: Place, key: str, data: bytes) -> None:
    """Other bytes in place of an object, as somebody with access to the store can put them there."""
    place.store.compare_and_swap(key, data, place.store.get(key).etag)


def read_light(folder: Path) -> tuple[int, Any]:
    """What `taskmem.steer.read_adapter` gives of a good adapter, without torch."""
    (vector,) = load_file(folder / "adapter_model.safetensors").values()
    return int(json.loads((folder / "adapter_config.json").read_text())["layer"]), vector


def event(environment: str, number: int) -> FeedbackEvent:
    return FeedbackEvent(
        id=f"e{number}",
        environment=environment,
        source=SOURCES[number % 3],
        time=NOW + timedelta(minutes=number),
        question=f"q{number}",
        stream="s0",
        asked_at_s=float(number),
        type="object",
        text=f"{CANARY} ({number})",
        answer=None,
        outcome="incorrect",
        consent=True,
    )


def judge(number: int = 0) -> Judge:
    return Judge(role="helpfulness", model=f"judge/{number}", prompt_sha256=f"{number}" * 64)


def verdict(environment: str, promotes: bool) -> Verdict:
    wins = Wins(
        wins=40, losses=2, ties=9, by_grammar=0, streams=9, least_wins=30, least_streams=8, p_value=0.002, passed=promotes
    )  # fmt: skip
    gold = Gold(asked=30, least=20, champion=0.4, challenger=0.6, difference=0.2, interval=(0.1, 0.3), passed=True)
    return Verdict(
        environment=environment,
        promote=promotes,
        reasons=() if promotes else ("the challenger does not win",),
        confidence=0.95,
        seed=0,
        unscored=Unscored(contexts=Rate(count=0, of=51, share=0.0), bound=0.05, reason=None, passed=True),
        win_test=wins,
        quality={},
        coverage={},
        gold=gold,
    )


def deployed(root: Path) -> Place:
    """Two nights: door@v1 and door@v2 are promoted one after the other, room@v1 too; room@v2 is published and kept."""
    place = Place(root)
    new_repository(Path(place.lineage))
    shared = {kind: [_shared(root / "shared" / kind, kind)] for kind in SHARED}
    for number, ended in enumerate(({"door": True, "room": True}, {"door": True, "room": False}), 1):
        _night(place, root / f"night{number}", shared, number, ended)
    return place


def _shared(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True)
    (folder / f"{kind}.jsonl").write_text(f"{kind} saw {CANARY}\n")
    return folder


def _night(place: Place, root: Path, shared: dict[str, list[Path]], number: int, ended: dict[str, bool]) -> None:
    policy = sha256_tree(shared["policy"][0])
    artifacts = {**shared, "events": [root / "events"]}
    artifacts |= {kind: [root / kind] for kind in ("feedback", "preferences", "adapters", "verdicts")}
    profile = override(load_profile("miniature"), {"phase_two": {"steps": 4 + number}}, "night")
    outcomes, members = [], {}
    for environment, promotes in ended.items():
        collected = _feedback(root, environment, number)
        _pairs(root / "preferences" / environment, number)
        adapter = _adapter(root / "adapters" / environment, ord(environment[0]) + number, policy)
        folder = root / "verdicts" / environment
        write_json(folder / "verdict.json", verdict(environment, promotes).model_dump(mode="json"))
        made = _provenance(root, environment, collected, policy, number)
        version = publish(place.store, environment, adapter, made, read_light).version
        if promotes:
            now, document = champion(place.store, environment), (folder / "verdict.json").read_bytes()
            promote(place.store, environment, version, now, document, by="the night", time=NOW + timedelta(days=number))
        now = champion(place.store, environment)
        status = "promoted" if promotes else "kept"
        fields = {"environment": environment, "name": f"{environment}-night", "stage": "promotion", "status": status}
        outcomes.append(Outcome.model_validate({**fields, "reason": "9 wins", "version": now.name if now else None}))
        members[f"{environment}-night"] = Member(environment, f"{environment}-night", profile)
        for kind in ("feedback", "preferences", "adapters", "verdicts"):
            (root / kind / environment).rename(root / kind / f"{environment}-night")
    write_lineage(artifacts, outcomes, profile, IMAGE, number, root / "record", root / "summary.md")
    run = Run(root / "record", artifacts, members)
    record_run(run, place.lineage, str(place.remote), place.store, root / "work")


def _feedback(root: Path, environment: str, number: int) -> Collection:
    """A night's feedback; that of every second night came in parts."""
    log = root / "events" / f"{environment}.jsonl"
    asked = [event(environment, n) for n in range(4 + number)]
    out, mining = root / "feedback" / environment, load_profile("miniature").mining
    with EventLog(log) as events:
        for each in asked:
            events.append(each)
    log.with_name(f"{log.name}.lock").unlink()
    if number % 2:
        parts = FeedbackParts(LocalStore(root / "shipped"), environment)
        parts.append(asked[:2])
        parts.append(asked[1:])
        write_collection(out, collect_parts(parts, None, mining, kept=out / "events.jsonl"))
    else:
        write_collection(out, collect(log, None, mining, environment))
    write_json(out / "since.json", None)
    return read_collection(out)


def _pairs(folder: Path, number: int) -> None:
    pairs = [_pair(n) for n in range(2 + number)]
    write_records(folder / "preferences.jsonl", pairs)
    by = judge(number // 2)
    compared = Comparison(context="s0:0:x", a=0, b=1, questions=("q0",), first_order="a", second_order="a", judge=by)
    write_records(folder / "comparisons.jsonl", [compared])


def _pair(number: int) -> Preference:
    rests_on = {"questions": (f"q{number}",), "sources": (SOURCES[number % 3],)}
    return Preference(
        context=f"s0:{number}:x", chosen=0, rejected=1, path_length=1, token_difference=number, **rests_on
    )


def _adapter(folder: Path, content: int, policy: str) -> Path:
    folder.mkdir(parents=True)
    rng = random.Random(content)
    vector = np.array([rng.gauss(0, 1) for _ in range(8)], np.float32)
    save_file({KEY: vector}, folder / "adapter_model.safetensors")
    config = {"peft_type": "STEER", "layer": 1, "base_model_name_or_path": f"sha256:{policy}"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "training.json").write_text(json.dumps({"trained_norm": content, "steps": []}))
    parts = {SOURCES[0]: 0.7, SOURCES[1]: 0.4, SOURCES[2]: -0.1}
    sources = {name: {"pairs": 1, "steps": 2, "norm": 1.0, "share": share} for name, share in parts.items()}
    (folder / "influence.json").write_text(json.dumps({"sources": sources, "pairs": []}))
    return folder


def _provenance(root: Path, environment: str, collected: Collection, policy: str, number: int) -> Provenance:
    ids = [question.id for question in collected.questions[environment]]
    return Provenance(
        parent=None,
        policy=policy,
        pairs=sha256_file(root / "preferences" / environment / "preferences.jsonl"),
        feedback=sha256_bytes(canonical_json(ids)),
        feedback_count=len(ids),
        judges=(judge(number // 2),),
        commit=CODE,
        image=IMAGE,
        seed=number,
    )


def broken(chain: Chain) -> list[tuple[str, str]]:
    return [(link.name, link.status) for link in chain.broken]


def forge(place: Place, path: str, data: bytes) -> str:
    """The last commit with another file in it, in place of the true one, its tags moved along; returns its id."""
    index = {"GIT_INDEX_FILE": str(place.root / "forged.index")}
    head, message = place.git("rev-parse", "main"), place.git("log", "-1", "--format=%B", "main")
    place.git("read-tree", head, **index)
    blob = place.git("hash-object", "-w", "--stdin", given=data)
    place.git("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}", **index)
    tree = place.git("write-tree", **index)
    forged = place.git("commit-tree", tree, "-p", f"{head}^", "-m", message)
    place.git("update-ref", "refs/heads/main", forged)
    for tag in place.git("tag", "--points-at", head).split():
        said = place.git("for-each-ref", "--format=%(contents)", f"refs/tags/{tag}")
        place.git("tag", "-f", "-a", "-m", said, tag, forged)
    return forged
