"""Killed anywhere, the repository is as before and the same run again completes it; two that finish together both get in."""

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from lineage_parts import ENDED, Night, Place, git, in_processes, night, objects, place

from taskmem.errors import UserError
from taskmem.lineage import repository
from taskmem.lineage.outcome import Outcome

STEPS = ("cloned", "laid", "added", "hashed", "data pushed", "committed", "tagged", "pushed")
ALONE = {"shop": ENDED["shop"]}
KILLED = 9


def dies(step: str) -> Callable[[str], None]:
    """Ends the process, with no chance to tidy up, once it is told of `step`."""

    def note(said: str) -> None:
        if said == step:
            os._exit(KILLED)

    return note


def state(where: Place) -> str:
    """Every ref of the repository and what it stands for."""
    return where.git("for-each-ref", "--format=%(refname) %(objectname) %(*objectname)")


def check(where: Place) -> None:
    """The repository is sound and nothing in it dangles: every tag is on the branch, every object is in the remote."""
    commits = where.git("rev-list", "main").splitlines()
    assert set(where.tags().values()) <= set(commits)
    for commit in commits:
        assert objects(where, commit)
    where.git("fsck", "--strict", "--connectivity-only")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, Night]:
    """A place with one recorded run, and the run that comes next; where neither was ever interrupted."""
    where = place(tmp_path_factory.mktemp("uninterrupted"))
    night(where, "first", 3, ALONE).record()
    shutil.copytree(where.root, where.root.with_name("before"))
    second = night(where, "second", 4, ALONE)
    heard: list[str] = []
    second.record(note=heard.append)
    assert tuple(heard) == STEPS
    return where, second


@pytest.fixture
def interrupted(tmp_path: Path, recorded: tuple[Place, Night]) -> tuple[Place, Night]:
    """The same once more, before the second run is recorded. The first run's remote is that of the uninterrupted place."""
    where, _ = recorded
    shutil.copytree(where.root.with_name("before"), tmp_path / "place")
    copy = Place(tmp_path / "place", str(tmp_path / "place" / "remote"))
    return copy, night(copy, "second", 4, ALONE)


def test_killed_after_each_step_in_turn_it_is_as_before_until_all_of_it_is_there(
    interrupted: tuple[Place, Night], recorded: tuple[Place, Night]
) -> None:
    where, run = interrupted
    before = state(where)
    for step in STEPS:
        assert in_processes(partial(run.record, note=dies(step))) == [KILLED], step
        # the push is the one moment at which anything changes
        assert (state(where) == before) == (step != "pushed"), step
    commit = run.record()
    heard: list[str] = []
    assert run.record(note=heard.append) == commit == where.head()
    assert heard == ["cloned"]
    same(where, recorded[0])
    assert not (run.root / "work").exists()


def test_killed_in_the_middle_of_sending_data_it_sends_the_rest(
    interrupted: tuple[Place, Night], recorded: tuple[Place, Night]
) -> None:
    where, run = interrupted
    sent, before = set(Path(where.remote).rglob("*")), state(where)

    def record() -> None:
        os.setpgid(0, 0)
        run.record()

    process = multiprocessing.get_context("fork").Process(target=record)
    process.start()
    while set(Path(where.remote).rglob("*")) == sent:
        assert process.is_alive()
        time.sleep(0.001)
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert state(where) == before
    run.record()
    same(where, recorded[0])


def same(where: Place, other: Place) -> None:
    """Both places ended alike, but for the times of the commits and the remote's place."""
    check(where)
    ours, theirs = (
        [p.git("ls-tree", "-r", commit) for commit in p.git("rev-list", "main").splitlines()] for p in (where, other)
    )
    assert len(ours) == len(theirs) == 2
    differ = {line.split("\t")[1] for line in set(ours[0].splitlines()) ^ set(theirs[0].splitlines())}
    assert differ == {".dvc/config"}
    assert ours[1] == theirs[1]
    assert where.git("log", "--format=%B", "main") == other.git("log", "--format=%B", "main")
    assert where.git("for-each-ref", "--format=%(refname) %(contents)", "refs/tags") == other.git(
        "for-each-ref", "--format=%(refname) %(contents)", "refs/tags"
    )


def test_two_that_finish_together_are_both_recorded_one_after_the_other(tmp_path: Path) -> None:
    where = place(tmp_path)
    runs = [night(where, name, seed, ALONE) for name, seed in (("one", 5), ("other", 6))]
    barrier = multiprocessing.get_context("fork").Barrier(2, timeout=100)
    assert in_processes(*(partial(run.record, note=together(barrier)) for run in runs)) == [0, 0]
    check_both(where, runs)


def together(barrier: "multiprocessing.synchronize.Barrier") -> Callable[[str], None]:
    """Waits before the first push until all are there, so that only one of them can be first."""
    waited = False

    def note(said: str) -> None:
        nonlocal waited
        if said == "tagged" and not waited:
            waited = True
            barrier.wait()

    return note


def check_both(where: Place, runs: list[Night]) -> None:
    check(where)
    found = where.git("log", "--format=%H %(trailers:key=Run,valueonly)", "main").split()
    by_run = dict(zip(found[1::2], found[::2], strict=True))
    assert len(by_run) == 2
    for run in runs:
        commit = by_run[run.run().id]
        # whoever came second has its own files, and no others
        assert where.git("show", f"{commit}:run.json").startswith(f'{{\n  "id": "{run.run().id}"')
        version = where.git("log", "-1", "--format=%(trailers:key=Promoted,valueonly)", commit).strip()
        assert where.tags()[version] == commit


def test_the_same_run_twice_at_once_is_one_commit(tmp_path: Path) -> None:
    where = place(tmp_path)
    run = night(where, ended=ALONE)
    run.run()
    barrier = multiprocessing.get_context("fork").Barrier(2, timeout=100)
    twice = (partial(run.record, work=f"work {n}", note=together(barrier)) for n in range(2))
    assert in_processes(*twice) == [0, 0]
    assert where.git("rev-list", "--count", "main") == "1"
    check(where)


def test_a_repository_that_refuses_for_a_reason_of_its_own_ends_the_attempts(
    interrupted: tuple[Place, Night], monkeypatch: pytest.MonkeyPatch
) -> None:
    where, run = interrupted
    monkeypatch.setattr(repository, "SHORTEST_WAIT", 0.01)
    hook = where.lineage / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho lineage is closed >&2\nexit 1\n")
    hook.chmod(0o755)
    before, heard = state(where), []
    with pytest.raises(UserError) as refused:
        run.record(note=heard.append)
    assert (
        str(refused.value)
        == f"{where.lineage}: refused the push ([remote rejected] (pre-receive hook declined)); see docs/audit.md"
    )
    assert heard.count("tagged") == repository.PATIENCE
    assert state(where) == before


def test_a_rejected_push_takes_the_tags_with_it_and_keeps_what_came_first(
    tmp_path: Path, interrupted: tuple[Place, Night]
) -> None:
    where, run = interrupted
    first, clone = where.head(), tmp_path / "clone"

    def moves(said: str) -> None:
        # somebody changes a setting in between
        if said == "tagged" and where.head() == first:
            git(tmp_path, "clone", "--quiet", str(where.lineage), str(clone))
            config = (clone / ".dvc/config").read_text().replace("[core]", "[core]\ncheck_update = false")
            (clone / ".dvc/config").write_text(config)
            git(clone, "-c", "user.name=Ada", "-c", "user.email=ada@test", "commit", "--quiet", "-am", "ours")
            git(clone, "push", "--quiet", "origin", "HEAD:main")
        elif said == "tagged":
            assert set(where.tags()) == {"shop@v1"}

    commit = run.record(note=moves)
    assert where.git("rev-parse", "main~2") == first
    assert where.tags()["shop@v2"] == commit
    assert "check_update = false" in where.git("show", "main:.dvc/config")


def test_an_outcome_that_nobody_expected_leaves_nothing_half_done(interrupted: tuple[Place, Night]) -> None:
    where, run = interrupted
    before = state(where)
    twice = Outcome.model_validate({**run.outcomes[0].model_dump(), "environment": "cafe"})
    with pytest.raises(UserError, match="adapter shop: stands twice in the run"):
        Night(run.root, where, 4, run.artifacts, (*run.outcomes, twice), run.members).record()
    assert state(where) == before
