"""A server that speaks Kubeflow Pipelines' v2beta1 on loopback: it refuses what its OpenAPI does not allow, and can go wrong."""

import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml
from kfp_openapi import MistakeError, Operation, check, check_query, operations

TOKEN = "the-token-itself"
PAGE = 2  # shorter than any test's list, so that pages are followed
LOG = re.compile(r"/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log")
Document = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """What happens in place of an answer."""

    status: int = 0
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0


def refusal(code: int, message: str) -> str:
    """An error in the API's own words."""
    return json.dumps({"error": message, "code": code, "message": message, "details": []})


class RefusedError(Exception):
    """An error answer: HTTP status, code and message."""


class Stub:
    """The server's state by kind and id, and all it was asked: `asked` are the names of operations, `mistakes` what was wrong.

    `fault`, given an operation's name, may return what happens instead of it; `before` is called before it.
    """

    def __init__(self) -> None:
        self.kinds: dict[str, dict[str, Document]] = {
            kind: {} for kind in ("experiments", "pipelines", "pipeline_versions", "recurring_runs", "runs")
        }
        self.asked: list[str] = []
        self.mistakes: list[str] = []
        self.logs: dict[str, bytes] = {}
        self.fault: Callable[[str], Fault | None] = lambda _: None
        self.before: Callable[[str], None] = lambda _: None
        self.number, self.in_a_second = 0, 1
        self._lock = threading.RLock()

    def schedules(self) -> list[Document]:
        return list(self.kinds["recurring_runs"].values())

    def answer(self, operation: Operation, at: dict[str, str], query: dict[str, str], body: Any) -> Document:
        """What the API answers to a request that is allowed; RefusedError otherwise."""
        verb, kind = _meaning(operation)
        with self._lock:
            things = self.kinds[kind]
            if verb == "list":
                return self._page(kind, [t for t in things.values() if _fits(t, at, query)], query)
            if verb == "create":
                return self._create(kind, dict(body))
            if verb == "upload":
                named = {"pipeline_id": query["pipelineid"], "name": query["name"], "display_name": query["name"]}
                return self._create("pipeline_versions", {**named, "pipeline_spec": body})
            id_ = at[f"{_singular(kind)}_id"]
            if id_ not in things:
                raise RefusedError(404, 5, f"{_singular(kind)} {id_} not found")
            return things[id_] if verb == "get" else (things.pop(id_), {})[1]

    def _page(self, kind: str, found: list[Document], query: dict[str, str]) -> Document:
        def place(thing: Document) -> list[str]:
            return [thing["created_at"], thing[f"{_singular(kind)}_id"]]

        falling = query.get("sort_by") == "created_at desc"
        found, total = sorted(found, key=place, reverse=falling), len(found)
        # as Kubeflow's, a token names the next page's first row, so that what is deleted meanwhile moves no other
        if first := json.loads(query.get("page_token") or "null"):
            found = [thing for thing in found if (place(thing) <= first if falling else place(thing) >= first)]
        end = min(PAGE, int(query.get("page_size") or PAGE))
        more = {"next_page_token": json.dumps(place(found[end]))} if end < len(found) else {}
        # so does the OpenAPI call it
        called = "recurringRuns" if kind == "recurring_runs" else kind
        return {called: found[:end], "total_size": total, **more}

    def _create(self, kind: str, thing: Document) -> Document:
        unique = {"experiments": "display_name", "pipelines": "name", "pipeline_versions": "name"}.get(kind)
        if unique and any(known[unique] == thing[unique] for known in self.kinds[kind].values()):
            raise RefusedError(409, 6, f"{_singular(kind)} {thing[unique]} already exists")
        if kind in ("recurring_runs", "runs") and thing.get("experiment_id") not in self.kinds["experiments"]:
            raise RefusedError(400, 3, "experiment not found")
        if kind in ("recurring_runs", "runs") and (owner := self.kinds["experiments"][thing["experiment_id"]]).get(
            "namespace"
        ):
            thing |= {"namespace": owner["namespace"]} if kind == "recurring_runs" else {}
        self.number += 1
        # it knows whole seconds
        created = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=self.number // self.in_a_second)
        id_ = str(uuid.uuid4())
        thing |= {f"{_singular(kind)}_id": id_, "created_at": created.isoformat().replace("+00:00", "Z")}
        if kind == "recurring_runs":
            thing["status"] = "DISABLED" if thing.get("mode") == "DISABLE" else "ENABLED"
        if kind == "runs":
            thing["state"] = "PENDING"
        self.kinds[kind][id_] = json.loads(json.dumps(thing), parse_int=float) if "runs" in kind else thing
        return self.kinds[kind][id_]

    @contextmanager
    def running(self) -> Iterator[str]:
        """Its URL."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _meaning(operation: Operation) -> tuple[str, str]:
    """list, create, upload, get or delete, and of what."""
    if operation.form:
        return "upload", "pipelines"
    verb = next(verb for verb in ("list", "create", "get", "delete") if f"_{verb}_" in operation.name)
    kind = operation.name.split(f"_service_{verb}_", 1)[1]
    return verb, kind if kind.endswith("s") else f"{kind}s"


def _singular(kind: str) -> str:
    return kind.removesuffix("s")


def _fits(thing: Document, at: dict[str, str], query: dict[str, str]) -> bool:
    wanted = {**at, **{key: query[key] for key in ("namespace", "experiment_id") if key in query}}
    named = [p["string_value"] for p in json.loads(query.get("filter", '{"predicates": []}'))["predicates"]]
    return all(thing.get(key) == value for key, value in wanted.items()) and named in ([], [thing["display_name"]])


def _handler(stub: Stub) -> type[BaseHTTPRequestHandler]:  # noqa: C901 - one class
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = dict(parse_qsl(parts.query, keep_blank_values=True))
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._send(401, refusal(16, "User identity is empty in the request header."))
                return
            if found := LOG.fullmatch(parts.path):
                self._log(found[2])
                return
            for operation in operations():
                at = operation.match(parts.path)
                if operation.method == self.command and at is not None:
                    self._operate(operation, at, query, data)
                    return
            stub.mistakes.append(f"{self.command} {parts.path}: no operation of the OpenAPI")
            self._send(404, "404 page not found")

        def do_POST(self) -> None:
            self.do_GET()

        def do_DELETE(self) -> None:
            self.do_GET()

        def _operate(self, operation: Operation, at: dict[str, str], query: dict[str, str], data: bytes) -> None:
            stub.asked.append(operation.name)
            fault = stub.fault(operation.name)
            if fault is not None:
                time.sleep(fault.delay)
                if fault.status:
                    self._send(fault.status, fault.body, fault.headers)
                return
            try:
                check_query(operation, query)
                body = self._body(operation, data)
                stub.before(operation.name)
                answer = stub.answer(operation, at, query, body)
                check(answer, operation.answer, operation.answer)
                self._send(200, json.dumps(answer))
            except (MistakeError, KeyError, ValueError) as error:
                stub.mistakes.append(f"{operation.name}: {error!r}")
                self._send(400, refusal(3, str(error)))
            except RefusedError as error:
                status, code, message = error.args
                self._send(status, refusal(code, message))

        def _body(self, operation: Operation, data: bytes) -> Any:
            if operation.form:
                boundary = self.headers["Content-Type"].split("boundary=")[1].encode()
                (part,) = data.split(b"--" + boundary)[1:-1]
                head, file = part.split(b"\r\n\r\n", 1)
                if b'name="uploadfile"' not in head:
                    raise MistakeError("no uploadfile")
                return next(yaml.load_all(file.removesuffix(b"\r\n"), Loader=yaml.CSafeLoader))
            if operation.body is None:
                if data not in (b"", b"{}"):
                    raise MistakeError(f"a body where none belongs: {data[:100]!r}")
                return None
            body = json.loads(data)
            check(body, operation.body, operation.body)
            return body

        def _log(self, pod: str) -> None:
            text = stub.logs.get(pod)
            self._send(404, "404 page not found") if text is None else self._send(200, text)

        def _send(self, status: int, body: str | bytes, headers: dict[str, str] | None = None) -> None:
            data = body.encode() if isinstance(body, str) else body
            self.send_response(status)
            for key, value in {
                "Content-Length": str(len(data)),
                "Content-Type": "application/json",
                **(headers or {}),
            }.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None: ...

    return Handler
