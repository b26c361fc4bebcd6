"""A run becomes one commit of the lineage repository: everything by digest in git, every byte in the remote."""

import json
import shutil
import stat
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml
from lineage_parts import (
    CANARY,
    ENDED,
    IMAGE,
    NOW,
    SHARED,
    Night,
    Place,
    dvc,
    every_object,
    files,
    git,
    night,
    objects,
    place,
)

from taskmem.config import load_profile, override
from taskmem.errors import UserError
from taskmem.files import canonical_json, sha256_bytes, sha256_tree
from taskmem.lineage import repository
from taskmem.lineage.outcome import Outcome
from taskmem.records import read_records
from taskmem.registry import promotion_log, read_manifest, rollback
from taskmem.registry.objects import to_bytes
from taskmem.store import Store

ALONE = {"shop": ENDED["shop"]}
OUTS = {"feedback": "feedback", "preferences": "preferences", "adapters": "adapter", "verdicts": "verdict"}


@dataclass(frozen=True)
class Recorded:
    """Two runs of one place, recorded one after the other, and a fresh clone at each, with all data."""

    place: Place
    nights: tuple[Night, Night]
    commits: tuple[str, str]
    clones: tuple[Path, Path]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    where = place(tmp_path_factory.mktemp("lineage"))
    nights, commits, clones = [], [], []
    for name, seed in (("first", 3), ("second", 4)):
        nights.append(night(where, name, seed))
        nights[-1].run()
        if nights[1:]:
            # what the run before used too: gone, so that nobody can look at it again
            shutil.rmtree(nights[-1].root / "policy")
        commits.append(nights[-1].record())
        clones.append(where.clone(where.root / f"clone of the {name}"))
    return Recorded(where, (nights[0], nights[1]), (commits[0], commits[1]), (clones[0], clones[1]))


def test_a_run_is_one_commit_on_top_of_the_one_before(two: Recorded) -> None:
    assert two.place.git("rev-list", "main").splitlines() == [two.commits[1], two.commits[0]]
    author = two.place.git("log", "-1", "--format=%an <%ae> %cn <%ce>", "main")
    assert author == "taskmem lineage <lineage@taskmem> taskmem lineage <lineage@taskmem>"


@pytest.mark.parametrize("number", [0, 1])
def test_a_fresh_clone_has_every_byte_of_the_run(two: Recorded, number: int) -> None:
    run, clone = two.nights[number], two.clones[number]
    for kind in SHARED:
        used = two.nights[0].root if kind == "policy" else run.root
        assert files(clone / "shared" / kind) == files(used / kind) != {}
    for name in ENDED:
        folder = clone / "environments" / name
        for kind, out in OUTS.items():
            made = run.made(name, kind)
            assert (folder / out).exists() == made.exists()
            # what a collection started from lies beside what it made
            whole = {path: data for path, data in files(made).items() if path != "since.json"}
            assert not made.exists() or files(folder / out) == whole
        log = run.root / "events" / f"{ENDED[name][0]}.jsonl"
        assert (folder / "events.jsonl").read_bytes() == log.read_bytes()
    reasons = (clone / "reasons.jsonl").read_bytes()
    assert reasons == (run.root / "record" / "outcomes.jsonl").read_bytes()


@pytest.mark.parametrize("number", [0, 1])
def test_the_clone_s_digests_are_those_of_the_record(two: Recorded, number: int) -> None:
    clone = two.clones[number]
    document = json.loads((clone / "run.json").read_text())
    for kind in SHARED:
        assert document["artifacts"][kind] == [sha256_tree(clone / "shared" / kind)]
    written = json.loads((two.nights[number].root / "record" / "lineage.json").read_text())
    assert {k: v for k, v in document.items() if k not in ("id", "environments")} == {
        k: v for k, v in written.items() if k != "environments"
    }


def test_for_dvc_a_clone_is_clean_and_nothing_is_missing(two: Recorded) -> None:
    clone = two.clones[1]
    assert dvc(clone, "status") == "Data and pipelines are up to date."
    assert dvc(clone, "status", "-c") == "Cache and remote 'lineage' are in sync."
    # with the same result a repeated stage writes the same bytes
    dvc(clone, "commit", "-f", "-R", "environments")
    assert git(clone, "status", "--short") == ""


def test_the_stages_and_what_they_need_make_one_graph(two: Recorded) -> None:
    stages = yaml.safe_load((two.clones[0] / "environments/shop/dvc.yaml").read_text())["stages"]
    assert list(stages) == ["collect", "mine", "phase_two", "gate"]
    shared = {name: {d.removeprefix("../../shared/") for d in s["deps"] if "/" in d} for name, s in stages.items()}
    assert shared == {
        "collect": set(),
        "mine": {"segments", "rollouts", "judgements"},
        "phase_two": {"segments", "rollouts", "policy"},
        "gate": {"policy", "champion", "gate_segments", "gate_questions"},
    }
    assert {name: [d for d in s["deps"] if "/" not in d] for name, s in stages.items()} == {
        "collect": ["events.jsonl"],
        "mine": ["feedback"],
        "phase_two": ["preferences"],
        "gate": ["adapter", "feedback"],
    }
    for name, stage in stages.items():
        lock = yaml.safe_load((two.clones[0] / "environments/shop/dvc.lock").read_text())["stages"][name]
        assert {dep["path"] for dep in lock["deps"]} == set(stage["deps"])
        assert {dep["path"]: len(dep["md5"]) for dep in lock["deps"]} == {
            d: 32 if d == "events.jsonl" else 36 for d in stage["deps"]
        }


def test_an_environment_has_only_the_stages_it_went_through(two: Recorded) -> None:
    def stages(name: str) -> list[str]:
        return list(yaml.safe_load((two.clones[0] / f"environments/{name}/dvc.yaml").read_text())["stages"])

    assert stages("home") == ["collect"]
    # no command draws pairs at random: they are data
    assert stages("shop-random") == ["collect", "phase_two"]
    assert (two.clones[0] / "environments/shop-random/preferences.dvc").is_file()


def test_a_champion_s_own_evaluation_and_a_watermark_are_inputs_where_there_were_any(two: Recorded) -> None:
    first, second = (yaml.safe_load((c / "environments/shop/dvc.yaml").read_text())["stages"] for c in two.clones)
    assert "--champion ../../shared/champion " in first["gate"]["cmd"]
    assert "--champion champion " in second["gate"]["cmd"]
    assert "champion" in second["gate"]["deps"]
    assert "../../shared/champion" not in second["gate"]["deps"]
    held = two.nights[1].made("shop", "verdicts") / "champion"
    assert files(two.clones[1] / "environments/shop/champion") == files(held)
    assert "--since" not in first["collect"]["cmd"]
    assert second["collect"]["cmd"].endswith("--since since.json")
    since = json.loads((two.clones[1] / "environments/shop/since.json").read_text())
    assert since == {"offset": 4, "lines": 1, "sha256": "5" * 64}


def test_the_settings_of_each_environment_are_its_own_and_whole(two: Recorded) -> None:
    for name, settings in (("shop", {}), ("cafe", {"phase_two": {"steps": 5}})):
        path = two.clones[0] / "environments" / name / "params.yaml"
        document = yaml.safe_load(path.read_text())
        assert (document["seed"], document["environment"]) == (3, name)
        assert "cluster" not in document["profile"]
        own = override(load_profile("miniature"), settings, name)
        assert load_profile(str(path)) == own.model_copy(update={"cluster": None})


def test_the_message_says_what_ran_and_what_became_of_every_environment(two: Recorded) -> None:
    run = two.nights[0].run()
    verdicts = [
        sha256_bytes((two.nights[0].made(n, "verdicts") / "verdict.json").read_bytes()) for n in ("cafe", "shop")
    ]
    commit = run.document["commit"]
    assert two.place.git("log", "-1", "--format=%B", two.commits[0]).splitlines() == [
        f"Run {run.id}: 1 skipped, 1 failed, 1 kept, 1 promoted",
        "",
        f"Run: {run.id}",
        f"Commit: {commit}",
        f"Image: {IMAGE}",
        "Environment: cafe kept",
        "Environment: home failed",
        "Environment: shop promoted shop@v1",
        "Environment: shop-random skipped",
        "Promoted: shop@v1",
        f"Verdict: cafe {verdicts[0]}",
        f"Verdict: shop {verdicts[1]}",
    ]
    trailers = two.place.git("log", "-1", "--format=%(trailers:only)", two.commits[0])
    assert len(trailers.splitlines()) == 10


def test_a_run_s_id_is_the_digest_of_what_is_recorded_of_it(two: Recorded) -> None:
    document = json.loads((two.clones[0] / "run.json").read_text())
    content = {name: value for name, value in document.items() if name != "id"}
    assert document["id"] == sha256_bytes(canonical_json(content))[:16] == two.nights[0].run().id
    assert two.nights[1].run().id != document["id"]


def test_each_promoted_version_has_a_tag_on_its_run(two: Recorded) -> None:
    assert two.place.tags() == {"shop@v1": two.commits[0], "shop@v2": two.commits[1]}
    manifest = to_bytes(read_manifest(two.place.store, "shop", "v1"))
    assert two.place.git("for-each-ref", "--format=%(contents)", "refs/tags/shop@v1").splitlines() == [
        "shop@v1",
        "",
        f"Run: {two.nights[0].run().id}",
        f"Manifest: {sha256_bytes(manifest)}",
    ]


@pytest.mark.parametrize("number", [0, 1])
def test_the_manifest_and_the_promotion_are_the_registry_s_own_bytes(two: Recorded, number: int) -> None:
    clone, store = two.clones[number], two.place.store
    for name in ("shop", "cafe"):
        manifest = read_manifest(store, name, f"v{number + 1}")
        assert (clone / "environments" / name / "manifest.json").read_bytes() == to_bytes(manifest)
    # the second promotion is no part of the first run
    entry = promotion_log(store, "shop")[number]
    assert (clone / "environments/shop/promotion.json").read_bytes() == to_bytes(entry)
    assert (clone / "environments/shop-random/promotion.json").read_bytes() == to_bytes(entry)
    for absent in ("cafe/promotion.json", "home/manifest.json", "home/promotion.json", "shop-random/manifest.json"):
        assert not (clone / "environments" / absent).exists()


def test_what_others_wrote_is_in_no_git_object_but_in_the_data(two: Recorded) -> None:
    assert CANARY.encode() not in every_object(two.place.lineage)
    assert not [
        path for path in two.place.lineage.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()
    ]
    everywhere = [path for path in Path(two.place.remote).rglob("*") if path.is_file()]
    assert [path for path in everywhere if CANARY.encode() in path.read_bytes()]


def test_the_gate_s_reasons_are_told_and_others_by_their_digest(two: Recorded) -> None:
    ended = {outcome.name: outcome for outcome in read_records(two.clones[0] / "outcomes.jsonl", Outcome)}
    assert list(ended) == ["cafe", "home", "shop", "shop-random"]
    assert (ended["shop"].reason, ended["cafe"].reason) == ("9 wins", "9 wins")
    assert ended["home"].reason == f"sha256:{sha256_bytes(f'the judge said: {CANARY}')}"
    for name, outcome in ended.items():
        (own,) = read_records(two.clones[0] / "environments" / name / "outcome.json", Outcome)
        assert own == outcome
    document = json.loads((two.clones[0] / "run.json").read_text())
    assert [Outcome.model_validate(e) for e in document["environments"]] == list(ended.values())


def test_what_the_run_before_used_too_is_neither_hashed_nor_sent_again(two: Recorded) -> None:
    assert not (two.nights[1].root / "policy").exists()
    assert (two.clones[1] / "shared/policy.dvc").read_bytes() == (two.clones[0] / "shared/policy.dvc").read_bytes()
    assert files(two.clones[1] / "shared/policy") == files(two.nights[0].root / "policy")


def test_the_same_run_again_is_the_commit_that_is_there(two: Recorded) -> None:
    heard: list[str] = []
    assert [run.record(note=heard.append) for run in two.nights] == list(two.commits)
    assert heard == ["cloned", "cloned"]
    assert two.place.head() == two.commits[1]


def test_a_tag_that_stands_for_another_adapter_of_that_name_stops_the_run(tmp_path: Path, two: Recorded) -> None:
    before = two.place.git("for-each-ref")
    other = night(place(tmp_path), seed=5, ended=ALONE)
    heard: list[str] = []
    mixed = replace(other, place=Mixed(two.place.root, two.place.remote, other.place.store))
    with pytest.raises(
        UserError, match=r"its tag shop@v1 stands for another adapter than the registry's version; give"
    ):
        mixed.record(note=heard.append)
    assert (two.place.git("for-each-ref"), heard) == (before, ["cloned"])


@dataclass(frozen=True)
class Mixed(Place):
    """A lineage repository and the registry of another."""

    other: Store

    @property
    def store(self) -> Store:
        return self.other


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A repository that people worked in, and whose second run has another remote."""
    where = place(tmp_path_factory.mktemp("changed"))
    night(where, "first", 3, ALONE).record()
    clone = where.root / "clone"
    git(where.root, "clone", "--quiet", str(where.lineage), str(clone))
    (clone / "README.md").write_text("ours\n")
    (clone / "CODEOWNERS").write_text("* @auditors\n")
    config = (clone / ".dvc/config").read_text().replace("[core]", "[core]\ncheck_update = false")
    (clone / ".dvc/config").write_text(config)
    git(clone, "add", "CODEOWNERS")
    git(clone, "-c", "user.name=Ada", "-c", "user.email=ada@test", "commit", "--quiet", "-am", "ours")
    git(clone, "push", "--quiet", "origin", "HEAD:main")
    elsewhere = replace(where, remote=str(where.root / "another, remote # é %"))
    night(elsewhere, "second", 4, {"cafe": ENDED["cafe"]}).record()
    return elsewhere


def test_in_another_remote_everything_is_sent_again(changed: Place) -> None:
    head = objects(changed, changed.head())
    first = objects(replace(changed, remote=str(changed.root / "remote")), "main~2")
    assert len(head & first) > 2 * len(SHARED)
    clone = changed.clone(changed.root / "clone of the second")
    assert files(clone / "shared/policy") == files(changed.root / "first" / "policy")


def test_what_people_added_stays(changed: Place) -> None:
    assert changed.git("show", "main:CODEOWNERS") == "* @auditors"
    assert changed.git("show", "main:README.md") == "ours"
    assert "check_update = false" in changed.git("show", "main:.dvc/config")


def test_a_commit_has_the_environments_of_its_run_alone(changed: Place) -> None:
    for commit, names in (("main~2", "environments/shop"), ("main", "environments/cafe")):
        assert changed.git("ls-tree", "--name-only", commit, "environments/") == names


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, list[str]]:
    """The second run recorded before the first; then the first version promoted again by a third run."""
    where = place(tmp_path_factory.mktemp("late"))
    first, second = (night(where, name, seed, ALONE) for name, seed in (("first", 3), ("second", 4)))
    commits = [second.record()]
    rollback(where.store, "shop", "Ada", NOW)
    commits.append(first.record())
    night(where, "ignored", 6, ALONE)
    again = night(where, "again", 3, ALONE)
    other = replace(again, outcomes=(again.outcomes[0].model_copy(update={"reason": "10 wins"}),))
    return where, [*commits, other.record()]


def test_a_run_recorded_late_has_its_own_promotion(late: tuple[Place, list[str]]) -> None:
    where, (second, first, _) = late
    for commit, number, version in ((second, 2, "v2"), (first, 1, "v1")):
        shown = json.loads(where.git("show", f"{commit}:environments/shop/promotion.json"))
        assert (shown["number"], shown["version"], shown["action"]) == (number, version, "promote")


def test_a_version_that_is_promoted_again_keeps_its_tag(late: tuple[Place, list[str]]) -> None:
    where, (second, first, third) = late
    assert where.tags() == {"shop@v1": first, "shop@v2": second}
    promoted = where.git("log", "--format=%(trailers:key=Promoted,valueonly)", "main").split()
    assert promoted == ["shop@v1", "shop@v1", "shop@v2"]
    assert where.head() == third


def test_big_files_are_linked_not_copied_and_keep_their_mode(tmp_path: Path) -> None:
    # a branch of another name is the repository's own choice
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=trunk", str(tmp_path / "lineage.git"))
    where = Place(tmp_path, str(tmp_path / "remote"))
    run = night(where, ended=ALONE)
    weights = run.root / "policy" / "policy.jsonl"
    weights.chmod(0o640)
    links: dict[str, int] = {}

    def heard(step: str) -> None:
        links[step] = weights.stat().st_nlink

    commit = run.record(note=heard, linked=1)
    # the artifact, what is laid out, and DVC's cache are one file
    assert (links["laid"], links["added"], weights.stat().st_nlink) == (2, 3, 1)
    assert stat.S_IMODE(weights.stat().st_mode) == 0o640
    assert objects(where, "trunk")
    assert where.git("rev-parse", "HEAD") == commit


def test_a_path_where_nothing_is_becomes_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = Place(tmp_path / "new", "remote of its own")
    monkeypatch.chdir(tmp_path)
    # a name that no tag of git's can have
    run = night(where, ended={"a..b": ("a..b", "promoted", "one")})
    before = {path: path.stat() for path in run.root.rglob("*") if path.is_file()}
    commit = repository.record_run(run.run(), "new/lineage.git", where.remote, where.store, run.root / "work")
    assert where.head() == commit
    assert objects(replace(where, remote=str(tmp_path / where.remote)), commit)
    assert where.tags() == {"a.%2eb@v1": commit}
    assert "Promoted: a..b@v1" in where.git("log", "-1", "--format=%B", "main")
    # small files are left alone, and nothing else is left
    assert {p: p.stat().st_ctime_ns for p in before} == {p: s.st_ctime_ns for p, s in before.items()}
    assert not (run.root / "work").exists()


def test_a_run_of_which_nothing_came_is_recorded_too(tmp_path: Path) -> None:
    where = place(tmp_path)
    run = night(where, ended={"home": ENDED["home"]})
    nothing = replace(run, outcomes=(), artifacts={**run.artifacts, "feedback": [run.root / "judgements"]})
    commit = nothing.record()
    assert where.git("log", "-1", "--format=%s", commit).endswith(": no environment")
    assert where.git("ls-tree", "--name-only", commit, "environments/") == ""
    assert objects(where, commit)
