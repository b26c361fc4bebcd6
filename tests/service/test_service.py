"""What every service does with requests, before and after its own code."""

import json
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi import Depends, FastAPI, Request
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import BaseModel
from service_parts import LogLines, Running, eventually, received
from starlette.responses import StreamingResponse

from taskmem.errors import UserError
from taskmem.service import Limits, Refusals, Refused, bearer, service_app, trace_of
from taskmem.service.logs import LogHandler
from taskmem.service.running import bind
from taskmem.store import KeyMissing

LIMITS = Limits(body_bytes=1000, held_bytes=1500, header_seconds=0.5, body_seconds=0.5, stall_seconds=0.5)


class Form(BaseModel):
    number: int


class Book:
    """Two tokens."""

    def environment_of(self, token: str) -> str | None:
        if token == "broken":
            raise KeyMissing("tokens/x")
        return {"one": "door", "two": "shop"}.get(token)


class Place:
    """A service, its log and what it counts."""

    def __init__(self) -> None:
        self.log, self.registry = LogLines(), CollectorRegistry()
        self.app = service_app(LIMITS, self.log.log(), Refusals("test", self.registry))
        routes(self.app)

    def refused(self, reason: str) -> float | None:
        return self.registry.get_sample_value("taskmem_refusals_total", {"service": "test", "reason": reason})


def routes(app: FastAPI) -> None:
    who = Depends(bearer(Book()))

    @app.get("/who")
    async def tell(request: Request, environment: str = who) -> dict[str, str]:
        trace_of(request).adapter = "door@v1"
        return {"environment": environment}

    @app.post("/bytes")
    async def count(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @app.post("/form")
    async def form(form: Form) -> dict[str, int]:
        return {"number": form.number}

    @app.get("/fails/{how}")
    async def fails(how: str) -> None:
        raise {
            "conflict": Refused(409, "segment: other bytes", "conflict"),
            "user": UserError("secret place: cannot be read; mend it"),
            "disk": OSError(28, "No space left on device"),
            "bug": ZeroDivisionError("the secret text of a memory"),
        }[how]

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def pieces() -> Any:
            while True:
                yield b"x" * 100_000

        return StreamingResponse(pieces())


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[Place, Running]]:
    place = Place()
    with Running(place.app, LIMITS) as running:
        yield place, running


@pytest.fixture
def place(service: tuple[Place, Running]) -> Place:
    service[0].log.truncate(0)
    service[0].log.seek(0)
    return service[0]


@pytest.fixture
def client(service: tuple[Place, Running]) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=service[1].url, trust_env=False) as client:
        yield client


@pytest.fixture
def running(service: tuple[Place, Running]) -> Running:
    return service[1]


def test_every_reply_has_an_id_of_ours_and_a_line_in_the_log(place: Place, client: httpx2.Client) -> None:
    sent = {"Authorization": "Bearer one", "X-Request-Id": "mine"}
    replies = [client.get("/who", headers=sent) for _ in range(2)]
    ids = [reply.headers["x-request-id"] for reply in replies]
    assert replies[0].json() == {"environment": "door"}
    assert len(set(ids)) == 2 and all(id_.startswith("req-") for id_ in ids)
    lines = place.log.requests(2)
    assert [line["request"] for line in lines] == ids
    wanted = {"time": "2026-03-01T12:30:00+00:00", "service": "test", "event": "request", "method": "GET"}
    told = {**wanted, "route": "/who", "environment": "door", "adapter": "door@v1", "status": 200, "whole": True}
    assert {name: value for name, value in lines[0].items() if name not in ("request", "seconds")} == told


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (None, "missing"),
        ("Bearer", "missing"),
        ("Bearer nobody", "unknown or revoked"),
        ("Basic one", "missing"),
        ("one", "missing"),
        (f"Bearer {'x' * 1000}", "missing"),
    ],
)
def test_without_a_good_token_nobody_is_let_in(
    header: str | None, what: str, place: Place, client: httpx2.Client
) -> None:
    before = place.refused("unauthenticated") or 0
    reply = client.get("/who", headers={} if header is None else {"Authorization": header})
    assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
    assert reply.json()["error"]["type"] == "authentication_error"
    assert what in reply.json()["error"]["message"]
    assert place.refused("unauthenticated") == before + 1
    assert "nobody" not in place.log.getvalue()


def test_every_error_has_the_shape_of_openai_s(place: Place, client: httpx2.Client) -> None:
    conflict = client.get("/fails/conflict")
    assert conflict.status_code == 409
    told = {"message": "segment: other bytes", "type": "invalid_request_error", "param": None, "code": "conflict"}
    assert conflict.json() == {"error": told}
    replies = {
        404: client.get("/nowhere"),
        405: client.get("/form"),
        400: client.post("/form", json={"number": "secret"}),
        503: client.get("/fails/user"),
        500: client.get("/fails/bug"),
    }
    for status, reply in replies.items():
        assert reply.status_code == status
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
        assert reply.headers["x-request-id"].startswith("req-")
        assert "secret" not in reply.text
    assert client.get("/fails/disk").status_code == 503
    assert replies[503].headers["retry-after"] == "5"
    assert replies[400].json()["error"]["param"] == "body.number"


def test_a_fault_is_logged_with_its_place_and_without_what_it_quotes(place: Place, client: httpx2.Client) -> None:
    client.get("/fails/bug")
    (fault,) = [line for line in place.log.lines if line["event"] == "fault"]
    assert fault["error"] == "ZeroDivisionError"
    assert "in fails" in fault["frames"][-1] or "test_service.py" in fault["frames"][-1]
    assert "secret" not in place.log.getvalue()


def test_a_store_that_fails_lets_nobody_in_and_blames_no_token(place: Place, client: httpx2.Client) -> None:
    reply = client.get("/who", headers={"Authorization": "Bearer broken"})
    assert reply.status_code == 503
    assert "tokens/x" in place.log.getvalue() and "tokens/x" not in reply.text


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large_is_refused(declared: bool, place: Place, client: httpx2.Client) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(50):
            yield b"x" * 100

    before = place.refused("too_large") or 0
    reply = client.post("/bytes", content=b"x" * 1001 if declared else pieces())
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")
    assert place.refused("too_large") == before + 1
    assert client.post("/bytes", content=b"x" * 1000).json() == {"bytes": 1000}


def test_a_body_in_a_form_is_bounded_too(client: httpx2.Client) -> None:
    assert client.post("/form", content=b"[" * 1001).status_code == 413
    assert client.post("/form", content=b"[" * 900).status_code == 400


def test_all_bodies_together_are_bounded_and_given_free(running: Running, client: httpx2.Client) -> None:
    head = b"POST /bytes HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", running.port)) as slow:
        slow.sendall(head + b"x" * 999)
        time.sleep(0.1)
        reply = client.post("/bytes", content=b"x" * 900)
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
        slow.sendall(b"x")
        slow.settimeout(1)
        assert b'{"bytes":1000}' in received(slow)
    assert client.post("/bytes", content=b"x" * 900).status_code == 200


def test_a_body_that_comes_too_slowly_is_refused(running: Running) -> None:
    got = running.raw(b"POST /bytes HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx", 5)
    assert got.startswith(b"HTTP/1.1 408 ")
    assert b"not there within 0.5 s" in got


@pytest.mark.parametrize("head", [b"", b"GET /who HT", b"GET /who HTTP/1.1\r\nHost: x\r\nA:"])
def test_a_connection_that_sends_no_request_is_closed(head: bytes, running: Running) -> None:
    start = time.monotonic()
    assert running.raw(head, 5) == b""
    assert time.monotonic() - start < 3


def test_a_head_that_drips_is_cut_off_also_after_a_first_request(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port), 5) as client:
        client.sendall(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(65_536).startswith(b"HTTP/1.1 404")
        client.sendall(b"GET /nowhere HTTP/1.1\r\n")
        start = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - start < 5:
                client.sendall(b"a: b\r\n")
                time.sleep(0.05)
        assert time.monotonic() - start < 3


def test_a_request_that_takes_longer_than_a_head_may_is_served(running: Running, client: httpx2.Client) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"x"
        time.sleep(0.3)
        yield b"x"

    for _ in range(3):
        assert client.post("/bytes", content=pieces()).json() == {"bytes": 2}


def test_a_client_that_takes_nothing_is_left(place: Place, running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        (line,) = place.log.requests(1)
    assert (line["status"], line["whole"]) == (200, False)
    assert line["seconds"] < 5


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
        b"POST /bytes HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /bytes HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /bytes HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_is_no_request_is_told_so(data: bytes, running: Running, client: httpx2.Client) -> None:
    got = running.raw(data, 2)
    assert got[:13] in (b"HTTP/1.1 400 ", b"HTTP/1.1 413 ", b"HTTP/1.1 404 ")
    assert client.get("/who", headers={"Authorization": "Bearer two"}).json() == {"environment": "shop"}


def test_a_websocket_is_turned_away(running: Running) -> None:
    upgrade = b"GET /who HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert running.raw(upgrade, 2).startswith(b"HTTP/1.1 401 ")


def test_what_the_server_itself_says_is_json_too(place: Place) -> None:
    logger = logging.getLogger("taskmem.test_service")
    logger.handlers, logger.propagate = [LogHandler(place.log.log())], False
    logger.warning("Invalid %s", "request")
    try:
        raise ValueError("secret")
    except ValueError:
        logger.exception("Exception in %s", "secret")
    assert [line["event"] for line in place.log.lines] == ["server", "fault"]
    assert "secret" not in place.log.getvalue()


def test_refusals_are_counted_from_zero_under_a_fixed_list_of_reasons() -> None:
    registry = CollectorRegistry()
    Refusals("gateway", registry).count("busy")
    text = generate_latest(registry).decode()
    assert 'taskmem_refusals_total{reason="busy",service="gateway"} 1.0' in text
    assert 'taskmem_refusals_total{reason="forbidden",service="gateway"} 0.0' in text


def test_an_address_that_is_taken_is_one_line() -> None:
    with bind("127.0.0.1", 0) as sock, pytest.raises(UserError, match=r"127\.0\.0\.1:[0-9]+: cannot listen there"):
        bind("127.0.0.1", sock.getsockname()[1])
    with pytest.raises(UserError, match="no such port"):
        bind("127.0.0.1", 70_000)


def test_room_for_less_than_one_body_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="must have room for one body"):
        Limits(body_bytes=10, held_bytes=9)


def test_pipelined_requests_are_served_in_order(running: Running) -> None:
    one = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", running.port), 2) as client:
        client.sendall(one * 3)
        assert received(client).count(b"HTTP/1.1 404") == 3


def test_the_log_lines_are_one_json_object_each(place: Place, client: httpx2.Client) -> None:
    client.get("/nowhere%0a{}")
    eventually(lambda: len(place.log.lines) == 1)
    assert "method" not in json.loads(place.log.getvalue())
