"""The lineage repository: git holds the history, DVC's remote the data; one commit is one run.

    README.md, run.json, outcomes.jsonl, reasons.jsonl.dvc
    shared/<kind>.dvc               what all environments of the run used
    environments/<adapter>/         its settings, stages and outcome, its manifest and promotion; all else by digest, in DVC

Git holds hashes, names and numbers; what users and the policy wrote is in DVC alone, where it can be erased.
"""

import json
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from taskmem.errors import UserError
from taskmem.files import atomic_write, sha256_bytes
from taskmem.lineage.dvc import CONFIG, INITIAL, Dvc, known_remote, remote_url
from taskmem.lineage.git import IDENTITY, Git, PushRejectedError
from taskmem.lineage.graph import SHARED
from taskmem.lineage.layout import (
    ENVIRONMENTS,
    IGNORED,
    LINKED,
    Laid,
    Layout,
    lay_environment,
    part_of,
    write_ignored,
)
from taskmem.lineage.message import MANIFEST, RUN, Published, commit_message, tag_message, trailer
from taskmem.lineage.outcome import OUTCOMES, Outcome
from taskmem.lineage.registered import head_entry, published, verdict_digest
from taskmem.lineage.run import Run
from taskmem.progress import Note, unheard
from taskmem.records import dump_record, write_json, write_records
from taskmem.registry.objects import to_bytes
from taskmem.store import Store

RUN_FILE, REASONS, README = "run.json", "reasons.jsonl", "README.md"
ATTEMPTS, PATIENCE = 20, 4
SHORTEST_WAIT, LONGEST_WAIT = 0.2, 5.0  # seconds between two attempts to push, at most
ABOUT = """# Lineage of TaskMem's adapters

One commit is one run. Its message names the code, the image, every environment and what became of it; a tag
`<environment>@v<N>` stands on the run that a version was promoted in. `dvc pull` fetches what a run was made of, and `dvc.yaml`
in an environment's folder says how each part was made of the others. Reasons that may quote what people wrote stand here
by their SHA-256; `reasons.jsonl` has them. Written by `lineage_record` alone: a commit of anybody else's is not a run.
"""
# what a run's commit replaces of the one before
_OURS = (RUN_FILE, OUTCOMES, f"{REASONS}.dvc", "shared", ENVIRONMENTS, IGNORED)


def record_run(
    run: Run,
    lineage: str,
    remote: str,
    store: Store,
    work: Path,
    identity: str = IDENTITY,
    note: Note = unheard,
    linked: int = LINKED,
) -> str:
    """Record `run` in the git repository `lineage` and its data in the DVC remote `remote`; returns the commit's id.

    A run that is recorded already changes nothing, and one that was killed on the way is completed by recording it again:
    data goes first, then branch and tags move together. Of runs that finish together each gets its commit, one on top of the
    other. `remote` is s3://bucket[/prefix] or a folder, `store` holds the registry. `work` is a folder for temporary
    files, best on the artifacts' file system: there files are hard-linked from `linked` bytes on. `note` is told each step.
    UserError for a repository that is none or holds something else, and for what cannot be reached, read or found.
    """
    url = remote_url(remote)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    git = Git.clone(lineage, work / "repository", identity)
    note("cloned")
    layout = Layout(git.folder, linked)
    try:
        return _Recording(run, git, Dvc(git.folder, work / "dvc", url), store, layout, note).record()
    finally:
        layout.give_back()
        shutil.rmtree(work, ignore_errors=True)


class _Recording:
    """One run on its way into the repository."""

    def __init__(self, run: Run, git: Git, dvc: Dvc, store: Store, layout: Layout, note: Note) -> None:
        self._run, self._git, self._dvc, self._store = run, git, dvc, store
        self._layout, self._note = layout, note
        self._published: dict[str, Published] = {}
        self._verdicts: dict[str, str] = {}

    def record(self) -> str:
        head = self._checked_head()
        if done := self._done(head):
            return done
        files = self._lay(head)
        stuck = 0
        for attempt in range(ATTEMPTS):
            try:
                return self._commit(head, files)
            except PushRejectedError:
                before = (head, self._git.tags())
                # two that wait alike would meet again
                time.sleep(random.uniform(0, min(LONGEST_WAIT, SHORTEST_WAIT * 2**attempt)))
                self._git.fetch()
                head = self._checked_head()
                # whoever came first may not be done yet; after a while it is a rule of the repository that refuses us
                stuck = stuck + 1 if (head, self._git.tags()) == before else 0
                if stuck == PATIENCE:
                    raise
            if done := self._done(head):
                return done
            self._take_over(head)
        raise UserError(f"{self._git.remote.shown}: {ATTEMPTS} other runs came first; run the stage again")

    def _checked_head(self) -> str | None:
        head = self._git.head()
        if head is None and not self._git.branches():
            return None
        if head is None or self._git.read(head, RUN_FILE) is None:
            raise UserError(f"{self._git.remote.shown}: holds something else than lineage; give an empty repository")
        return head

    def _done(self, head: str | None) -> str | None:
        return self._git.trailers(head, RUN).get(self._run.id) if head else None

    def _lay(self, head: str | None) -> list[str]:
        """Everything in its place, hashed and in the remote; returns the files that git keeps."""
        self._take_over(head)
        old = known_remote(self._git.read(head, CONFIG)) if head else None
        known = self._known(head) if old == self._dvc.url else {}
        new = [kind for kind in SHARED if kind not in known]
        for kind in new:
            self._layout.lay(self._run.shared[kind], f"shared/{kind}")
        write_ignored(self._git.folder / "shared", SHARED)
        laid = self._lay_environments()
        self._to_tag()
        self._write_record()
        self._note("laid")
        paths = [*(f"shared/{kind}" for kind in new), *(path for one in laid for path in one.tracked), REASONS]
        self._dvc.add(paths)
        self._note("added")
        pipelines = [f"{one.place}/dvc.yaml" for one in laid if one.stages]
        if pipelines:
            self._dvc.commit(ENVIRONMENTS)
        for kind, text in known.items():
            atomic_write(self._git.folder / "shared" / f"{kind}.dvc", text)
        shared = {kind: (self._git.folder / "shared" / f"{kind}.dvc").read_text() for kind in SHARED}
        for one in laid:
            one.complete(shared)
        self._note("hashed")
        # what the run before this one used is in the remote
        self._dvc.push([*(f"{path}.dvc" for path in paths), *pipelines])
        self._note("data pushed")
        top = (RUN_FILE, OUTCOMES, f"{REASONS}.dvc", IGNORED, f"shared/{IGNORED}", *(f"shared/{k}.dvc" for k in SHARED))
        return [*INITIAL, *top, *(name for one in laid for name in one.files)]

    def _known(self, head: str | None) -> dict[str, bytes]:
        """The .dvc files of shared inputs that the run of the head used too: these are neither hashed nor pushed again."""
        if head is None:
            return {}
        before = _digests(self._git.read(head, RUN_FILE))
        same = [kind for kind in SHARED if before.get(kind) == self._run.document["artifacts"][kind]]
        found = {kind: self._git.read(head, f"shared/{kind}.dvc") for kind in same}
        return {kind: text for kind, text in found.items() if text is not None}

    def _take_over(self, head: str | None) -> None:
        """DVC's settings as they are in the repository, with our remote."""
        for path in INITIAL:
            text = self._git.read(head, path) if head else None
            if text is not None:
                atomic_write(self._git.folder / path, text)
        self._dvc.set_up()

    def _lay_environments(self) -> list[Laid]:
        names = [outcome.name for outcome in self._run.outcomes]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"adapter {twice[0]}: stands twice in the run; give each adapter a name of its own")
        return [self._lay_environment(outcome) for outcome in self._run.told]

    def _lay_environment(self, outcome: Outcome) -> Laid:
        artifacts, document, name = self._run.artifacts, self._run.document, outcome.name
        laid = lay_environment(self._layout, name, self._run.members.get(name), artifacts, document["seed"])
        laid.keep("outcome.json", f"{dump_record(outcome)}\n")
        adapter, verdict = (part_of(name, artifacts[kind]) for kind in ("adapters", "verdicts"))
        digest = verdict_digest(verdict)
        version = published(self._store, outcome, adapter, verdict, document["artifacts"]["policy"][0])
        if digest is not None:
            self._verdicts[name] = digest
        if version is not None:
            self._published[name] = version
            laid.keep("manifest.json", version.document)
        entry = head_entry(self._store, outcome, version, digest)
        if entry is not None:
            laid.keep("promotion.json", to_bytes(entry))
        return laid

    def _write_record(self) -> None:
        root = self._git.folder
        write_json(root / RUN_FILE, self._run.document)
        write_records(root / OUTCOMES, self._run.told)
        write_records(root / REASONS, self._run.outcomes)
        atomic_write(root / README, ABOUT)
        write_ignored(root, [REASONS])

    def _commit(self, head: str | None, files: Sequence[str]) -> str:
        """One commit on top of `head`, with the tags of what was promoted, pushed all or nothing."""
        about = [] if head and self._git.read(head, README) is not None else [README]
        tree = self._git.stage(head, _OURS, [*about, *files])
        run = self._run
        message = commit_message(run.id, run.document, run.told, self._published, self._verdicts)
        commit = self._git.commit(tree, head, message)
        self._note("committed")
        tags = {v.tag: self._git.tag(v.tag, commit, tag_message(run.id, v)) for v in self._to_tag()}
        self._note("tagged")
        self._git.push(commit, tags)
        self._note("pushed")
        return commit

    def _to_tag(self) -> list[Published]:
        """What was promoted for the first time; UserError for a tag that stands for another version of that name."""
        new = []
        for version in self._published.values():
            said = self._git.tag_message(version.tag) if version.promoted else ""
            if said is None:
                new.append(version)
            elif said and trailer(said, MANIFEST) != sha256_bytes(version.document):
                raise UserError(
                    f"{self._git.remote.shown}: its tag {version.tag} stands for another adapter than the registry's version; "
                    "give each registry a lineage repository of its own"
                )
        return new


def _digests(document: bytes | None) -> dict[str, list[str]]:
    try:
        digests: dict[str, list[str]] = json.loads(document or b"{}")["artifacts"]
    except (ValueError, LookupError, TypeError):
        raise UserError(f"lineage repository: {RUN_FILE}: cannot be read; mend it there") from None
    return digests
