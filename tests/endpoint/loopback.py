"""A chat completions server on loopback that does what a test says, and counts."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from taskmem.endpoint.reply import Answer
from taskmem.roles import CallSettings

ANSWERING = {"fidelity", "redundancy", "richness", "helpfulness", "answerer", "grader"}


class Said(Answer):
    """A form for tests."""

    said: str


@dataclass(frozen=True)
class Seen:
    """One request as it arrived; `number` counts all of them from 0, `again` those with an equal body before it."""

    number: int
    again: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def data(self) -> Any:
        """The JSON object in the user message."""
        return json.loads(self.body["messages"][-1]["content"][0]["text"])


@dataclass(frozen=True)
class Act:
    """What to do with a request. `cut`: close the connection instead of replying, or in the middle of the body."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: str = ""
    drip: float = 0.0


def chat(content: Any, prompt: int = 10, completion: int = 5, finish: str = "stop", **more: Any) -> dict[str, Any]:
    """A chat completion; an object becomes JSON text."""
    text = content if isinstance(content, str) else json.dumps(content)
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish, **more}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


class Loopback:
    """Serves `behave` on a free port of 127.0.0.1 inside its `with` block."""

    def __init__(self, behave: Callable[[Seen], Act]) -> None:
        self.behave = behave
        self.seen: list[Seen] = []
        self.answered: list[Seen] = []
        self.in_flight = self.most_in_flight = 0
        self.tokens = 0
        self._lock = threading.Lock()
        self._server = _Listener(("127.0.0.1", 0), self._handler())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Seen:
        with self._lock:
            again = sum(seen.body == body for seen in self.seen)
            seen = Seen(len(self.seen), again, path, headers, body)
            self.seen.append(seen)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        return seen

    def done(self, seen: Seen, act: Act) -> None:
        with self._lock:
            self.in_flight -= 1
            if act.status == 200 and not act.cut:
                self.answered.append(seen)
            if isinstance(act.body, dict):
                self.tokens += act.body.get("usage", {}).get("total_tokens", 0)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                seen = outer.take(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                act = outer.behave(seen)
                time.sleep(act.delay)
                # billed before it is sent: a client that is gone pays all the same
                outer.done(seen, act)
                if act.cut == "before":
                    self.close_connection = True
                    return
                self._reply(act)

            def _reply(self, act: Act) -> None:
                data = act.body if isinstance(act.body, bytes) else json.dumps(act.body).encode()
                try:
                    self.send_response(act.status)
                    for name, value in {"Content-Type": "application/json", **act.headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    if act.cut == "middle":
                        self.wfile.write(data[: len(data) // 2])
                        self.close_connection = True
                        return
                    for piece in [data[i : i + 1] for i in range(len(data))] if act.drip else [data]:
                        self.wfile.write(piece)
                        self.wfile.flush()
                        time.sleep(act.drip)
                except OSError:
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def call_settings(url: str, policy: bool = False, **changes: Any) -> CallSettings:
    """Settings with every role at `url`; `changes` name fields of the roles, or of the whole."""
    role: dict[str, Any] = {
        "base_url": url,
        "key": None,
        "model": "m",
        "revision": "",
        "media": "mp4",
        "media_tokens": 100,
        "price": {"prompt": 1000.0, "completion": 2000.0},
        "concurrency": 64,
        "connect_seconds": 5.0,
        "reply_seconds": 20.0,
        "retries": 2,
        "invalid_retries": 1,
    }
    asked = {"temperature": 0.0, "seed": 0, "max_completion_tokens": 50}
    whole: dict[str, Any] = {
        "budget": {"money": None, "tokens": None},
        "failed_share": 0.1,
        "failed_in_a_row": 1000,
        "shuffles": 4,
    }
    for name, value in changes.items():
        (whole if name in whole else asked if name in asked else role)[name] = value
    roles = {name: {**role, **asked} for name in sorted(ANSWERING)}
    return CallSettings.model_validate({"policy": role if policy else None, "roles": roles, **whole})


def words(text: str) -> list[dict[str, Any]]:
    """One user message."""
    return [{"role": "user", "content": text}]
