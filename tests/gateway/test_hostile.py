"""Whatever is thrown at it, it answers with a status that it documents, and serves the next one."""

import json
import random
import re
import resource
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from gateway_parts import HELLO, Site, text, written_by
from service_parts import eventually

from taskmem.gateway import app
from taskmem.service import Limits

DOCUMENTED = {int(status) for status in re.findall(r"\b[2-5]\d\d\b", app.__doc__ or "")}
CLIENTS = 16
NAMES = [
    "door",
    "shop",
    "../../etc/passwd",
    "'; drop table tokens; --",
    "\x00",
    "\ud800",
    "policy",
    "door@v1",
    "a" * 10_000,
]
PATHS = [
    "/v1/chat/completions",
    "/v1/models",
    "/v1/models/door",
    "/v1//models",
    "/v1/models/..%2f..%2f",
    "/",
    "/v1",
    "/metrics",
]


def deep(rng: random.Random) -> Any:
    value: Any = rng.choice([None, 1, "x", 1e308, -1, True])
    for _ in range(rng.choice([1, 5, 900])):
        value = rng.choice([[value], {"messages": value}])
    return value


def throw(site: Site, seed: int) -> int:
    """One hostile request; the status."""
    rng = random.Random(seed)
    headers = dict(rng.choice([site.headers("door"), {"Authorization": "Bearer " + "x" * rng.randrange(1, 300)}, {}]))
    if rng.random() < 0.2:
        headers[rng.choice(["x-taskmem-stream", "x-taskmem-memories", "x-request-id"])] = rng.choice(
            ["../..", "a" * 5000]
        )
    method = rng.choice(["POST", "POST", "POST", "GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "BREW"])
    path = rng.choice([PATHS[0], PATHS[0], rng.choice(PATHS)])
    good: dict[str, Any] = {"model": rng.choice(NAMES), "messages": HELLO}
    bodies = [
        lambda: json.dumps({**good, rng.choice(["n", "stop", "stream", "x", "messages"]): deep(rng)}).encode(),
        lambda: rng.randbytes(rng.randrange(2000)),
        lambda: json.dumps(good).encode()[: rng.randrange(80)],
        lambda: json.dumps(good).encode(),
        lambda: b"[" * rng.randrange(1, 90_000),
        lambda: b" " * rng.randrange(190_000, 210_000),
    ]
    content = rng.choice(bodies)()
    if rng.random() < 0.2:
        declared = rng.choice([len(content), len(content) + 10, 10**12, 0])
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        data = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {declared}\r\n\r\n".encode() + content
        try:
            with socket.create_connection(("127.0.0.1", site.running.port), 3) as client:
                client.sendall(data)
                if rng.random() < 0.5:
                    return 0  # gone before the reply
                answer = client.recv(100)
        except OSError:
            return 0
        return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
    try:
        return site.client.request(method, path, headers=headers, content=content).status_code
    except (httpx2.RemoteProtocolError, httpx2.WriteError, httpx2.ReadError):  # it was refused before it was all sent
        return 0


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_hostile_requests_get_documented_statuses_and_harm_nobody(count: int, tmp_path: Path) -> None:
    limits = Limits(body_bytes=200_000, held_bytes=2_000_000, header_seconds=2.0, body_seconds=2.0, stall_seconds=2.0)
    with Site(tmp_path, limits=limits, in_flight=8, waiting=64) as site:
        site.chat("door")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with ThreadPoolExecutor(CLIENTS) as pool:
            statuses = list(pool.map(lambda seed: throw(site, seed), range(count)))
        assert set(statuses) - {0} <= DOCUMENTED
        assert {200, 400, 401, 404, 405, 413} <= set(statuses)
        assert not [line for line in site.log.lines if line["event"] == "fault"]
        eventually(lambda: (site.gateway.places.in_flight, site.gateway.places.waiting) == (0, 0))
        assert text(site.chat("door")) == written_by("door@v2")
        assert len({one.id for one in site.responses}) == len(site.responses)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 200_000  # KiB; 16 clients with bodies of 200 kB


def test_every_documented_status_is_one_that_metrics_know() -> None:
    assert {200, 400, 401, 404, 405, 408, 413, 429, 500, 502, 503, 504} == DOCUMENTED


@pytest.mark.parametrize(
    "piece", [b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"]
)
def test_a_body_without_end_is_cut_off(piece: bytes, tmp_path: Path) -> None:
    limits = Limits(body_bytes=200_000, body_seconds=30.0)
    with Site(tmp_path, limits=limits) as site:
        head = piece.replace(b"Host: x", f"Host: x\r\nAuthorization: Bearer {site.tokens['door']}".encode())
        with socket.create_connection(("127.0.0.1", site.running.port), 5) as client:
            client.sendall(head)
            chunk = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
            with pytest.raises(OSError):
                for _ in range(100_000):
                    client.sendall(chunk)
                    if client.recv(1000, socket.MSG_DONTWAIT | socket.MSG_PEEK):
                        break
                raise OSError
        eventually(lambda: site.gateway.places.waiting == 0)
        assert site.sample("taskmem_refusals_total", service="gateway", reason="too_large") in (0, 1)
