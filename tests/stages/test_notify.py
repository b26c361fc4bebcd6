"""What Prometheus is told of a night: its outcome whole, each night in place of the last, and when one last succeeded."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.request import urlopen

import pytest
from pushed import Listener, parsed, pushgateway
from service_parts import free_port

from taskmem.config import load_profile
from taskmem.errors import UserError
from taskmem.lineage.night import Night, hand_over, handed_over
from taskmem.stages.notify import notify
from taskmem.store import LocalStore, open_store

NIGHT = Night(
    outcomes={"promoted": 1, "kept": 2, "skipped": 3, "failed": 0}, kept_nights=0, unscored=0.25, cost=1.5, budget=4.0
)
TOLD = {
    "taskmem_adaptation_environments[promoted]": 1.0,
    "taskmem_adaptation_environments[kept]": 2.0,
    "taskmem_adaptation_environments[skipped]": 3.0,
    "taskmem_adaptation_environments[failed]": 0.0,
    "taskmem_gate_kept_nights": 0.0,
    "taskmem_judge_unscored_share": 0.25,
    "taskmem_calls_cost": 1.5,
    "taskmem_calls_budget": 4.0,
}
LOST = {
    "taskmem_adaptation_environments[promoted]": 0.0,
    "taskmem_adaptation_environments[kept]": 0.0,
    "taskmem_adaptation_environments[skipped]": 0.0,
    "taskmem_adaptation_environments[failed]": 2.0,
}
PROFILE = load_profile("miniature")
LAST, SUCCESS = (
    "taskmem_adaptation_last_success_timestamp_seconds",
    "/metrics/job/taskmem_adaptation/of/success/profile/miniature",
)
OUTCOME = "/metrics/job/taskmem_adaptation/of/night/profile/miniature"


@pytest.fixture
def gateway() -> Iterator[Listener]:
    with Listener().running() as listener:
        yield listener


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def told(
    store: LocalStore,
    tmp_path: Path,
    url: str,
    state: str = "SUCCEEDED",
    now: float = 100.0,
    night: Night | None = NIGHT,
) -> Mapping[str, int]:
    """A run that ended as `state`, having left the numbers of `night`."""
    if night is not None:
        hand_over(store, "run-1", night)
    named = [[{"environment": "door"}, {"environment": "room"}], [{"environment": "door"}]]
    shards = [{"name": f"s{number}", "environments": environments} for number, environments in enumerate(named)]
    return notify(state, "run-1", shards, str(tmp_path / "store"), url, PROFILE, lambda: now)


def test_a_night_that_succeeded_is_told_whole_with_its_time(
    store: LocalStore, tmp_path: Path, gateway: Listener
) -> None:
    assert told(store, tmp_path, gateway.url) == NIGHT.outcomes
    assert set(gateway.groups) == {OUTCOME, SUCCESS}
    assert gateway.series(OUTCOME) == TOLD
    assert gateway.series(SUCCESS) == {LAST: 100.0}
    assert list(store.list("")) == []


def test_what_is_not_known_is_not_told(store: LocalStore, tmp_path: Path, gateway: Listener) -> None:
    told(store, tmp_path, gateway.url, night=NIGHT.model_copy(update={"kept_nights": None, "budget": None}))
    assert TOLD.keys() - gateway.series(OUTCOME) == {"taskmem_gate_kept_nights", "taskmem_calls_budget"}


def test_a_night_that_failed_before_its_record_failed_for_every_environment(
    store: LocalStore, tmp_path: Path, gateway: Listener
) -> None:
    told(store, tmp_path, gateway.url, state="FAILED", night=None)
    assert set(gateway.groups) == {OUTCOME}
    assert gateway.series(OUTCOME) == LOST


def test_a_night_that_failed_after_its_numbers_were_known_tells_them_and_no_success(
    store: LocalStore, tmp_path: Path, gateway: Listener
) -> None:
    told(store, tmp_path, gateway.url, state="FAILED")
    assert set(gateway.groups) == {OUTCOME}
    assert gateway.series(OUTCOME) == TOLD


def test_told_again_a_night_that_succeeded_changes_nothing(
    store: LocalStore, tmp_path: Path, gateway: Listener
) -> None:
    told(store, tmp_path, gateway.url)
    before = dict(gateway.groups)
    assert told(store, tmp_path, gateway.url, now=200.0, night=None) == {}
    assert gateway.groups == before


def test_without_a_gateway_nothing_is_pushed_and_nothing_stays(store: LocalStore, tmp_path: Path) -> None:
    assert told(store, tmp_path, "") == NIGHT.outcomes
    assert list(store.list("")) == []


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_gateway_that_does_not_take_it_is_one_line_and_it_can_be_told_again(
    store: LocalStore, tmp_path: Path, gateway: Listener, status: int
) -> None:
    gateway.status = status
    with pytest.raises(UserError, match=rf"^{gateway.url}: did not take the night's outcome \(HTTP Error {status}"):
        told(store, tmp_path, gateway.url)
    gateway.status = 200
    assert handed_over(store, "run-1") == NIGHT
    told(store, tmp_path, gateway.url)
    assert gateway.series(OUTCOME) == TOLD


def test_nobody_there_is_one_line(store: LocalStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Connection refused.*; see that a Pushgateway answers there$") as raised:
        told(store, tmp_path, f"http://127.0.0.1:{free_port()}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("url", ["localhost:9091", "file:///etc", "http://", "http://ada:secret@host:9091"])
def test_what_is_no_address_of_a_gateway_is_refused_and_no_password_repeated(
    store: LocalStore, tmp_path: Path, url: str
) -> None:
    with pytest.raises(UserError, match=r"^pushgateway: not an http\(s\) URL") as raised:
        told(store, tmp_path, url)
    assert "secret" not in str(raised.value)


@pytest.mark.system
def test_at_a_real_gateway_a_night_replaces_the_last_and_keeps_the_time_of_the_last_success(
    store: LocalStore, tmp_path: Path
) -> None:
    with pushgateway(tmp_path) as url:
        now = time.time()
        told(store, tmp_path, url, now=now)
        with urlopen(f"{url}/metrics", timeout=5) as page:
            assert parsed(page.read().decode()) == {**TOLD, LAST: pytest.approx(now)}
        told(store, tmp_path, url, state="FAILED", night=None, now=now + 100)
        with urlopen(f"{url}/metrics", timeout=5) as page:
            assert parsed(page.read().decode()) == {**LOST, LAST: pytest.approx(now)}


def test_the_store_is_the_one_of_the_url(tmp_path: Path) -> None:
    hand_over(open_store(f"file://{tmp_path / 'store'}"), "run-1", NIGHT)
    assert handed_over(LocalStore(tmp_path / "store"), "run-1") == NIGHT
