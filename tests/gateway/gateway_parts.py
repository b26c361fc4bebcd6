"""A gateway on loopback with a store of two environments, and its callers."""

import json
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import httpx2
from registry_parts import POLICY, promote, publish_light, write_adapter
from service_parts import LogLines, Running
from upstream import WORDS, Upstream

from taskmem.config import load_profile
from taskmem.gateway.app import gateway_app
from taskmem.gateway.gateway import Gateway
from taskmem.gateway.responses import ResponseLog
from taskmem.gateway.settings import GatewaySettings
from taskmem.gateway.tokens import create_token
from taskmem.records import Response, read_records
from taskmem.registry import champion
from taskmem.store import LocalStore

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
QUICK: dict[str, Any] = {"champion_seconds": 0.0, "token_seconds": 0.0, "watch_seconds": 0.2, "refused_seconds": 0.3}
HELLO = [{"role": "user", "content": "hello"}]


class Site:
    """Use it in `with`; `door` has v1 and v2, v2 its champion, `shop` v1 as champion, `new` none."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root = root
        self.settings = GatewaySettings.model_validate({**QUICK, **settings})
        self.store = LocalStore(root / "store")
        for environment, content in (("door", 1), ("door", 2), ("shop", 3)):
            self.publish(environment, content)
        self.promote("door", "v2")
        self.promote("shop", "v1")
        self.tokens = {name: create_token(self.store, name, "Ada", NOW) for name in ("door", "shop", "new")}
        self.log = LogLines()
        export(root / "policy", POLICY)
        self.upstream = Upstream(root / "policy")

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.server = stack.enter_context(Running(self.upstream.app))
            self.gateway = Gateway(
                self.store,
                self.server.url,
                self.root / "adapters",
                ResponseLog(self.root / "responses", "test"),
                self.settings,
                self.log.log("gateway"),
                "sha256:image",
                load_profile("miniature"),
                lambda: NOW,
            )
            self.running = stack.enter_context(Running(gateway_app(self.gateway), self.settings.limits))
            self.client = stack.enter_context(httpx2.Client(base_url=self.running.url, trust_env=False, timeout=20))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def publish(self, environment: str, content: int, **changes: Any) -> str:
        folder = self.root / "made" / f"{environment}-{content}"
        policy = changes.get("policy", POLICY)
        return publish_light(self.store, write_adapter(folder, content, policy), environment, **changes).version

    def promote(self, environment: str, version: str) -> None:
        promote(self.store, environment, version, champion(self.store, environment), time=NOW)

    def headers(self, environment: str, **more: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[environment]}", **more}

    def chat(self, environment: str, model: str | None = None, headers: Any = None, **body: Any) -> httpx2.Response:
        sent = {"model": model or environment, "messages": HELLO, **body}
        return self.client.post(
            "/v1/chat/completions", json=sent, headers={**self.headers(environment), **(headers or {})}
        )

    @property
    def responses(self) -> list[Response]:
        path = self.root / "responses" / "responses-test.jsonl"
        return read_records(path, Response) if path.exists() else []

    def sample(self, name: str, **labels: str) -> float | None:
        for registry in (self.gateway.metrics.registry, self.gateway.metrics.named):
            if (value := registry.get_sample_value(name, labels)) is not None:
                return value
        return None


def export(folder: Path, policy: str) -> None:
    """What the gateway reads of an exported policy."""
    folder.mkdir(exist_ok=True)
    told = {"policy": policy, "layers": 4, "hidden_size": 8, "transposed": 0, "files": {}, "checked": None}
    (folder / "export.json").write_text(json.dumps({"schema_version": 1, **told}))


def text(reply: httpx2.Response) -> str:
    """What was written, whole or as a stream."""
    if not reply.headers["content-type"].startswith("text/event-stream"):
        return str(reply.json()["choices"][0]["message"]["content"])
    return "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks(reply) if "choices" in chunk)


def chunks(reply: httpx2.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in reply.text.split("\n") if line.startswith("data: {")]


def written_by(model: str) -> str:
    return "".join(f"{model} {number}; " for number in range(WORDS))
