"""The client against a real server: retries, answers that are none, cache, failures, keys."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import Act, Loopback, Said, Seen, call_settings, chat, words

from taskmem.endpoint.client import CallError, Endpoint
from taskmem.endpoint.ledger import read_ledger
from taskmem.endpoint.parallel import in_order
from taskmem.errors import UserError

GOOD = chat({"said": "yes"})
KEY = "canary-4f1d7c2e"


def outcomes(folder: Path) -> list[str]:
    return [call.outcome for call in read_ledger(folder)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "calls"


def asked(server: Loopback, folder: Path, *texts: str, **changes: Any) -> list[str]:
    with Endpoint(call_settings(server.url, **changes), folder, {"KEY": KEY}) as endpoint:
        return [endpoint.ask("fidelity", words(text), Said).said for text in texts]


def first_then(*acts: Act) -> Any:
    """Each act once, then good answers."""

    def behave(seen: Seen) -> Act:
        return acts[seen.number] if seen.number < len(acts) else Act(GOOD)

    return behave


@pytest.mark.parametrize(
    ("act", "outcome"),
    [
        (Act({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.05"}), "status"),
        (Act({"error": {"message": "broken"}}, 500, {"Retry-After": "0.05"}), "status"),
        (Act(GOOD, cut="before"), "cut"),
        (Act(GOOD, cut="middle"), "cut"),
        (Act(b"{not json"), "invalid"),
        (Act(b"<html>hello</html>", headers={"Content-Type": "text/html"}), "invalid"),
        (Act({"choices": []}), "invalid"),
        (Act(chat("not json at all")), "invalid"),
        (Act(chat({"said": 1})), "invalid"),
        (Act(chat({"said": "yes", "more": "no"})), "invalid"),
        (Act(chat({"said": "yes"}, finish="length")), "invalid"),
        (Act(chat({"said": "yes"}, message={"content": None, "refusal": "I cannot"})), "invalid"),
    ],
)
def test_what_goes_wrong_once_is_tried_again_and_both_calls_stand_in_the_ledger(
    folder: Path, act: Act, outcome: str
) -> None:
    with Loopback(first_then(act)) as server:
        assert asked(server, folder, "hello") == ["yes"]
    assert outcomes(folder) == [outcome, "answered"]
    assert len(server.seen) == 2


def test_retry_after_is_waited_for(folder: Path) -> None:
    with Loopback(first_then(Act({}, 429, {"Retry-After": "0.6"}))) as server:
        asked(server, folder, "hello")
    first, second = read_ledger(folder)
    assert second.time - second.latency_s - first.time >= 0.55
    assert (first.status, first.cost, first.charged_tokens) == (429, 0.0, 0)


def test_a_reply_that_does_not_come_is_given_up_and_charged_at_its_most(folder: Path) -> None:
    with Loopback(first_then(Act(GOOD, delay=1.5))) as server:
        assert asked(server, folder, "hello", reply_seconds=0.4) == ["yes"]
    first, _ = read_ledger(folder)
    assert (first.outcome, first.prompt_tokens) == ("timeout", None)
    assert first.charged_tokens >= 50
    assert first.cost > 0


def test_a_reply_that_drips_in_is_given_up_as_well(folder: Path) -> None:
    with Loopback(first_then(Act(GOOD, drip=0.02))) as server:
        assert asked(server, folder, "hello", reply_seconds=0.5) == ["yes"]
    assert outcomes(folder) == ["timeout", "answered"]


def test_a_server_that_is_not_there_counts_nothing(folder: Path) -> None:
    with Loopback(first_then()) as server:
        url = server.url
    with Endpoint(call_settings(url, retries=0), folder, {}) as endpoint:
        with pytest.raises(CallError, match="no connection"):
            endpoint.ask("fidelity", words("hello"), Said)
        assert endpoint.spent.tokens == 0
    assert [call.counted for call in read_ledger(folder)] == [False]


def test_an_answer_is_paid_once_and_then_comes_from_the_cache(folder: Path) -> None:
    with Loopback(first_then()) as server:
        assert asked(server, folder, "a", "a", "b") == ["yes"] * 3
        assert asked(server, folder, "b", "a") == ["yes"] * 2
    assert len(server.seen) == 2
    assert outcomes(folder) == ["answered", "cached", "answered", "cached", "cached"]
    paid, hit = [call for call in read_ledger(folder) if call.outcome in ("answered", "cached")][:2]
    assert (paid.prompt_tokens, paid.completion_tokens, paid.cost) == (10, 5, 0.02)
    assert (hit.cached, hit.cost, hit.charged_tokens) == (True, 0.0, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"revision": "2"},
        {"temperature": 0.5},
        {"seed": 1},
        {"max_completion_tokens": 51},
    ],
)
def test_whatever_decides_the_answer_is_part_of_the_cache_key(folder: Path, change: dict[str, Any]) -> None:
    with Loopback(first_then()) as server:
        asked(server, folder, "a")
        asked(server, folder, "a", **change)
    assert outcomes(folder) == ["answered", "answered"]


@pytest.mark.parametrize("change", [{"concurrency": 1}, {"retries": 9}, {"price": {"prompt": 1.0, "completion": 1.0}}])
def test_what_does_not_decide_the_answer_is_not(folder: Path, change: dict[str, Any]) -> None:
    with Loopback(first_then()) as server:
        asked(server, folder, "a")
        asked(server, folder, "a", **change)
    assert outcomes(folder) == ["answered", "cached"]


def test_equal_questions_at_the_same_time_are_paid_once(folder: Path) -> None:
    with (
        Loopback(lambda _: Act(GOOD, delay=0.2)) as server,
        Endpoint(call_settings(server.url), folder, {}) as endpoint,
    ):
        said = in_order(lambda text: endpoint.ask("fidelity", words(text), Said).said, ["a"] * 16, 16)
        assert list(said) == ["yes"] * 16
    assert len(server.seen) == 1


def test_no_more_calls_of_a_role_are_in_flight_than_set(folder: Path) -> None:
    with (
        Loopback(lambda _: Act(GOOD, delay=0.05)) as server,
        Endpoint(call_settings(server.url, concurrency=3), folder, {}) as endpoint,
    ):
        list(in_order(lambda i: endpoint.ask("fidelity", words(f"{i}"), Said), range(24), 24))
    assert server.most_in_flight == 3


def test_an_answer_that_stays_invalid_is_a_failure_without_the_models_words(folder: Path) -> None:
    with (
        Loopback(lambda _: Act(chat({"said": 666}))) as server,
        Endpoint(call_settings(server.url, invalid_retries=2), folder, {}) as endpoint,
        pytest.raises(CallError) as failure,
    ):
        endpoint.ask("fidelity", words("a"), Said)
    assert "said: string_type" in str(failure.value)
    assert "666" not in str(failure.value)
    assert outcomes(folder) == ["invalid"] * 3
    assert [seen.body["seed"] for seen in server.seen] == [0, 1, 2]


def test_a_failure_is_not_kept(folder: Path) -> None:
    with Loopback(first_then(*[Act({}, 400)])) as server:
        with pytest.raises(CallError):
            asked(server, folder, "a")
        assert asked(server, folder, "a") == ["yes"]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_key_or_model_stops_everything_at_once(folder: Path, status: int) -> None:
    with (
        Loopback(lambda _: Act({"error": {"message": "no such thing"}}, status)) as server,
        pytest.raises(UserError, match="refused model m"),
    ):
        asked(server, folder, "a")
    assert len(server.seen) == 1


def test_a_role_that_fails_too_often_fails_the_stage(folder: Path) -> None:
    with (
        Loopback(lambda seen: Act({}, 400) if seen.number in (3, 5) else Act(GOOD)) as server,
        Endpoint(call_settings(server.url, failed_share=0.1), folder, {}) as endpoint,
    ):
        for number in range(10):
            try:
                endpoint.ask("fidelity", words(f"{number}"), Said)
            except CallError:
                assert number in (3, 5)
        with pytest.raises(UserError, match="role fidelity: 2 of 10 calls failed"):
            endpoint.check()
        for number in range(10, 20):
            endpoint.ask("fidelity", words(f"{number}"), Said)
        endpoint.check()


def test_a_role_that_fails_in_a_row_stops_at_once(folder: Path) -> None:
    with (
        Loopback(lambda seen: Act(GOOD) if seen.number == 2 else Act({}, 400)) as server,
        Endpoint(call_settings(server.url, failed_in_a_row=3), folder, {}) as endpoint,
    ):
        for number in range(5):
            if number == 2:
                endpoint.ask("fidelity", words(f"{number}"), Said)
                continue
            with pytest.raises(CallError):
                endpoint.ask("fidelity", words(f"{number}"), Said)
        with pytest.raises(UserError, match="3 calls in a row failed"):
            endpoint.ask("fidelity", words("last"), Said)


def test_a_damaged_answer_is_named(folder: Path) -> None:
    with Loopback(first_then()) as server:
        asked(server, folder, "a")
        (kept,) = (folder / "answers").rglob("*.json")
        kept.write_text("{")
        with pytest.raises(UserError, match=kept.name):
            asked(server, folder, "a")


def test_two_processes_do_not_share_a_folder(folder: Path) -> None:
    with (
        Endpoint(call_settings("http://127.0.0.1:1/v1"), folder, {}),
        pytest.raises(UserError, match="another process"),
    ):
        Endpoint(call_settings("http://127.0.0.1:1/v1"), folder, {})


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG):
        for name in ("openai", "httpx2", "httpcore2"):
            logging.getLogger(name).setLevel(logging.DEBUG)
        yield caplog
        for name in ("openai", "httpx2", "httpcore2"):
            logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.mark.parametrize(
    "tell",
    [
        Act(GOOD),
        Act({"error": {"message": f"bad key {KEY}"}}, 400),
        Act({"error": {"message": f"bad key {KEY}"}}, 401),
        Act(f"{KEY} is broken".encode(), 500, {"Retry-After": "0.01"}),
        Act(chat({"said": KEY})),
        Act(chat({KEY: "yes"})),
        Act(KEY.encode()),
    ],
)
def test_the_key_goes_to_the_server_and_nowhere_else(
    folder: Path, tell: Act, everything_logged: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    told = []
    with (
        Loopback(lambda _: tell) as server,
        Endpoint(
            call_settings(server.url, key={"variable": "KEY", "file": None}, retries=1), folder, {"KEY": KEY}
        ) as endpoint,
    ):
        told.append(repr(vars(endpoint)))
        told.append(repr(list(endpoint._roles.values())))
        try:
            endpoint.ask("fidelity", words("hello"), Said)
        except (CallError, UserError) as error:
            told += [str(error), repr(error), repr(error.__context__), repr(error.__cause__)]
        try:
            endpoint.check()
        except UserError as error:
            told.append(str(error))
    assert {seen.headers["authorization"] for seen in server.seen} == {f"Bearer {KEY}"}
    assert everything_logged.records
    told += [everything_logged.text, *capfd.readouterr()]
    told += [path.read_text() for path in folder.rglob("*") if path.is_file()]
    assert not [text for text in told if KEY in text]


def test_without_a_key_nothing_is_sent_in_its_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "somebody-elses")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    with Loopback(first_then()) as server:
        asked(server, folder, "a")
    assert not [value for value in server.seen[0].headers.values() if "somebody" in value]
    assert "authorization" not in server.seen[0].headers
