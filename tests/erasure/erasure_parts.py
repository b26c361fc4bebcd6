"""A deployment with canaries in it, recorded by hand in the stages' own formats; and its places."""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from erasure_texts import (
    CANARY,
    CONTEXTS,
    DOOR,
    JUDGE,
    KEY,
    LATER,
    MINING,
    OTHERS,
    OURS,
    ROOM,
    WHEN,
    WHO,
    YARD,
    Asked,
    context,
    event,
    judgement,
    memory,
    provenance,
    rollouts,
    said,
    segment,
)
from safetensors.numpy import load_file, save_file

from taskmem.config import load_profile
from taskmem.erasure.erase import Erasure, Places, erase
from taskmem.erasure.logs import START
from taskmem.erasure.target import Target
from taskmem.evaluation.streaming import GradedAnswer
from taskmem.feedback import EventLog, Watermark, collect, write_collection
from taskmem.files import canonical_json, sha256_file, sha256_tree
from taskmem.lineage.git import new_repository
from taskmem.lineage.layout import Member
from taskmem.lineage.outcome import Outcome
from taskmem.lineage.record import write_lineage
from taskmem.lineage.repository import record_run
from taskmem.lineage.run import Run
from taskmem.preferences.compare import ComparisonFailure
from taskmem.progress import Note, unheard
from taskmem.records import Comparison, Preference, Question, dump_record, write_json, write_records
from taskmem.registry import advance, champion, promote, publish, watermark
from taskmem.store import open_store


@dataclass(frozen=True)
class Site:
    """A deployment: its places by URL and path, and the folder of everything that is not in a bucket."""

    root: Path
    store: str
    remote: str

    @property
    def lineage(self) -> Path:
        return self.root / "lineage.git"

    @property
    def events(self) -> Path:
        return self.root / "events"

    @property
    def run(self) -> Path:
        return self.root / "runs" / "demo"

    @property
    def clone(self) -> Path:
        """Somebody's clone of the lineage repository, with data and DVC's cache."""
        return self.root / "clone"

    @property
    def places(self) -> Places:
        return Places(
            self.store,
            str(self.lineage),
            self.events,
            tuple(folder for folder in (self.run, self.clone) if folder.exists()),
        )

    def erase(self, name: str, note: Note = unheard, places: Places | None = None) -> Erasure:
        return erase(Target.parse(name), places or self.places, WHO, WHEN, "they asked for it", note)

    def fresh_clone(self, name: str) -> Path:
        """A clone with all the data that its head names; DVC fails if anything is missing."""
        folder = self.root / name
        subprocess.run(["git", "clone", "--quiet", str(self.lineage), str(folder)], check=True)
        assert dvc(folder, "pull") is not None
        return folder

    def collected(self, environment: str, erased: Iterable[str] = ()) -> list[str]:
        """What the next collection takes in, and that it uses it up."""
        store = open_store(self.store)
        used = watermark(store, environment)
        since = Watermark.model_validate(used) if used else None
        new = collect(self.events / f"{environment}.jsonl", since, MINING, environment, frozenset(erased))
        advance(store, environment, new.watermark.model_dump(mode="json"), used)
        return [question.id for question in new.new(environment)]


def dvc(folder: Path, *arguments: str) -> str:
    aside = folder.parent / f"{folder.name}.dvc-site"
    variables = {"DVC_SITE_CACHE_DIR": str(aside), "DVC_NO_ANALYTICS": "1"}
    environment = {**os.environ, **variables, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def build(root: Path, store: str, remote: str, whole: bool = True) -> Site:
    """Two nights, recorded: door@v1 was trained on our stream and by our user, door@v2 by the user, room@v1 by neither.

    If it is not to be `whole`, one night without door@v2, and nobody's clone.
    """
    site = Site(root, store, remote)
    new_repository(site.lineage)
    for environment, asked in (("door", DOOR), ("room", ROOM), ("yard", YARD)):
        ask(site, environment, asked)
    shared = _shared(site.run / "runs")
    _night(site, "night-1", 1, shared, {"door": DOOR, "room": ROOM})
    if whole:
        _night(site, "night-2", 2, shared, {"door": tuple(row for row in DOOR if row[1] == OTHERS)})
    for environment in ("door", "room", "yard"):
        site.collected(environment)
    for environment in ("door", "yard"):
        ask(site, environment, LATER)
    _kept_rollouts(site)
    _quoting(site.run)
    if whole:
        subprocess.run(["git", "clone", "--quiet", str(site.lineage), str(site.clone)], check=True)
        dvc(site.clone, "pull", "--all-commits")
    return site


def ask(site: Site, environment: str, asked: Asked) -> None:
    with EventLog(site.events / f"{environment}.jsonl") as log:
        for number, stream, source in asked:
            log.append(event(environment, number, stream, source))


def _shared(root: Path) -> dict[str, list[Path]]:
    film = root / "segments"
    segments = [segment(film, stream, index) for stream in (OURS, OTHERS) for index in range(CONTEXTS)]
    write_records(film / "segments.jsonl", segments)
    for stream in (OURS, OTHERS):
        own = [json.loads(dump_record(s)) for s in segments if s.stream == stream]
        write_json(film / ".done" / f"{stream}.json", {"key": "k", "segments": own, "refusals": []})
    (root / "videos").mkdir()
    for stream in (OURS, OTHERS):
        (root / "videos" / f"{stream}.mp4").write_bytes(f"film {said(stream, 'all')}".encode())
        (root / "videos" / f"{stream}.en.srt").write_text(f"1\n00:00:00 --> 00:00:01\n{said(stream, 'speech')}\n")
    write_records(root / "rollouts" / "rollouts.jsonl", [rollouts(s.stream, s.index) for s in segments])
    write_records(root / "judgements" / "judgements.jsonl", [judgement(s.stream, s.index) for s in segments])
    (root / "policy").mkdir()
    (root / "policy" / "config.json").write_text('{"model_type": "tiny"}')
    (root / "policy" / "model.safetensors").write_bytes(b"weights")
    held = segment(root / "gate_segments", "held-out-1", 0)
    write_records(root / "gate_segments" / "segments.jsonl", [held])
    question = Question(
        id="g1", environment="door", stream="held-out-1", asked_at_s=1.0, type="object", text="held out?"
    )
    write_records(root / "gate_questions" / "questions.jsonl", [question])
    write_records(root / "champion" / "memories.jsonl", [memory(s.stream, s.index) for s in segments])
    graded = [
        GradedAnswer(
            question="q1", stream=s, environment="door", type="object", answer=said(s, "graded"), correct=False
        )
        for s in (OURS, OTHERS)
    ]
    write_records(root / "champion" / "graded.jsonl", graded)
    kinds = ("segments", "policy", "rollouts", "judgements", "gate_segments", "gate_questions", "champion")
    return {kind: [root / kind] for kind in kinds}


def _night(
    site: Site,
    name: str,
    number: int,
    shared: dict[str, list[Path]],
    asked: dict[str, Asked],
) -> None:
    root = site.run / "runs" / name
    policy = sha256_tree(shared["policy"][0])
    artifacts = {**shared, "events": [root / "events"]}
    artifacts |= {kind: [root / kind] for kind in ("feedback", "preferences", "adapters", "verdicts")}
    store, outcomes, members = open_store(site.store), [], {}
    for environment, rows in asked.items():
        _feedback(root, environment, rows)
        _pairs(root / "preferences" / environment, environment, rows)
        adapter = _adapter(root / "adapters" / environment, number * 10 + len(environment), policy, rows)
        write_json(root / "verdicts" / environment / "verdict.json", {"environment": environment, "promote": True})
        write_json(root / "verdicts" / environment / "held.json", {"environment": environment})
        pairs = sha256_file(root / "preferences" / environment / "preferences.jsonl")
        version = publish(store, environment, adapter, provenance(policy, pairs), read_light).version
        document = (root / "verdicts" / environment / "verdict.json").read_bytes()
        promote(store, environment, version, champion(store, environment), document, by="the night", time=WHEN)
        fields = {"environment": environment, "name": environment, "stage": "promotion", "status": "promoted"}
        outcomes.append(Outcome(**fields, reason="9 wins", version=f"{environment}@{version}"))  # type: ignore[arg-type]
        members[environment] = Member(environment, environment, load_profile("miniature"))
    for name, quoted in (("home", memory(OURS, 1).text), ("shop", event("door", *DOOR[3]).correction)):
        reason = f"the judge said: {quoted}"
        outcomes.append(Outcome(environment=name, name=name, stage="gate", status="failed", reason=reason))
    write_lineage(artifacts, outcomes, load_profile("miniature"), "local", 0, root / "record", root / "summary.md")
    run = Run(root / "record", artifacts, members)
    record_run(run, str(site.lineage), site.remote, store, site.root / "work")


def _feedback(root: Path, environment: str, rows: Asked) -> None:
    log = root / "events" / f"{environment}.jsonl"
    with EventLog(log) as events:
        for number, stream, source in rows:
            events.append(event(environment, number, stream, source))
    log.with_name(f"{log.name}.lock").unlink()
    write_collection(root / "feedback" / environment, collect(log, None, MINING, environment))
    write_json(root / "feedback" / environment / "since.json", None)


def _pairs(folder: Path, environment: str, rows: Asked) -> None:
    pairs = [
        Preference(
            context=context(stream, number % CONTEXTS),
            chosen=0,
            rejected=1,
            path_length=1,
            token_difference=0,
            questions=(f"q{number}",),
            sources=(source,),
        )
        for number, stream, source in rows
    ]
    write_records(folder / "preferences.jsonl", pairs)
    compared = [
        Comparison(
            context=pair.context, a=0, b=1, questions=pair.questions, first_order="a", second_order="a", judge=JUDGE
        )
        for pair in pairs
    ]
    write_records(folder / "comparisons.jsonl", compared)
    first = event(environment, *rows[0])
    failure = ComparisonFailure(context=context(OTHERS, 0), a=0, b=1, reason=f"cannot say: {first.text}")
    write_records(folder / "failures.jsonl", [failure])
    write_json(folder / "summary.json", {"environment": environment, "first_failure": failure.reason})


def _adapter(folder: Path, content: int, policy: str, rows: Asked) -> Path:
    folder.mkdir(parents=True)
    rng = random.Random(content)
    vector = np.array([rng.gauss(0, 1) for _ in range(8)], np.float32)
    save_file({KEY: vector}, folder / "adapter_model.safetensors")
    config = {"peft_type": "STEER", "layer": 1, "base_model_name_or_path": f"sha256:{policy}"}
    write_json(folder / "adapter_config.json", config)
    write_json(folder / "training.json", {"trained_norm": content, "steps": []})
    sources = {source: {"pairs": 1, "share": 0.5} for _, _, source in rows}
    pairs = [
        {"context": context(stream, n % CONTEXTS), "questions": [f"q{n}"], "sources": [s]} for n, stream, s in rows
    ]
    write_json(folder / "influence.json", {"sources": sources, "pairs": pairs})
    return folder


def read_light(folder: Path) -> tuple[int, Any]:
    (vector,) = load_file(folder / "adapter_model.safetensors").values()
    return int(json.loads((folder / "adapter_config.json").read_text())["layer"]), vector


def _kept_rollouts(site: Site) -> None:
    store = open_store(site.store)
    for stream in (OURS, OTHERS):
        for index in range(CONTEXTS):
            kept = rollouts(stream, index)
            key = f"rollouts/{'a' * 64}/{'b' * 64}/{kept.context.replace(':', '/')}"
            store.put_if_absent(key, dump_record(kept).encode())


def _quoting(run: Path) -> None:
    """What a run leaves besides its artifacts."""
    remembered, corrected = str(memory(OURS, 2).text), str(event("door", *DOOR[3]).correction)
    run.joinpath("report.html").write_text(f"<p>{escape(remembered)}</p>", encoding="utf-8")
    run.joinpath("voice.html").write_text(f"<p>{escape(corrected)}</p>", encoding="utf-8")
    run.joinpath("plain.html").write_text("<p>nothing of anybody</p>")
    logs = run / "logs"
    logs.mkdir()
    logs.joinpath("deploy.log").write_text(f"stage deploy\n{remembered!r}\n", encoding="utf-8")
    logs.joinpath("segment.log").write_text(f"{OURS}: 4 segments\n")
    logs.joinpath("other.log").write_text(f"{OTHERS}: 4 segments\n")
    with zipfile.ZipFile(run / "bundle.zip", "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("inner/memories.json", json.dumps([remembered] * 50))
    (run / "log.txt.gz").write_bytes(gzip.compress(remembered.encode() * 50))
    (run / "said.json").write_text(json.dumps({"kept": "numbers", "said": [f"so: {remembered}", f"and: {corrected}"]}))
    # a page far behind the only record that has its words
    write_records(run / "aa" / "memories.jsonl", [memory(OURS, 7)])
    (run / "zz").mkdir()
    (run / "zz" / "page.html").write_text(escape(str(memory(OURS, 7).text)), encoding="utf-8")
    cache = run / "cache"
    cache.mkdir()
    for name, uri in (("made", "runs/rollouts"), ("weights", "runs/policy")):
        artifact = {
            "type": "x",
            "name": name,
            "inside": True,
            "uri": uri,
            "custom_path": None,
            "metadata": {},
            "digest": "d",
        }
        entry = {"pipeline": "p", "stage": name, "seconds": 1.0, "outputs": {"out": {"artifact": artifact}}}
        (cache / f"{name}.json").write_text(canonical_json(entry))
    (run / "trunks").mkdir()
    (run / "trunks" / f"{'9' * 64}.safetensors").write_bytes(CANARY.encode())


def _at_start(data: bytes) -> bool:
    return json.loads(data.partition(b"\n")[2]) in ({}, START)


@dataclass(frozen=True)
class Snapshot:
    """A site's files as they were, to be put back."""

    site: Site
    kept: Path

    @classmethod
    def of(cls, site: Site, kept: Path) -> "Snapshot":
        shutil.copytree(site.root, kept, symlinks=True)
        return cls(site, kept)

    def files(self) -> dict[str, bytes]:
        """The bytes of all files now, but those of locks and git repositories; of the lineage, its tree and its tags.

        A watermark at the start is one, however it says so.
        """
        root, lineage = self.site.root, str(self.site.lineage)
        found = {path.relative_to(root): path for path in root.rglob("*") if path.is_file()}
        kept = {name: path for name, path in found.items() if not {".git", "lineage.git", "locks"} & set(name.parts)}
        said = [
            subprocess.run(["git", "-C", lineage, *command], capture_output=True, check=True).stdout
            for command in (["rev-parse", "main^{tree}"], ["for-each-ref", "refs/tags"])
        ]
        files = {name.as_posix(): path.read_bytes() for name, path in kept.items()}
        starts = {name: b"start" for name, data in files.items() if name.endswith("/watermark~") and _at_start(data)}
        return {**files, **starts, "lineage": b"".join(said)}

    def restore(self) -> Site:
        shutil.rmtree(self.site.root)
        shutil.copytree(self.kept, self.site.root, symlinks=True)
        return self.site
