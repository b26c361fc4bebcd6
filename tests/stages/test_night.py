"""The numbers of a night, from what its stages left."""

from pathlib import Path
from typing import Any

import pytest
from promotion_parts import Ends, outcome, three_adapters

from taskmem.config import Profile, load_profile, override
from taskmem.endpoint.ledger import Ledger
from taskmem.endpoint.purse import Charge
from taskmem.errors import UserError
from taskmem.lineage.night import ASKING, Night, failed_night, hand_over, handed_over, night_of
from taskmem.records import write_json
from taskmem.store import LocalStore

MINIATURE = load_profile("miniature")


@pytest.fixture
def artifacts(tmp_path: Path) -> dict[str, list[Path]]:
    """What the stages that ask judges left: judgements of eight candidates, two of them unscored."""
    folders = {name: [tmp_path / f"{name}{n}" for n in range(2)] for name in ASKING}
    folders["judgements"] = folders["judgements"][:1]
    write_json(folders["judgements"][0] / "summary.json", {"candidates": 8, "unscored": 2})
    return folders


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return three_adapters(tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def ends(tmp_path: Path, adapters: list[Path]) -> Ends:
    return Ends(tmp_path, adapters)


def spending(money: float | None) -> Profile:
    calls: dict[str, Any] = {"budget": {"money": money, "tokens": None}}
    return override(load_profile("qwen3-vl-30b"), {"calls": calls}, "the test")


def called(folder: Path, *money: float) -> None:
    """A ledger of calls that cost so much."""
    with Ledger(folder) as ledger:
        for price in money:
            sent = ledger.send("grader", "m", "a" * 64, Charge.of(10, price))
            ledger.settle(sent, "answered", Charge.of(10, price))


def test_environments_are_counted_by_what_became_of_them(store: LocalStore, artifacts: dict[str, list[Path]]) -> None:
    ended = [outcome("a", "skipped", "so"), outcome("b", "failed", "so"), outcome("c", "failed", "so")]
    night = night_of(ended, store, artifacts, MINIATURE)
    assert night.outcomes == {"promoted": 0, "kept": 0, "skipped": 1, "failed": 2}
    assert night.kept_nights is None


def test_of_the_environments_the_gate_held_one_of_the_shortest_row_of_kept_ones_counts(
    artifacts: dict[str, list[Path]], ends: Ends
) -> None:
    def kept_nights(number: int, promotes: dict[str, bool]) -> int | None:
        for environment, passed in promotes.items():
            ends.night(environment, number, passed, used=100 * (number + 1), night=f"night {number}")
        ended = ends.promote(*promotes, night=f"night {number}")
        return night_of(ended, ends.store, artifacts, MINIATURE).kept_nights

    rows = [
        kept_nights(0, {"door": False, "room": True}),
        kept_nights(1, {"door": False}),
        kept_nights(2, {"door": False}),
    ]
    assert rows == [0, 2, 3]


def test_the_share_of_candidates_that_no_judge_scored(store: LocalStore, artifacts: dict[str, list[Path]]) -> None:
    assert night_of([], store, artifacts, MINIATURE).unscored == 0.25
    write_json(artifacts["judgements"][0] / "summary.json", {"candidates": 0, "unscored": 0})
    assert night_of([], store, artifacts, MINIATURE).unscored == 0.0


def test_the_cost_is_that_of_every_ledger_below_what_the_judging_stages_left(
    store: LocalStore, artifacts: dict[str, list[Path]]
) -> None:
    assert night_of([], store, artifacts, spending(5.0)).cost == 0.0
    called(artifacts["judgements"][0], 0.25, 0.5)
    called(artifacts["verdicts"][1] / "door" / "calls", 1.0)
    night = night_of([], store, artifacts, spending(5.0))
    assert (night.cost, night.budget) == (1.75, 5.0)
    assert night_of([], store, artifacts, spending(None)).budget is None
    assert night_of([], store, artifacts, MINIATURE).budget is None


def test_what_is_handed_over_comes_out_as_it_went_in_and_twice_is_as_once(store: LocalStore) -> None:
    night = Night(outcomes={"promoted": 1, "kept": 0, "skipped": 0, "failed": 0}, kept_nights=0, unscored=0.0, cost=0.0)
    for _ in range(2):
        hand_over(store, "run-1", night)
    assert handed_over(store, "run-1") == night
    assert handed_over(store, "run-2") is None
    with pytest.raises(UserError, match=r"^nights/run-1: holds other bytes"):
        hand_over(store, "run-1", failed_night(["door"]))


def test_damaged_numbers_are_named(store: LocalStore) -> None:
    store.put_if_absent("nights/run-1", b'{"outcomes": {"lost": 1}}')
    with pytest.raises(UserError, match=r"^nights/run-1: no Night of this registry \(outcomes\.lost"):
        handed_over(store, "run-1")
