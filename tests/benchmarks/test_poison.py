"""Poisoned logs are what they say, the measures name who pulls against the rest, and a small benchmark runs to its end."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import poison
from benchmarks.poison import CAPS, Cell, Cells, claims, measure, naming, place, supported
from benchmarks.poisoned import (
    POISONER,
    Crowd,
    Named,
    Run,
    asked_by,
    measured_runs,
    recent_events,
)
from taskmem.cli import shipped_base
from taskmem.config import Profile, load_profile, override
from taskmem.errors import UserError
from taskmem.evaluation.metrics import Graded
from taskmem.files import sha256_bytes, sha256_tree
from taskmem.loop.display import StageDisplay
from taskmem.loop.loop import Loop

SMALL = Crowd(questions=8, users=3)
SHORT = {
    "world": {"stream_segments": 6, "phase_one": 2, "deployment": 4, "development": 3, "held_out": 2},
    "phase_one": {"off_policy_steps": 1, "on_policy_steps": 1},
    "mining": {"contexts": 16},
    "phase_two": {"steps": 3, "batch": 4},
}


@pytest.fixture(scope="module")
def profile() -> Profile:
    return override(load_profile("miniature"), SHORT, "the test's settings")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, profile: Profile) -> Run:
    folder = tmp_path_factory.mktemp("runs")
    Loop(folder / "small-0", shipped_base(), profile, 0, StageDisplay(Console(file=StringIO()))).run()
    (only,) = measured_runs(folder)
    return only


@pytest.fixture(scope="module")
def before(run: Run) -> str:
    return sha256_tree(run.folder)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory, run: Run, before: str, profile: Profile) -> Cells:
    display = StageDisplay(Console(file=StringIO()))
    return measure([run], SMALL, (0, 5), profile, tmp_path_factory.mktemp("out"), display)


def test_a_log_holds_so_many_questions_of_the_poisoner_and_the_honest_ones_of_a_log_with_more_poison(run: Run) -> None:
    logs = {count: recent_events(run, SMALL, count, seed=0) for count in (0, 2, 5)}
    for count, events in logs.items():
        assert len({e.question for e in events}) == SMALL.questions
        assert {e.environment for e in events} == {run.task}
        assert {e.question for e in events if e.source == POISONER} == {
            e.question for e in events if e.type == run.other
        }
        assert sum(e.source == POISONER for e in events) == count
    honest = [{e.question for e in logs[count] if e.source != POISONER} for count in (5, 2, 0)]
    assert honest[0] < honest[1] < honest[2]
    assert len({e.source for e in logs[0]}) == SMALL.users


def test_a_run_with_too_few_users_is_refused_in_one_line(run: Run) -> None:
    with pytest.raises(UserError, match=r"^.*small-0: too few questions in its deployment.*measure longer runs$"):
        recent_events(run, replace(SMALL, users=5), 0, seed=0)


def test_without_finished_runs_nothing_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        poison.main(runs=tmp_path / "none", out=tmp_path / "out")
    assert end.value.code == 2
    assert f"{tmp_path / 'none'}: no finished runs there; run make bench-learning first" in capsys.readouterr().out


def test_only_pairs_of_a_poisoned_log_rest_on_poison(cells: Cells) -> None:
    for name in CAPS:
        (clean,), (poisoned,) = cells[0, name], cells[5, name]
        assert clean.resting == clean.changed == 0
        assert poisoned.resting > 0.9
        assert 0 < poisoned.changed <= 1
        assert POISONER not in {n.source for n in clean.named}


def test_every_source_of_the_log_is_measured_and_its_parts_sum_to_one(cells: Cells) -> None:
    for (count, _), (cell,) in cells.items():
        assert len(cell.named) == SMALL.users + (count > 0)
        assert sum(n.questions for n in cell.named) == SMALL.questions
        assert sum(n.part for n in cell.named) == pytest.approx(1, abs=1e-5)


def test_the_same_log_and_cap_give_the_same_adapter_and_another_cap_another(
    run: Run, cells: Cells, profile: Profile, tmp_path: Path
) -> None:
    again = measure([run], SMALL, (0,), profile, tmp_path, StageDisplay(Console(file=StringIO())))
    for name in CAPS:
        assert again[0, name][0].named == cells[0, name][0].named
    adapters = {path.read_bytes() for path in tmp_path.glob("*/*/*/adapter/adapter_model.safetensors")}
    assert len(adapters) == len(CAPS)


def test_the_benchmark_reports_every_cell_and_every_difference(cells: Cells, profile: Profile) -> None:
    found = claims(cells, profile)
    assert set(found) == {
        *(f"5 poisoned - none, {name}, {on}" for name in CAPS for on in ("on task", "poisoner's type")),
        *(f"{name} - mean, {count} poisoned, on task" for name in ("cap 1", "cap 0.5") for count in (0, 5)),
    }
    assert naming(cells[5, "mean"], 5)["first_by"].keys() == set(poison.MEASURES)
    assert "first_by" not in naming(cells[0, "mean"], 0)


def test_the_measured_run_is_only_read(run: Run, cells: Cells, before: str) -> None:
    assert cells
    assert sha256_tree(run.folder) == before


def test_a_question_of_two_sources_counts_for_each_by_half() -> None:
    assert asked_by({"q": ("a", "b"), "r": ("a",)}) == {"a": 1.5, "b": 0.5}


def named(source: str, part: float = 0.2, norm: float = 1.0, agreement: float = 0.9) -> Named:
    return Named(source, 2, part, norm, norm / 2, agreement)


def test_a_part_counts_by_its_size_and_the_lowest_agreement_is_the_first() -> None:
    sources = [named("a", part=0.3), named("b", part=-0.4, agreement=-0.1), named("c", norm=2)]
    assert [place(sources, "b", by) for by in poison.MEASURES] == [1, 2, 2, 1]
    assert [place(sources, "c", by) for by in poison.MEASURES] == [3, 1, 1, 2]


def test_how_often_the_poisoner_is_named_and_honest_sources_pull_against_the_rest(run: Run) -> None:
    honest = sha256_bytes("user")
    each = [
        [named(POISONER, part=0.4, agreement=-0.5), named(honest)],
        [named(POISONER, part=0.1, agreement=0.5), named(honest, agreement=-0.2)],
    ]
    found = naming([Cell(run, [], sources, 0, 0) for sources in each], 1)
    assert found["first_by"]["part"] == found["first_by"]["agreement"] == found["against_the_rest"] == 0.5
    assert found["honest_against_the_rest"] == 0.5
    assert found["honest_agreement_lowest"] == -0.2


def graded(correct: int, kind: str) -> list[Graded]:
    return [Graded(f"{kind}{i}", f"s{i % 10}", kind, kind, True, i < correct) for i in range(40)]


def test_a_difference_is_that_of_the_runs_own_task(run: Run, profile: Profile) -> None:
    left, right = (Cell(run, graded(n, run.task) + graded(5, run.other), [], 0, 0) for n in (30, 20))
    assert poison.difference([left], [right], profile)["mean"] == pytest.approx(0.25)
    assert poison.difference([left], [right], profile, other=True)["mean"] == 0


@pytest.mark.parametrize(
    ("one", "half", "choice"),
    [
        ([(0, 0), (0, 0)], [(0, 0), (0, 0)], "mean"),
        ([(0, 0), (0.01, 0.03)], [(0, 0), (0, 0)], "cap 1"),
        ([(0, 0), (0.01, 0.03)], [(-0.02, -0.01), (0.1, 0.2)], "cap 1"),
        ([(0, 0), (0.01, 0.03)], [(0, 0), (0.1, 0.2)], "cap 0.5"),
    ],
)
def test_a_cap_is_supported_if_it_surely_helps_somewhere_and_surely_harms_nowhere(
    one: list[tuple[float, float]], half: list[tuple[float, float]], choice: str
) -> None:
    found = {
        f"{name} - mean, {count} poisoned, on task": {"mean": sum(interval) / 2, "ci95": interval}
        for name, intervals in (("cap 1", one), ("cap 0.5", half))
        for count, interval in zip((0, 6), intervals, strict=True)
    }
    assert supported(found, (0, 6)) == choice
