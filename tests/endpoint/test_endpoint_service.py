"""The client in a service: nothing is kept on disk, each caller has its own key, and one caller's trouble is nobody else's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import Act, Loopback, Said, Seen, call_settings, chat, words

from taskmem.endpoint.client import SERVED_POLICY, Caller, Endpoint
from taskmem.endpoint.keys import ApiKey
from taskmem.endpoint.ledger import Call
from taskmem.endpoint.reply import Reply
from taskmem.errors import UserError

BODY: dict[str, Any] = {"model": "door", "messages": words("hello"), "n": 1, "seed": 0, "max_completion_tokens": 9}


@pytest.fixture
def server() -> Iterator[Loopback]:
    def behave(seen: Seen) -> Act:
        if seen.headers.get("authorization") == "Bearer revoked":
            return Act({"error": {"message": "unknown key revoked"}}, 401)
        return Act({**chat({"said": "yes"}), "model": "door@v3"}, headers={SERVED_POLICY: "d" * 64})

    with Loopback(behave) as server:
        yield server


@pytest.fixture
def calls() -> list[Call]:
    return []


@pytest.fixture
def endpoint(
    server: Loopback, calls: list[Call], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Endpoint]:
    monkeypatch.chdir(tmp_path)
    settings = call_settings(server.url, policy=True, retries=0, key={"variable": "KEY"})
    with Endpoint(settings, None, {"KEY": "the-role-s"}, calls.append) as endpoint:
        yield endpoint


def sample(endpoint: Endpoint, key: str = "mine", **headers: str) -> Reply:
    return endpoint.sample("policy", BODY, "", lambda _: None, Caller(ApiKey(key), headers))


def test_nothing_is_kept_and_equal_requests_are_asked_again(
    endpoint: Endpoint, server: Loopback, tmp_path: Path
) -> None:
    for _ in range(2):
        assert endpoint.ask("answerer", words("secret"), Said).said == "yes"
    assert len(server.seen) == 2
    assert list(tmp_path.iterdir()) == []


def test_every_call_is_told_as_it_ends(endpoint: Endpoint, calls: list[Call]) -> None:
    sample(endpoint)
    with pytest.raises(UserError):
        sample(endpoint, "revoked")
    assert [(call.role, call.outcome) for call in calls] == [("policy", "answered"), ("policy", "status")]
    assert (calls[0].prompt_tokens, calls[0].cost) == (10, pytest.approx(0.02))
    assert endpoint.spent.tokens == 15


def test_a_caller_is_known_by_its_own_key_and_headers(endpoint: Endpoint, server: Loopback) -> None:
    reply = sample(endpoint, "mine", **{"x-taskmem-stream": "a"})
    assert (reply.model, reply.policy) == ("door@v3", "d" * 64)
    assert server.seen[0].headers["authorization"] == "Bearer mine"
    assert server.seen[0].headers["x-taskmem-stream"] == "a"
    endpoint.ask("answerer", words("hello"), Said)
    assert server.seen[1].headers["authorization"] == "Bearer the-role-s"


def test_a_refused_caller_ends_nobody_else_s_calls(endpoint: Endpoint) -> None:
    with pytest.raises(UserError) as stop:
        sample(endpoint, "revoked")
    assert "revoked" not in str(stop.value)
    assert sample(endpoint).model == "door@v3"


def test_a_server_that_counts_more_than_expected_ends_no_service(endpoint: Endpoint, server: Loopback) -> None:
    server.behave = lambda _: Act(chat({"said": "yes"}, prompt=10**6))
    for _ in range(2):
        assert endpoint.ask("answerer", words("hello"), Said).said == "yes"


def test_a_reply_that_gives_the_caller_s_key_away_is_no_answer(endpoint: Endpoint, server: Loopback) -> None:
    server.behave = lambda _: Act({**chat("x"), "model": "tm_canary"})
    with pytest.raises(Exception, match="the reply holds the API key"):
        sample(endpoint, "tm_canary")
