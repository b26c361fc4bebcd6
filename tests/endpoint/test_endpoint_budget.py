"""The budget: never exceeded, however many calls are in flight, and it says what to do."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import Act, Loopback, Said, Seen, call_settings, chat, words

from taskmem.endpoint.client import CallError, Endpoint, most_prompt_tokens
from taskmem.endpoint.ledger import read_ledger
from taskmem.endpoint.parallel import in_order
from taskmem.endpoint.purse import NOTHING, Charge, Purse
from taskmem.errors import UserError
from taskmem.roles import BudgetSettings, Price


def ask_all(server: Loopback, folder: Path, count: int, workers: int, **changes: Any) -> tuple[int, str]:
    """How many were answered, and what stopped it."""
    answered = []

    def ask(number: int) -> None:
        endpoint.ask("fidelity", words(f"question {number}"), Said)
        answered.append(number)

    with Endpoint(call_settings(server.url, **changes), folder, {}) as endpoint:
        try:
            list(in_order(ask, range(count), workers))
        except UserError as stop:
            return len(answered), str(stop)
    return len(answered), ""


@pytest.mark.parametrize("workers", [1, 64])
@pytest.mark.parametrize("budget", [{"money": None, "tokens": 4000}, {"money": 5.0, "tokens": None}])
def test_a_budget_ends_the_work_before_it_is_exceeded(tmp_path: Path, workers: int, budget: dict[str, Any]) -> None:
    def behave(seen: Seen) -> Act:
        # as dear as the reservation allows
        prompt = most_prompt_tokens(seen.body, 100)
        return Act(chat({"said": "yes"}, prompt, 50), delay=0.02)

    with Loopback(behave) as server:
        answered, stop = ask_all(server, tmp_path, 200, workers, budget=budget)
        again = ask_all(server, tmp_path, 200, workers, budget=budget)
    spent = sum(call.charged_tokens for call in read_ledger(tmp_path))
    cost = sum(call.cost for call in read_ledger(tmp_path))
    assert "the budget ends here" in stop
    assert "\n" not in stop
    assert 0 < answered < 200
    assert spent == server.tokens
    assert spent <= (budget["tokens"] or spent)
    assert cost <= (budget["money"] or cost)
    one = spent / len(server.answered)
    assert budget["tokens"] is None or spent + one > budget["tokens"]
    assert again[0] == answered
    assert len(server.seen) == answered


def test_what_is_reserved_and_not_used_is_used_by_later_calls(tmp_path: Path) -> None:
    with Loopback(lambda _: Act(chat({"said": "yes"}, 5, 5), delay=0.01)) as server:
        answered, stop = ask_all(server, tmp_path, 100, 64, budget={"money": None, "tokens": 1000})
    # a call reserves hundreds of tokens and takes ten
    assert answered > 50
    assert "of 1000 tokens are spent" in stop


def test_a_raised_budget_goes_on_where_it_ended(tmp_path: Path) -> None:
    with Loopback(lambda _: Act(chat({"said": "yes"}, 300, 50))) as server:
        first, _ = ask_all(server, tmp_path, 10, 4, budget={"money": None, "tokens": 2000})
        second, stop = ask_all(server, tmp_path, 10, 4, budget={"money": None, "tokens": 20000})
    assert (second, stop) == (10, "")
    assert 0 < first < 10
    assert len(server.seen) == 10


def test_a_call_without_a_reply_is_spent_at_its_most(tmp_path: Path) -> None:
    with Loopback(lambda _: Act(chat({"said": "yes"}), cut="before")) as server:
        endpoint = Endpoint(call_settings(server.url, retries=0, budget={"money": None, "tokens": 2000}), tmp_path, {})
        with endpoint, pytest.raises(UserError, match="the budget ends here"):
            for number in range(50):
                try:
                    endpoint.ask("fidelity", words(f"{number}"), Said)
                except CallError:
                    continue
    assert sum(call.charged_tokens for call in read_ledger(tmp_path)) <= 2000
    assert {call.outcome for call in read_ledger(tmp_path)} == {"cut"}


def test_a_server_that_counts_more_than_was_expected_stops_the_work(tmp_path: Path) -> None:
    with Loopback(lambda _: Act(chat({"said": "yes"}, 100_000, 5))) as server:
        answered, stop = ask_all(server, tmp_path, 3, 1)
        assert "raise its media_tokens" in stop
        assert answered == 0
        # the answer is paid for, and kept
        assert ask_all(server, tmp_path, 1, 1) == (1, "")
    assert len(server.seen) == 1


def part(kind: str, value: Any) -> dict[str, Any]:
    return {"type": kind, kind: value}


def test_media_count_as_the_settings_say_and_text_by_its_bytes() -> None:
    def most(*parts: dict[str, Any]) -> int:
        return most_prompt_tokens({"messages": [{"role": "user", "content": list(parts)}]}, 1000)

    base = most()
    video = part("video_url", {"url": "data:" + "x" * 10_000})
    assert 1000 < most(video) - base < 1200
    assert most(video, video) - most(video) == most(video) - base
    assert most(part("text", "ö" * 500)) - base >= 1000


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=40), st.integers(1, 300))
def test_a_purse_never_holds_more_than_its_budget(steps: list[tuple[int, bool]], limit: int) -> None:
    purse = Purse(BudgetSettings(money=None, tokens=limit), NOTHING, "here")
    used = 0
    for tokens, whole in steps:
        most = Charge(tokens, 0)
        try:
            purse.reserve(most)
        except UserError:
            assert used + tokens > limit
            break
        charge = most if whole else Charge(tokens // 2, 0)
        purse.settle(most, charge)
        used += charge.tokens
        assert used == purse.spent.tokens <= limit


def test_once_a_call_was_refused_no_smaller_one_slips_through() -> None:
    purse = Purse(BudgetSettings(money=None, tokens=10), NOTHING, "here")
    purse.reserve(Charge(5, 0))
    purse.settle(Charge(5, 0), Charge(5, 0))
    for tokens in (6, 1):
        with pytest.raises(UserError, match="5 of 10 tokens are spent and the next call may take 0 and 6 tokens"):
            purse.reserve(Charge(tokens, 0))


def test_a_call_waits_for_those_in_flight_before_it_is_refused() -> None:
    purse = Purse(BudgetSettings(money=None, tokens=10), NOTHING, "here")
    purse.reserve(Charge(8, 0))
    waiting = threading.Thread(target=purse.reserve, args=(Charge(8, 0),))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    purse.settle(Charge(8, 0), Charge(2, 0))
    waiting.join(5)
    assert not waiting.is_alive()


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.floats(0, 100), st.floats(0, 100))
def test_a_price_is_never_rounded_down(prompt: int, completion: int, a: float, b: float) -> None:
    exact = (prompt * a + completion * b) / 1e6
    charge = Charge.priced(Price(prompt=a, completion=b), prompt, completion)
    assert charge.money >= exact - 1e-8
    assert charge.money <= exact + 1e-7
    assert Charge.of(charge.tokens, charge.money) == charge


def test_every_way_out_of_a_batch_finishes_what_is_in_flight() -> None:
    begun: list[int] = []
    ended: list[int] = []

    def work(wait: Callable[[float], object], number: int) -> int:
        begun.append(number)
        if number == 1:
            raise UserError("stop")
        wait(0.05)
        ended.append(number)
        return number

    wait = threading.Event().wait
    with pytest.raises(UserError, match="stop"):
        list(in_order(lambda number: work(wait, number), range(1000), 4))
    assert sorted(ended) == sorted(set(begun) - {1})
    assert len(begun) < 20
