"""Another environment's streams, memories, questions and feedback cannot be reached with one's token: every route is tried."""

from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from agent_parts import event, question
from fastapi.routing import APIRoute
from service_parts import NOW, eventually
from site_parts import Site, clip

from taskmem.agent.routes import agent_app
from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.gateway.tokens import revoke_token
from taskmem.records import FeedbackEvent

SECRET = "the door's secret"


def feedback(number: int, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = event(number, **changes).model_dump(mode="json")
    del fields["environment"]
    return fields


# every route below /v1, as somebody would call it who knows the names of another's things
CALLS: dict[tuple[str, str], Callable[[httpx2.Client, str], httpx2.Response]] = {
    ("POST", "/v1/streams/{stream}/segments"): lambda client, stream: client.post(
        f"/v1/streams/{stream}/segments", params={"index": 0, "sampled": "true"}, content=clip("a", 0)
    ),
    ("POST", "/v1/streams/{stream}/questions"): lambda client, stream: client.post(
        f"/v1/streams/{stream}/questions", json={"id": "q1", "text": SECRET}
    ),
    ("GET", "/v1/streams/{stream}/memories"): lambda client, stream: client.get(f"/v1/streams/{stream}/memories"),
    ("DELETE", "/v1/streams/{stream}"): lambda client, stream: client.delete(f"/v1/streams/{stream}"),
    ("POST", "/v1/feedback"): lambda client, stream: client.post(
        "/v1/feedback", json=feedback(1, id=f"of-{stream}", stream=stream)
    ),
    ("GET", "/v1/served"): lambda client, _: client.get("/v1/served"),
}


@pytest.fixture
def lived_in(site: Site) -> Site:
    """The door has a stream, an answer and feedback."""
    for index in range(2):
        assert site.send("a", index).status_code == 201
    assert site.ask("a", text=SECRET).status_code == 201
    with site.client() as client:
        assert client.post("/v1/feedback", json=feedback(1, text=SECRET)).status_code == 201
    return site


def state(site: Site) -> tuple[Any, ...]:
    """Everything that the door can see of its own."""
    with site.client() as client:
        memories = client.get("/v1/streams/a/memories").content
        answer = client.post("/v1/streams/a/questions", json={"id": "q1", "text": SECRET}).content
        again = client.post("/v1/feedback", json=feedback(1, text=SECRET))
    return memories, answer, again.status_code, again.content


def test_no_route_is_forgotten_here(site: Site) -> None:
    routes = {
        (method, route.path)
        for route in agent_app(site.service).routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    assert {pair for pair in routes if pair[1].startswith("/v1")} == set(CALLS)
    assert {pair for pair in routes if not pair[1].startswith("/v1")} == {
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
    }


def test_another_s_token_reaches_nothing_and_learns_nothing(lived_in: Site) -> None:
    before = state(lived_in)
    # those that read come first, and nothing of one's own is there yet
    for call in sorted(CALLS, key=lambda pair: pair[0] != "GET"):
        with lived_in.client("room") as client:
            theirs, nobodys = CALLS[call](client, "a"), CALLS[call](client, "nobody-s")
        assert theirs.status_code == nobodys.status_code, call
        assert SECRET not in theirs.text and "door" not in theirs.text, call
        assert theirs.text.replace("nobody-s", "a") == nobodys.text.replace("nobody-s", "a"), call
        assert state(lived_in) == before, call


def test_without_a_good_token_there_is_no_route(lived_in: Site) -> None:
    before = state(lived_in)
    bad = ("", "Bearer", "Bearer tm_" + "x" * 43, "Basic ZG9vcjpkb29y", "Bearer ../door", "Bearer " + "x" * 5000)
    for call in CALLS:
        for header in bad:
            with lived_in.client(None) as client:
                client.headers["Authorization"] = header
                reply = CALLS[call](client, "a")
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key"), (call, header)
    assert state(lived_in) == before


def test_a_revoked_token_is_good_for_nothing(lived_in: Site) -> None:
    revoke_token(lived_in.store, sha256_bytes(lived_in.tokens["door"]), NOW)
    lived_in.restart()  # forgets what it knew of tokens, as it does within seconds
    assert lived_in.ask("a").status_code == 401


def test_equal_names_in_two_environments_are_two_things(lived_in: Site) -> None:
    room = lived_in.send("a", 5, environment="room")
    assert room.status_code == 201
    assert lived_in.ask("a", environment="room").json()["memories"][0]["id"] == "a:5"
    with lived_in.client("room") as client:
        assert client.post("/v1/feedback", json=feedback(1, text="the room's")).status_code == 201
        assert client.delete("/v1/streams/a").status_code == 200
    assert [m["id"] for m in lived_in.ask("a", text=SECRET).json()["memories"]] == ["a:0", "a:1"]
    assert lived_in.send("a", 2).status_code == 201
    eventually(lambda: lived_in.service.outbox.waiting()[0] == 0)
    kept = [lived_in.store.get(key).data for key in lived_in.store.list("feedback/door/")]
    assert SECRET.encode() in b"".join(kept)


def test_feedback_never_lands_in_another_s_parts(lived_in: Site) -> None:
    with lived_in.client("room") as client:
        assert client.post("/v1/feedback", json={**feedback(2), "environment": "door"}).status_code == 400
        assert client.post("/v1/feedback", json=feedback(3)).status_code == 201
    eventually(lambda: lived_in.service.outbox.waiting()[0] == 0)
    for environment in ("door", "room"):
        keys = list(lived_in.store.list(f"feedback/{environment}/"))
        lines = [line for key in keys for line in lived_in.store.get(key).data.splitlines()[1:]]
        assert {FeedbackEvent.model_validate_json(line).environment for line in lines} == {environment}


def test_the_client_asks_for_its_own_environment_alone(site: Site) -> None:
    with site.remote(environment="room") as agent:
        for call in (lambda: agent.feedback(event(1)), lambda: agent.answer(question(1))):
            with pytest.raises(UserError, match="1: is of environment door, and the token is room's"):
                call()
