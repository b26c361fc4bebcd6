"""Run again, elsewhere, or after `kill -9`: the loop does only what is missing, and ends in the same bytes."""

import shutil
from pathlib import Path

import pytest
from small_loop import STAGES, Run, begun, digests, loop, loop_killed, marker, measured, said

from taskmem.backends import backends_for
from taskmem.cli import shipped_base
from taskmem.config import load_profile
from taskmem.stages import train_policy


def times(out: Path) -> dict[str, int]:
    files = (path for path in out.rglob("*") if path.is_file() and path.name != "results.json")
    return {path.relative_to(out).as_posix(): path.stat().st_mtime_ns for path in files}


def assert_same(out: Path, finished: Run) -> None:
    assert digests(out) == digests(finished.out)
    assert measured(out) == measured(finished.out)


def test_run_again_every_stage_is_unchanged_and_nothing_is_written_but_the_same_results(finished: Run) -> None:
    before, written = (finished.out / "results.json").read_bytes(), times(finished.out)
    again = loop(finished.out, finished.options)
    assert list(said(again.output).items()) == [(stage, "unchanged") for stage in STAGES]
    assert times(finished.out) == written
    assert (finished.out / "results.json").read_bytes() == before


def test_killed_twice_it_finishes_without_redoing_what_was_done_in_the_same_bytes(
    tmp_path: Path, finished: Run
) -> None:
    out, options = tmp_path / "loop", finished.options
    first_checkpoint = out / "phase_one.partial" / "checkpoints" / "checkpoint-2" / "slots.json"

    loop_killed(out, options, first_checkpoint)
    assert begun(out, "phase_one").exists()
    assert not (out / "phase_one").exists()

    output = loop_killed(out, options, begun(out, "adapters/phase_two"))
    at = STAGES.index("phase_one")
    assert [stage for stage, word in said(output).items() if word == "unchanged"] == list(STAGES[:at])

    output = loop(out, options).output
    at = STAGES.index("adapters/phase_two")
    assert [stage for stage, word in said(output).items() if word == "unchanged"] == list(STAGES[:at])
    assert [stage for stage, word in said(output).items() if word == "done"] == list(STAGES[at:])
    assert_same(out, finished)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_in_any_stage_it_finishes_without_redoing_what_was_done_in_the_same_bytes(
    tmp_path: Path, finished: Run, stage: str
) -> None:
    out, at = tmp_path / "loop", STAGES.index(stage)
    shutil.copytree(finished.out, out)
    for later in STAGES[at:]:
        marker(out, later).unlink()
        shutil.rmtree(out / later)

    # on a busy machine the wait may sleep through the shortest stages
    loop_killed(out, finished.options, begun(out, stage), marker(out, stage))
    assert not (out / "results.json").exists()
    output = loop(out, finished.options).output
    unchanged = [stage for stage, word in said(output).items() if word == "unchanged"]
    assert unchanged[:at] == list(STAGES[:at])
    assert_same(out, finished)


class TornError(Exception):
    """Stands for the kill: nothing after it runs."""


@pytest.mark.slow
def test_phase_one_killed_while_it_removes_its_checkpoints_ends_in_the_same_bytes(
    tmp_path: Path, finished: Run, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, world, film = load_profile(str(profile)), finished.out / "world", finished.out / "segments"

    def phase_one() -> None:
        questions, ends = world / "development" / "questions.jsonl", backends_for(settings, world)
        held = (film / "development", questions)
        train_policy.phase_one(film / "phase_one", shipped_base(), *held, ends, settings, 0, tmp_path)

    def torn(folder: Path, ignore_errors: bool = False) -> None:
        if folder.name != ".checkpoints.old" or not folder.exists():
            return remove(folder, ignore_errors)
        # which of them goes first is the file system's choice
        remove(folder / "checkpoint-2")
        raise TornError

    remove = shutil.rmtree
    with monkeypatch.context() as patch, pytest.raises(TornError):
        patch.setattr(shutil, "rmtree", torn)
        phase_one()
    phase_one()
    assert digests(tmp_path) == digests(finished.out / "phase_one")
