"""A proxy before a real S3 server that fails as networks and servers do. How other folders reach it: s3_servers.py.

    with FaultyProxy(moto(), rate=0.2) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = open_store(url)             # one call of five fails
        proxy.rate = 0
        proxy.fail_next(Fault.LOST)         # the next PUT takes place and is never answered
        store.put_if_absent("a", b"")
        assert proxy.seen[Fault.LOST]       # that something failed is for the test to check

LATE answers come after `delay` seconds: give a client that is to give up on them a shorter timeout.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit


class Fault(StrEnum):
    BUSY = "answered 503, not forwarded"
    RESET = "connection closed, not forwarded"
    LOST = "forwarded, connection closed instead of an answer"
    LATE = "forwarded, answered after the delay"
    CUT = "forwarded, connection closed in the middle of the answer"
    HELD = "connection closed, forwarded when `deliver` is called"


@dataclass(frozen=True)
class Refuse:
    """An error of S3, not forwarded."""

    status: int
    code: str


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclass(frozen=True)
class _Planned:
    fault: Fault | Refuse
    method: str
    path: str
    meanwhile: Callable[[], object]


class FaultyProxy:
    """Forwards to `upstream`; of all requests the share `rate` suffers one of `faults`, drawn at random.

    Headers named in `ignore` are not forwarded with the method they stand for: {"PUT": ("If-Match",)} makes a server
    that ignores If-Match of it.
    """

    def __init__(
        self,
        upstream: str,
        *,
        rate: float = 0.0,
        faults: Sequence[Fault | Refuse] = (Fault.BUSY, Fault.LOST, Fault.LATE),
        delay: float = 0.5,
        ignore: dict[str, Sequence[str]] | None = None,
        seed: int = 0,
    ) -> None:
        self.rate, self.faults, self.delay = rate, faults, delay
        self.ignore = ignore or {}
        self.seen: Counter[Fault | Refuse] = Counter()
        self.requests: list[Request] = []
        self._upstream = urlsplit(upstream)
        self._seed, self._random = seed, random.Random(seed)
        self._planned: list[_Planned] = []
        self._held: list[Request] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail_next(
        self,
        fault: Fault | Refuse,
        method: str = "PUT",
        path: str = "",
        times: int = 1,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> None:
        """Fail the next `times` requests of `method` with `path` in their path and query.

        `meanwhile` is called before the client learns of a fault.
        """
        self._planned += [_Planned(fault, method, path, meanwhile)] * times

    def reset(self) -> None:
        """Forward everything from now on, and forget what was seen."""
        self.rate, self._planned, self._held = 0.0, [], []
        self._random.seed(self._seed)
        self.seen.clear()
        self.requests.clear()

    def deliver(self) -> list[int]:
        """Forward the requests that were held; the statuses of their answers."""
        held, self._held = self._held, []
        return [self.forward(request).status for request in held]

    def hold(self, request: Request) -> None:
        self._held.append(request)

    def forward(self, request: Request) -> Answer:
        ignored = {name.lower() for name in self.ignore.get(request.method, ())}
        headers = {name: value for name, value in request.headers.items() if name.lower() not in ignored}
        connection = HTTPConnection(self._upstream.hostname or "", self._upstream.port, timeout=60)
        try:
            connection.request(request.method, request.path, request.body, headers)
            response = connection.getresponse()
            return Answer(response.status, response.getheaders(), response.read())
        finally:
            connection.close()

    def draw(self, request: Request) -> tuple[Fault | Refuse | None, Callable[[], object]]:
        """What becomes of a request: the planned fault, or by chance one, or none."""
        with self._lock:
            self.requests.append(request)
            for number, planned in enumerate(self._planned):
                if planned.method == request.method and planned.path in request.path:
                    del self._planned[number]
                    break
            else:
                if self._random.random() >= self.rate:
                    return None, lambda: None
                planned = _Planned(self._random.choice(self.faults), "", "", lambda: None)
            self.seen[planned.fault] += 1
            return planned.fault, planned.meanwhile


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    proxy: FaultyProxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        assert "Transfer-Encoding" not in self.headers, "the proxy forwards bodies of a stated length only"
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hop = ("connection", "expect")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in hop}
        # The client may be gone when its answer comes.
        with suppress(ConnectionError):
            self._serve(Request(self.command, self.path, headers, body))

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 - names of http.server

    def _serve(self, request: Request) -> None:
        proxy = self.server.proxy
        fault, meanwhile = proxy.draw(request)
        answer = None
        if fault in (None, Fault.LOST, Fault.LATE, Fault.CUT):
            answer = proxy.forward(request)
        elif fault is Fault.HELD:
            proxy.hold(request)
        meanwhile()
        if fault is Fault.LATE:
            time.sleep(proxy.delay)
        if fault is Fault.BUSY:
            fault = Refuse(503, "SlowDown")
        if isinstance(fault, Refuse):
            error = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>planned</Message></Error>"
            answer = Answer(fault.status, [("Content-Type", "application/xml")], error.encode())
        if answer is None or fault is Fault.LOST:
            self.close_connection = True
        else:
            self._answer(answer, len(answer.body) // 2 if fault is Fault.CUT else None)

    def _answer(self, answer: Answer, length: int | None) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        if answer.status != 204:
            stated = dict(answer.headers).get("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", stated or str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[:length])
        if length is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""
