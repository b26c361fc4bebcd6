"""More than it can serve, slow servers, servers that die and clients that leave: no collapse, and no place is lost."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from gateway_parts import HELLO, Site, chunks, text, written_by
from service_parts import Running, eventually

QUIET = {"champion_seconds": 1.0, "token_seconds": 5.0}


def raw(site: Site, **body: Any) -> bytes:
    """A request for `door` as bytes."""
    content = json.dumps({"model": "door", "messages": HELLO, **body}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {site.tokens['door']}\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def idle(site: Site) -> bool:
    places = site.gateway.places
    return (places.in_flight, places.waiting, site.upstream.in_flight) == (0, 0, 0)


def test_what_is_beyond_those_who_may_wait_is_told_to_come_again(tmp_path: Path) -> None:
    with Site(tmp_path, in_flight=2, waiting=3, share=1.0, retry_seconds=7.0) as site, ThreadPoolExecutor(12) as pool:
        site.chat("door")
        site.upstream.first_seconds = 1.5
        replies = list(pool.map(lambda _: site.chat("door"), range(12)))
        statuses = [reply.status_code for reply in replies]
        assert (statuses.count(200), statuses.count(429)) == (5, 7)
        assert site.upstream.most_in_flight == 2
        refused = next(reply for reply in replies if reply.status_code == 429)
        assert refused.headers["retry-after"] == "7"
        assert (refused.json()["error"]["type"], refused.json()["error"]["code"]) == ("rate_limit_error", "busy")
        assert site.sample("taskmem_refusals_total", service="gateway", reason="busy") == 7
        eventually(lambda: idle(site))
        assert site.chat("door").status_code == 200


def test_an_environment_that_asks_too_much_delays_and_refuses_itself_alone(tmp_path: Path) -> None:
    with Site(tmp_path, in_flight=2, waiting=10, share=0.5) as site, ThreadPoolExecutor(12) as pool:
        site.upstream.first_seconds = 0.5
        flood = [pool.submit(site.chat, "door") for _ in range(9)]
        eventually(lambda: sum(one.done() for one in flood) >= 3)  # beyond its share, at once
        other = pool.submit(site.chat, "shop")
        assert text(other.result()) == written_by("shop@v1")
        # it took the next place that came free, before four that came earlier
        assert sum(not one.done() for one in flood) >= 2
        statuses = [one.result().status_code for one in flood]
        assert (statuses.count(200), statuses.count(429)) == (6, 3)
        refused = next(one.result() for one in flood if one.result().status_code == 429)
        assert "this environment has too many requests here" in refused.text
        eventually(lambda: idle(site))


def test_who_waits_too_long_is_told_so(tmp_path: Path) -> None:
    with Site(tmp_path, in_flight=1, wait_seconds=0.2) as site, ThreadPoolExecutor() as pool:
        site.upstream.first_seconds = 1.0
        first = pool.submit(site.chat, "door")
        eventually(lambda: site.upstream.in_flight == 1)
        assert site.chat("door").status_code == 429
        assert first.result().status_code == 200


def test_in_flight_and_waiting_are_told_while_they_are(tmp_path: Path) -> None:
    with Site(tmp_path, in_flight=1) as site, ThreadPoolExecutor() as pool:
        site.upstream.first_seconds = 1.0
        both = [pool.submit(site.chat, "door") for _ in range(2)]
        told = {"taskmem_gateway_in_flight 1.0", "taskmem_gateway_waiting 1.0"}
        eventually(lambda: told <= set(site.client.get("/metrics").text.split("\n")))
        assert [one.result().status_code for one in both] == [200, 200]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_request_at_the_server_too(stream: bool, site: Site) -> None:
    site.upstream.word_seconds = site.upstream.first_seconds = 0.3
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", site.running.port)) as client:
            client.sendall(raw(site, stream=stream))
            eventually(lambda: site.upstream.in_flight == 1)
        eventually(lambda: idle(site), seconds=2)
    assert site.upstream.gone == 3
    assert {line["status"] for line in site.log.requests(3)} <= {200, 499}
    site.upstream.word_seconds = site.upstream.first_seconds = 0
    assert text(site.chat("door")) == written_by("door@v2")


def test_a_client_that_leaves_while_it_waits_leaves_its_place(tmp_path: Path) -> None:
    with Site(tmp_path, in_flight=1, waiting=1, share=1.0) as site, ThreadPoolExecutor() as pool:
        site.upstream.first_seconds = 0.8
        first = pool.submit(site.chat, "door")
        eventually(lambda: site.upstream.in_flight == 1)
        with socket.create_connection(("127.0.0.1", site.running.port)) as client:
            client.sendall(raw(site))
            eventually(lambda: site.gateway.places.waiting == 1)
            assert site.chat("door").status_code == 429
        eventually(lambda: site.gateway.places.waiting == 0)
        assert site.chat("door").status_code == 200
        assert first.result().status_code == 200
        assert len(site.upstream.asked) == 2


def test_a_slow_body_takes_no_place_from_those_that_are_served(tmp_path: Path) -> None:
    with Site(tmp_path, in_flight=1, waiting=2, share=1.0) as site:
        with socket.create_connection(("127.0.0.1", site.running.port)) as client:
            client.sendall(raw(site)[:-5])
            eventually(lambda: site.gateway.places.waiting == 1)
            assert site.chat("door").status_code == 200
        eventually(lambda: idle(site))


def test_a_server_that_is_too_slow_is_a_time_out(tmp_path: Path) -> None:
    with Site(tmp_path, reply_seconds=0.4) as site:
        site.upstream.first_seconds = 2.0
        reply = site.chat("door")
        assert (reply.status_code, reply.json()["error"]["code"]) == (504, "timeout")
        site.upstream.first_seconds, site.upstream.word_seconds = 0.0, 0.3
        reply = site.chat("door", stream=True)
        assert reply.status_code == 200
        assert chunks(reply)[-1]["error"]["code"] == "timeout"
        assert "[DONE]" not in reply.text
        eventually(lambda: idle(site))


def test_a_stream_that_breaks_off_says_so_and_is_not_taken_for_whole(site: Site) -> None:
    site.upstream.breaks_after = 2
    reply = site.chat("door", stream=True)
    assert reply.status_code == 200
    assert text(reply) == "door@v2 0; door@v2 1; "
    assert chunks(reply)[-1]["error"]["type"] == "server_error"
    assert "[DONE]" not in reply.text
    assert len(site.responses) == 1  # a part was given, and is accounted for
    site.upstream.breaks_after = 0
    assert site.chat("door", stream=True).status_code == 502
    assert len(site.responses) == 1


def test_an_empty_stream_is_no_answer(site: Site) -> None:
    site.upstream.words = 0
    reply = site.chat("door", stream=True)
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "policy_server")
    assert site.responses == []


@pytest.mark.parametrize(
    ("said", "told"), [(400, 400), (413, 400), (422, 400), (401, 502), (429, 502), (500, 502), (501, 502), (503, 503)]
)
def test_what_the_server_refuses_is_told_as_whose_mistake_it_is(said: int, told: int, site: Site) -> None:
    site.upstream.status = said
    for stream in (False, True):
        reply = site.chat("door", stream=stream)
        assert reply.status_code == told
        assert ("the server's own words" in reply.text) == (told == 400)
    assert site.responses == []


@pytest.mark.parametrize(("code", "told"), [(400, 400), (500, 502), (503, 503)])
def test_a_stream_that_begins_with_an_error_is_a_status(code: int, told: int, site: Site) -> None:
    site.upstream.fails = code
    reply = site.chat("door", stream=True)
    assert (reply.status_code, "the server's own words" in reply.text) == (told, told == 400)
    assert site.responses == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_fails_inside_the_server_is_sent_once_more(stream: bool, site: Site) -> None:
    site.upstream.slips = 1
    reply = site.chat("door", stream=stream)
    assert (reply.status_code, text(reply)) == (200, written_by("door@v2"))
    assert [one.id for one in site.responses] == [reply.headers["x-request-id"]]
    first, second = site.upstream.asked
    assert second.pop("x-request-id") == f"{first.pop('x-request-id')}-again"
    assert second == first
    assert site.sample("taskmem_gateway_sent_again_total") == 1
    site.upstream.slips = 2
    reply = site.chat("door", stream=stream)
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "policy_server")
    assert len(site.upstream.asked) == 4
    assert len(site.responses) == 1


def test_a_server_that_is_gone_is_503_until_it_is_back(site: Site) -> None:
    assert site.chat("door").status_code == 200
    port = site.server.port
    site.server.__exit__()
    reply = site.chat("door")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "policy_server")
    assert "retry-after" in reply.headers
    eventually(lambda: site.client.get("/readyz").status_code == 503)
    assert site.client.get("/healthz").status_code == 200
    site.upstream.adapters.clear()
    site.upstream.loads.clear()
    with Running(site.upstream.app, port=port):
        eventually(lambda: site.client.get("/readyz").status_code == 200)
        assert text(site.chat("door")) == written_by("door@v2")
        assert site.upstream.loads == {"door@v2": 1}


def test_a_promotion_under_load_fails_no_request(site: Site) -> None:
    site.upstream.word_seconds = 0.02
    before, after = written_by("door@v2"), written_by("door@v3")
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(site.chat, "door", stream=True) for _ in range(64)]
        eventually(lambda: len(site.upstream.asked) >= 20)
        site.promote("door", site.publish("door", 4))
        asked += [pool.submit(site.chat, "door", stream=True) for _ in range(64)]
        replies = [one.result() for one in asked]
    assert {reply.status_code for reply in replies} == {200}
    written = [text(reply) for reply in replies]
    assert set(written) == {before, after} and set(written[-48:]) == {after}
    assert [reply.headers["x-taskmem-adapter"] for reply in replies] == [
        "door@v2" if one == before else "door@v3" for one in written
    ]
    assert {one.id for one in site.responses} == {reply.headers["x-request-id"] for reply in replies}
    assert site.upstream.loads == {"door@v2": 1, "door@v3": 1}


def test_a_gateway_that_stops_ends_what_is_in_flight(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool, Site(tmp_path) as site:
        site.upstream.word_seconds = 0.2
        running = pool.submit(site.chat, "door", stream=True)
        eventually(lambda: site.upstream.in_flight == 1)
        site.running.__exit__()
        assert text(running.result()) == written_by("door@v2")
        with pytest.raises(httpx2.ConnectError):
            site.chat("door")


def test_the_store_is_not_asked_for_every_request_of_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Site(tmp_path, **QUIET) as site:
        read: list[str] = []
        real = type(site.store).get
        monkeypatch.setattr(type(site.store), "get", lambda store, key: (read.append(key), real(store, key))[1])
        start = time.monotonic()
        for _ in range(20):
            site.chat("door")
        seconds = time.monotonic() - start
    assert read.count("registry/door/champion") <= 2 + seconds
