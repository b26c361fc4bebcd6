"""One command runs the whole loop and writes results.json in its documented shape."""

import re
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field
from small_loop import ADAPTERS, ARMS, STAGES, Run, said

from taskmem.cli import shipped_base
from taskmem.files import sha256_tree

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Change = Annotated[float, Field(ge=-1, le=1)]


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Cell(Shape):
    asked: Count
    answered: Count
    correct: Count
    accuracy: Share
    coverage: Share
    precision: Share
    ci95: tuple[Share, Share]


class Arm(Shape):
    overall: Cell
    on_task: Cell
    by_type: dict[str, Cell]
    format_rate: Share
    wrong_fact_rate: Share

    @property
    def cells(self) -> list[Cell]:
        return [self.overall, self.on_task, *self.by_type.values()]


class Arms(Shape):
    base: Arm
    task_prompt: Arm
    phase_one: Arm
    phase_two: Arm
    phase_two_other_task: Arm
    phase_two_random_pairs: Arm


class Difference(Shape):
    mean: Change
    ci95: tuple[Change, Change]


class Differences(Shape):
    overall: Difference
    on_task: Difference


class Paired(Shape):
    phase_one: Annotated[Differences, Field(alias="phase_one-base")]
    phase_two: Annotated[Differences, Field(alias="phase_two-phase_one")]
    phase_two_other_task: Annotated[Differences, Field(alias="phase_two_other_task-phase_one")]
    phase_two_random_pairs: Annotated[Differences, Field(alias="phase_two_random_pairs-phase_one")]


class Results(Shape):
    version: Annotated[Literal[1], Field(alias="schema")]
    seed: int
    base: str
    profile: str
    commit: str
    seconds: dict[str, Annotated[float, Field(ge=0)]]
    task: str
    arms: Arms
    paired: Paired


@pytest.fixture(scope="module")
def results(finished: Run) -> Results:
    return Results.model_validate_json((finished.out / "results.json").read_text())


def test_every_stage_is_done_in_order_and_said_to_be(finished: Run, results: Results) -> None:
    assert list(said(finished.output).items()) == [(stage, "done") for stage in STAGES]
    assert tuple(results.seconds) == STAGES


def test_no_work_in_progress_is_left_behind(finished: Run) -> None:
    names = [path.name for path in finished.out.rglob("*")]
    # the run's own lock file stays: removing it would let two runs hold two locks
    names.remove(".lock")
    assert not [name for name in names if name.endswith((".partial", ".begun", ".old", ".tmp", ".lock"))]
    assert not list(finished.out.glob("phase_one/checkpoints"))


def test_the_results_say_what_was_run(results: Results) -> None:
    assert (results.seed, results.profile) == (0, "small")
    assert results.base == sha256_tree(shipped_base())
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", results.commit)


def test_every_arm_is_asked_the_same_questions(results: Results) -> None:
    arms = [getattr(results.arms, name) for name in ARMS]
    segments, types = 3 * 6, 5
    for arm in arms:
        assert arm.overall.asked == segments * types
        assert {kind: cell.asked for kind, cell in arm.by_type.items()} == dict.fromkeys(arm.by_type, segments)
        assert len(arm.by_type) == types
        assert arm.on_task == arm.by_type[results.task]


def test_the_counts_of_the_types_add_up_to_the_overall_ones(results: Results) -> None:
    for name in ARMS:
        arm: Arm = getattr(results.arms, name)
        for count in ("asked", "answered", "correct"):
            assert sum(getattr(cell, count) for cell in arm.by_type.values()) == getattr(arm.overall, count)


def test_accuracy_is_coverage_times_precision_in_every_cell(results: Results) -> None:
    for name in ARMS:
        for cell in getattr(results.arms, name).cells:
            assert cell.correct <= cell.answered <= cell.asked
            assert cell.accuracy == cell.correct / cell.asked
            assert cell.accuracy == pytest.approx(cell.coverage * cell.precision, abs=1e-12)
            assert cell.ci95[0] <= cell.accuracy <= cell.ci95[1]


def test_a_paired_difference_is_that_of_its_arms(results: Results) -> None:
    for name in ("phase_one", *ADAPTERS):
        arm, other = getattr(results.arms, name), results.arms.base if name == "phase_one" else results.arms.phase_one
        difference: Differences = getattr(results.paired, name)
        for part in ("overall", "on_task"):
            expected = getattr(arm, part).accuracy - getattr(other, part).accuracy
            assert getattr(difference, part).mean == pytest.approx(expected, abs=1e-12)


def test_the_table_shows_every_arm_and_the_file_s_place(finished: Run, results: Results) -> None:
    lines = finished.output.splitlines()
    for name in ARMS:
        accuracy = getattr(results.arms, name).overall.accuracy
        assert any(line.split()[:2] == [name, f"{accuracy:.3f}"] for line in lines)
    assert lines[-1] == str(finished.out / "results.json")


@pytest.mark.parametrize("arm", ADAPTERS)
def test_an_adapter_folder_holds_the_adapter_its_curve_and_who_moved_it_and_nothing_else(
    finished: Run, arm: str
) -> None:
    folder = finished.out / "adapters" / arm
    # random pairs rest on nobody's questions
    moved_by = [] if arm == "phase_two_random_pairs" else ["adapter/influence.json"]
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) == [
        "adapter",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        *moved_by,
        "adapter/training.json",
    ]
