"""bench-phase-two on a tiny model: both sides train the same vector, by turns, and the ratios are of what they took."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import phase_two
from benchmarks.phase_two import QUICK, Arithmetic, alternate, apart, arithmetic, arithmetic_ratios, ratios_of
from benchmarks.phase_two_sides import Outcome, Task, encoder_of, examples_of, prompt_of, rollouts_of, run, write_policy
from taskmem.errors import UserError


class Counted:
    """A pace that does not wait."""

    def __init__(self) -> None:
        self.begun = self.ended = 0

    def begin(self) -> None:
        self.begun += 1

    def end(self) -> None:
        self.ended += 1


@pytest.fixture(scope="session")
def random_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("bench") / "policy"
    write_policy(QUICK, folder)
    return folder


def taken(task: Task) -> Outcome:
    pace = Counted()
    outcome = run(task, pace)
    assert (pace.begun, pace.ended) == (task.steps, task.steps)
    return outcome


@pytest.mark.parametrize("candidates", [2, 4])
def test_both_sides_train_the_same_vector(random_policy: Path, candidates: int) -> None:
    full = Task("full", str(random_policy), QUICK, candidates, steps=3)
    ours = replace(full, side="ours")
    wanted, found = taken(full), taken(ours)
    assert torch.tensor(wanted.gradient).norm() > 0.01
    assert found.once_seconds > 0
    assert wanted.once_seconds == 0
    variants = [replace(full, reference_once=True), replace(full, checkpointing=True), replace(ours, sources=True)]
    for outcome in (found, *map(taken, variants)):
        assert apart(outcome.gradient, wanted.gradient) < 1e-5
        assert apart(outcome.vector, wanted.vector) < 1e-4
        assert outcome.prompt_tokens == wanted.prompt_tokens


def test_four_candidates_give_six_distinct_pairs_behind_one_prompt_of_real_frames(random_policy: Path) -> None:
    encoder = encoder_of(random_policy, QUICK)
    prompt, examples = prompt_of(encoder, QUICK), examples_of(rollouts_of(encoder, QUICK), 4)
    assert len({(e.chosen, e.rejected) for e in examples}) == 6
    assert len({tokens for e in examples for tokens in (e.chosen, e.rejected)}) == 4
    assert {len(tokens) for e in examples for tokens in (e.chosen, e.rejected)} == {QUICK.completion}
    assert len(prompt.grids) == QUICK.segments
    assert prompt.pixels.std() > 0.1


def test_sides_in_processes_of_their_own_step_by_turns(random_policy: Path, tmp_path: Path) -> None:
    ours = Task("ours", str(random_policy), QUICK, candidates=2, steps=2)
    sides = alternate({"two": ours, "one": replace(ours, steps=1)}, tmp_path)
    assert {name: len(side["all_seconds"]) for name, side in sides.items()} == {"two": 2, "one": 1}
    assert sides["two"]["gradient"] == sides["one"]["gradient"] == taken(ours).gradient
    for side in sides.values():
        assert side["seconds"] > 0
        assert 1e6 < side["peak_bytes"] < 1e9


def test_a_side_that_fails_names_its_log(tmp_path: Path) -> None:
    task = Task("ours", str(tmp_path / "nowhere"), QUICK, candidates=2, steps=1)
    with pytest.raises(UserError, match=r"lost: ended early with 1; see .*lost\.log"):
        alternate({"lost": task}, tmp_path)
    assert "nowhere" in (tmp_path / "lost.log").read_text()


def test_a_side_that_trains_something_else_is_refused(
    random_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = {"full": {"gradient": [1.0, 0.0]}, "ours": {"gradient": [1.0, 2e-4]}}
    monkeypatch.setattr(phase_two, "alternate", lambda *_: sides)
    monkeypatch.setattr(phase_two, "write_policy", lambda *_: None)
    with pytest.raises(UserError, match="first gradients"):
        phase_two.measure(QUICK, True, tmp_path)


def side(seconds: float, once: float, peak: int) -> dict[str, Any]:
    return {"seconds": seconds, "once_seconds": once, "peak_bytes": peak}


def test_ratios_are_of_seconds_with_what_is_made_once_spread_over_ten_steps() -> None:
    ratios = ratios_of(
        {
            "full": side(8.0, 0.0, 1000),
            "ours": side(2.0, 10.0, 400),
            "full_reference_once": side(5.0, 10.0, 1000),
            "full_checkpointed": side(12.0, 0.0, 500),
            "full_packed_4": side(48.0, 0.0, 6000),
            "ours_packed_4": side(3.0, 10.0, 600),
            "ours_packed_4_sources": side(6.0, 10.0, 600),
        }
    )
    assert ratios["unpacked"] == pytest.approx(4)
    assert ratios["unpacked_with_cache_cost"] == pytest.approx(8 / 3)
    assert ratios["packed_4"] == pytest.approx(16)
    assert ratios["packed_4_with_cache_cost"] == pytest.approx(12)
    assert ratios["peak_memory"] == pytest.approx(0.4)
    assert ratios["unpacked_with_cache_cost_against_reference_once"] == pytest.approx(2)
    assert ratios["packed_4_with_every_pairs_gradient"] == pytest.approx(8)


def test_counting_gives_six_pairs_of_the_full_side_six_times_the_work_of_one(random_policy: Path) -> None:
    one, four = (arithmetic(random_policy, QUICK, candidates) for candidates in (2, 4))
    assert four.full == 6 * one.full
    assert one.ours < four.ours < 6 * one.ours
    assert arithmetic_ratios(Arithmetic(8, 2, 10), Arithmetic(48, 3, 10))["packed_4_with_cache_cost"] == 12
