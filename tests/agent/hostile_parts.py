"""Requests that no honest client sends, drawn from a seed, and what came back for each."""

import io
import json
import random
import socket
import string
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import quote

import av
import httpx2
import numpy as np
from agent_parts import event
from site_parts import clip, video

SQL = (
    "' OR 1=1 --",
    "'; DROP TABLE memories; --",
    '" UNION SELECT * FROM feedback',
    "\\'; SELECT pg_sleep(60); --",
    "%' AND '1'='1",
)
NAMES = (
    *("../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/x", "a%00b", "a/b", ".hidden", "-x", "a" * 500, "ü"),
    *("a%20b", "..", ".", "%", "%zz", "a\\b", "con%2f", "zz?b", "a;b", "~root", "$(id)", "`id`", *SQL),
)
ROUTES = ("segments?index=0", "questions", "memories", "")


@dataclass(frozen=True)
class Target:
    """Where the agent is, and a token that is good there."""

    host: str
    port: int
    token: str

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def head(self, method: str, path: str, *lines: str) -> bytes:
        return "\r\n".join(
            [f"{method} {path} HTTP/1.1", "Host: agent", f"Authorization: Bearer {self.token}", *lines, "", ""]
        ).encode()


def bombs() -> list[bytes]:
    """Small files that ask for a lot: frames, pixels, time; and such as are none."""
    whole = video("bomb", 0)
    playlist = b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    return [
        _film(64, 64, 4000, 1000),  # a thousand frames a second
        _film(64, 64, 4000, 1),  # an hour
        _film(4096, 2176, 1, 1),
        _film(8192, 8192, 1, 1),  # more pixels than any limit
        playlist,
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        whole[: len(whole) // 2],
        whole[:40] + bytes(range(256)) * 8 + whole[40:],
        b"\x00\x00\x00\x20ftypisom" + b"\xff" * 5000,
        b"GIF89a" + b"\x00" * 100,
    ]


def _film(width: int, height: int, frames: int, rate: int) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=rate, options={"preset": "ultrafast", "crf": "51", "threads": "1"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        black = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24")
        for number in range(frames):
            black.pts = number
            container.mux(stream.encode(black))
        container.mux(stream.encode())
    return buffer.getvalue()


class Hostile:
    """Draws requests and sends them; each call is one request and gives its status, 0 where none came."""

    def __init__(self, target: Target, seed: int) -> None:
        self._target, self._rng = target, random.Random(seed)
        self._bombs = bombs()
        self._kinds: dict[str, tuple[int, Callable[[random.Random], int]]] = {
            "fuzzed JSON": (30, self._fuzzed),
            "huge body": (4, self._huge),
            "bomb": (5, self._bomb),
            "name": (20, self._name),
            "SQL": (10, self._sql),
            "parameters": (12, self._parameters),
            "slow": (4, self._slow),
            "gone": (8, self._gone),
            "no HTTP": (7, self._no_http),
        }

    def send(self, count: int, at_once: int = 24) -> list[tuple[str, int]]:
        """Kind and status of so many requests."""
        weights = [weight for weight, _ in self._kinds.values()]
        drawn = self._rng.choices(list(self._kinds), weights, k=count)
        seeds = [self._rng.getrandbits(64) for _ in drawn]

        def one(kind: str, seed: int) -> tuple[str, int]:
            try:
                return kind, self._kinds[kind][1](random.Random(seed))
            except (OSError, httpx2.TransportError):
                return kind, 0  # it closed the connection on us

        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(one, drawn, seeds))

    def _request(self, method: str, path: str, **fields: object) -> int:
        with httpx2.Client(timeout=60, trust_env=False, headers=self._target.headers) as client:
            return client.request(method, f"{self._target.url}{path}", **fields).status_code  # type: ignore[arg-type]

    def _raw(self, data: bytes, close_after: float | None = None) -> int:
        with socket.create_connection((self._target.host, self._target.port), 30) as client:
            client.sendall(data)
            if close_after is not None:
                time.sleep(close_after)
                return 0
            return _status(client)

    def _fuzzed(self, rng: random.Random) -> int:
        path, body = rng.choice(
            [
                ("/v1/feedback", event(rng.randrange(99)).model_dump(mode="json")),
                ("/v1/streams/s/questions", {"id": "q", "text": "what?", "options": ["a", "b"], "asked_at_s": 1.0}),
            ]
        )
        body.pop("environment", None)
        for _ in range(rng.randint(0, 2)):
            body[rng.choice([*body, *([_text(rng)] if rng.random() < 0.3 else [])])] = _value(rng, 3)
        data = bytearray(json.dumps(body).encode())
        if rng.random() < 0.5:
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        return self._request("POST", path, content=bytes(data))

    def _huge(self, rng: random.Random) -> int:
        path = rng.choice(["/v1/feedback", "/v1/streams/h/segments?index=0", "/v1/streams/h/questions"])
        if rng.random() < 0.5:
            return self._raw(self._target.head("POST", path, f"Content-Length: {rng.randint(1 << 23, 1 << 60)}"))
        return self._request("POST", path, content=(b"[" * 65_536 for _ in range(100)))

    def _bomb(self, rng: random.Random) -> int:
        sampled = rng.choice(["true", "false"])
        stream = f"bomb{rng.randrange(10**9)}"
        return self._request(
            "POST", f"/v1/streams/{stream}/segments?index=0&sampled={sampled}", content=rng.choice(self._bombs)
        )

    def _name(self, rng: random.Random) -> int:
        method, route = rng.choice(
            [("POST", ROUTES[0]), ("POST", ROUTES[1]), ("GET", ROUTES[2]), ("DELETE", ROUTES[3])]
        )
        name = rng.choice(NAMES)
        name = name if rng.random() < 0.5 else quote(name, safe="")
        path = f"/v1/streams/{name}/{route}".rstrip("/")
        data = path.encode("latin-1", "replace").replace(b" ", b"+")
        body = b"{}"
        head = self._target.head(method, data.decode("latin-1"), f"Content-Length: {len(body)}")
        return self._raw(head + body)

    def _sql(self, rng: random.Random) -> int:
        text = rng.choice(SQL)
        choice = rng.randrange(3)
        if choice == 0:
            body = {"id": f"q{rng.randrange(10**9)}", "text": text, "options": [text, text]}
            return self._request("POST", "/v1/streams/kept/questions", json=body)
        if choice == 1:
            body = event(rng.randrange(10**6)).model_dump(mode="json") | {
                "text": text,
                "stream": "kept",
                "answer": text,
            }
            body.pop("environment")
            return self._request("POST", "/v1/feedback", json=body)
        return self._request("GET", f"/v1/streams/kept/memories?after={quote(text)}")

    def _parameters(self, rng: random.Random) -> int:
        value = rng.choice(["-1", "1e99", "NaN", "inf", "-inf", "9" * 400, "", "0x10", "true", "None", "1;2", "\u0661"])
        key = rng.choice(["index", "start_s", "end_s", "sampled", "after", "limit"])
        path = f"/v1/streams/p/{'memories' if key in ('after', 'limit') else 'segments'}"
        params = {"index": "0", key: value}
        if path.endswith("memories"):
            return self._request("GET", path, params=params)
        return self._request("POST", path, params=params, content=b"no video")

    def _slow(self, rng: random.Random) -> int:
        head = self._target.head("POST", "/v1/feedback", "Content-Length: 1000")
        with socket.create_connection((self._target.host, self._target.port), 30) as client:
            client.sendall(head[: rng.randint(1, len(head))])
            for _ in range(rng.randint(1, 5)):
                time.sleep(0.2)
                client.sendall(b"x")
            return _status(client)

    def _gone(self, rng: random.Random) -> int:
        data = clip("kept", 0)
        head = self._target.head(
            "POST", f"/v1/streams/gone{rng.randrange(99)}/segments?index=0&sampled=true", f"Content-Length: {len(data)}"
        )
        whole = head + data
        sent = rng.choice([whole, whole[: rng.randint(1, len(whole))]])
        return self._raw(sent, close_after=rng.choice([0.0, 0.05]))

    def _no_http(self, rng: random.Random) -> int:
        token = f"Authorization: Bearer {self._target.token}\r\n".encode()
        return self._raw(
            rng.choice(
                [
                    rng.randbytes(200) + b"\r\n\r\n",
                    b"GET / HTTP/9.9\r\n\r\n",
                    b"POST /v1/feedback HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
                    b"POST /v1/feedback HTTP/1.1\r\nHost: a\r\n" + token + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
                    b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
                    b"TRACE /v1/feedback HTTP/1.1\r\nHost: a\r\n\r\n",
                    b"PUT /v1/streams/a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
                    b"GET /v1/../../etc/passwd HTTP/1.1\r\nHost: a\r\n" + token + b"\r\n",
                    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(100),
                ]
            )
        )


def _status(client: socket.socket) -> int:
    got = b""
    while b"\r\n" not in got:
        piece = client.recv(4096)
        if not piece:
            return 0
        got += piece
    words = got.split(None, 2)
    return int(words[1]) if len(words) > 1 and words[0].startswith(b"HTTP/") else 0


def _text(rng: random.Random) -> str:
    return "".join(
        rng.choices([*string.printable, "\u0000", "\ud800", "\u202e", "<|im_start|>", "𝕏"], k=rng.randint(0, 12))
    )


def _value(rng: random.Random, depth: int) -> object:
    plain: Sequence[object] = (None, True, -1, 1e308, 10**40, _text(rng), "x" * 10_000, 0.1, float("nan"))
    if depth and rng.random() < 0.4:
        return rng.choice([[_value(rng, depth - 1)] * 3, {_text(rng): _value(rng, depth - 1)}])
    return rng.choice(plain)
