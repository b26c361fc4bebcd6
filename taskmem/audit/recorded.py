"""What the lineage repository says of a version: its tag, its run, the settings, and copies of what the registry holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from taskmem.audit.history import History
from taskmem.audit.links import Link, Problem, compared
from taskmem.audit.registered import MANIFEST, PROMOTION
from taskmem.errors import UserError
from taskmem.files import canonical_json, sha256_bytes
from taskmem.lineage import message
from taskmem.lineage.graph import LOCK, PARAMS
from taskmem.records import Name, one_line
from taskmem.registry import Manifest, Promotion

TAG, RUN, SETTINGS, POLICY, CODE, IMAGE = "tag", "run", "settings", "policy", "code", "image"
IN_LINEAGE = "in the lineage"
RUN_FILE, MANIFEST_FILE, PROMOTION_FILE = "run.json", "manifest.json", "promotion.json"
ID_DIGITS = 16


@dataclass(frozen=True)
class Recorded:
    """The commit that recorded a version: `run` is its run.json, `place` its folder, `promoted` if it promotes it."""

    history: History
    commit: str
    run: Mapping[str, Any]
    place: str
    promoted: bool

    @property
    def where(self) -> str:
        """The commit as a message may name it."""
        return f"commit {self.commit[:12]} of {self.history.shown}"

    def read(self, name: str) -> bytes | None:
        """A file of the environment's folder."""
        return self.history.read(self.commit, f"{self.place}/{name}")

    def artifact(self, kind: str) -> list[str]:
        """The digests of the run's artifacts of one kind."""
        artifacts = self.run.get("artifacts")
        found = artifacts.get(kind) if isinstance(artifacts, Mapping) else None
        return [str(digest) for digest in found] if isinstance(found, list) else []


def find(history: History, name: str, document: bytes | None) -> Recorded | None:
    """The first commit that promotes `name`, or else holds the manifest whose bytes are `document`; None if none does.

    UserError for a commit without the files of a run.
    """
    promoted = history.promoted(name)
    commit = promoted or (history.having(document) if document else None)
    if commit is None:
        return None
    run = history.json(commit, RUN_FILE)
    if run is None:
        raise UserError(
            f"{history.shown}: commit {commit[:12]} promotes {name} and has no {RUN_FILE}; mend the repository"
        )
    return Recorded(history, commit, run, _place(history, commit, run, name), promoted is not None)


def _place(history: History, commit: str, run: Mapping[str, Any], name: str) -> str:
    """The folder of the environment's run that made the version `name`."""
    environment, _, version = name.partition("@")
    told = run.get("environments")
    named = (
        [o.get("name") for o in told if isinstance(o, Mapping) and o.get("environment") == environment]
        if isinstance(told, list)
        else []
    )
    for folder in filter(_is_name, named):
        manifest = history.json(commit, f"environments/{folder}/{MANIFEST_FILE}")
        if manifest is not None and (manifest.get("environment"), manifest.get("version")) == (environment, version):
            return f"environments/{folder}"
    raise UserError(
        f"{history.shown}: commit {commit[:12]}: no folder with the {MANIFEST_FILE} of {name}; mend the repository"
    )


def _is_name(value: Any) -> bool:
    try:
        TypeAdapter(Name).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def tag_name(name: str) -> str:
    """The tag of a version, by its name: git allows no two dots in a row."""
    return name.replace("..", ".%2e")


def tag_link(history: History, name: str, manifest: str | None) -> Link | None:
    """The version's tag, against the commit that promotes it and the manifest's digest; None where both are none."""
    promoted, tag = history.promoted(name), history.tag(tag_name(name))
    if promoted is None and tag is None:
        return None
    where = f"tag {tag_name(name)} of {history.shown}"
    problem = None
    if tag is None:
        problem = Problem("missing", where, "there is no such tag")
    elif tag.message is None:
        problem = Problem("damaged", where, "not annotated, so lineage_record did not write it")
    elif tag.commit is None or tag.commit != promoted:
        stands = tag.commit[:12] if tag.commit else "no commit"
        whose = f"commit {promoted[:12]} promotes the version" if promoted else "no commit promotes the version"
        problem = Problem("damaged", where, f"moved: it stands on {stands}, and {whose}")
    elif manifest is not None and message.trailer(tag.message, message.MANIFEST) != manifest:
        problem = Problem("damaged", where, "its message names another manifest")
    facts = {"annotated": tag is not None and tag.message is not None}
    return compared(
        TAG, where, "the commit's Promoted trailer", promoted, tag.commit if tag else None, facts, (RUN, MANIFEST),
        [problem] if problem else (),
    )  # fmt: skip


def run_link(recorded: Recorded, environment: str, entry: Promotion | None) -> Link:
    """The run's record, against its id and the commit's message."""
    run, trailers = recorded.run, recorded.history.trailers(recorded.commit)
    where = f"{RUN_FILE} of {recorded.where}"
    found = sha256_bytes(canonical_json({key: value for key, value in run.items() if key != "id"}))[:ID_DIGITS]
    wrong = [
        f"its {key} and the commit's {key.capitalize()} trailer differ"
        for key in ("commit", "image")
        if not _says(trailers, key, run)
    ]
    if recorded.promoted and entry is not None and f"{environment} {entry.verdict}" not in trailers.get("Verdict", []):
        wrong.append("the commit's Verdict trailer is not the verdict of the promotion")
    facts = {
        "run": found,
        "commit": recorded.commit,
        "recorded": recorded.history.time(recorded.commit),
        "environment": recorded.place,
        "artifacts": run.get("artifacts"),
    }
    return compared(
        RUN, where, "the commit's Run trailer", " ".join(trailers.get(message.RUN, [])), found, facts, (CODE, IMAGE, POLICY),
        [Problem("damaged", where, why) for why in wrong], other="not the record that its id was made of",
    )  # fmt: skip


def _says(trailers: Mapping[str, list[str]], key: str, run: Mapping[str, Any]) -> bool:
    return trailers.get(key.capitalize()) == [one_line(str(run.get(key)))]


def origin_links(recorded: Recorded | None, manifest: Manifest) -> list[Link]:
    """Policy, code and image as the manifest names them, beside what the run says of each.

    Code and image hold where the manifest does: another commit may have recorded the night again.
    """
    run = recorded.run if recorded else {}
    where = f"{RUN_FILE} of {recorded.where}" if recorded else "the manifest"
    links = []
    for name, said in ((CODE, manifest.commit), (IMAGE, manifest.image)):
        known = str(run.get("commit" if name == CODE else name) or said)
        facts = {"trained by": said} | ({"recorded by": known} if known != said else {})
        links.append(Link(name, "verified", where, "the manifest", said, known, facts=facts))
    if recorded:
        policies = recorded.artifact("policy")
        found = manifest.policy if manifest.policy in policies else next(iter(policies), None)
        links.append(
            compared(POLICY, where, "the manifest", manifest.policy, found, other="the run used another policy")
        )
    return links


def copy_link(name: str, recorded: Recorded, file: str, expected: str | None, named_by: str, other: str) -> Link:
    """git's copy of something that the registry holds too."""
    data = recorded.read(file)
    found = sha256_bytes(data) if data is not None else None
    where = f"{recorded.place}/{file} of {recorded.where}"
    rests_on = (PROMOTION if file == PROMOTION_FILE else MANIFEST, RUN)
    return compared(f"{name} {IN_LINEAGE}", where, named_by, expected, found, rests_on=rests_on, other=other)


def settings_of(recorded: Recorded) -> dict[str, Any]:
    """params.yaml: seed, environment and profile; UserError if it is not there."""
    params = recorded.history.yaml(recorded.commit, f"{recorded.place}/{PARAMS}")
    if params is None:
        raise UserError(f"{recorded.where}: {recorded.place}/{PARAMS} is missing; restore the repository from a backup")
    return params


def settings_link(recorded: Recorded, manifest: Manifest) -> Link:
    """The settings in params.yaml, against those that dvc.lock says Phase Two ran with."""
    params = settings_of(recorded)
    told = _locked(recorded)
    ours = {key: _looked_up(params, key.split(".")) for key in told}
    where = f"{recorded.place}/{PARAMS} of {recorded.where}"
    known = {"seed": manifest.seed, "environment": manifest.environment}
    problems = [
        Problem("damaged", where, f"its {key} is not the manifest's")
        for key, value in known.items()
        if params.get(key) != value
    ]
    profile = params.get("profile")
    profile = profile if isinstance(profile, Mapping) else {}
    facts = {"profile": profile.get("name"), "seed": params.get("seed"), "phase_two": profile.get("phase_two")}
    expected, found = (_digest(values, where) for values in (told, ours))
    return compared(SETTINGS, where, LOCK, expected, found, facts, problems=problems, other=f"not those in {LOCK}")


def _locked(recorded: Recorded) -> dict[str, Any]:
    lock = recorded.history.yaml(recorded.commit, f"{recorded.place}/{LOCK}") or {}
    told: Any = lock
    for key in ("stages", "phase_two", "params", PARAMS):
        told = told.get(key) if isinstance(told, Mapping) else None
    if not isinstance(told, Mapping):
        raise UserError(
            f"{recorded.where}: {recorded.place}/{LOCK} has no stage phase_two; restore the repository from a backup"
        )
    return {str(key): value for key, value in told.items()}


def _looked_up(params: Any, path: Sequence[str]) -> Any:
    for key in path:
        params = params.get(key) if isinstance(params, Mapping) else None
    return params


def _digest(value: Any, where: str) -> str:
    try:
        return sha256_bytes(canonical_json(value))
    except (TypeError, ValueError):
        raise UserError(f"{where}: holds what is no setting; restore the repository from a backup") from None
