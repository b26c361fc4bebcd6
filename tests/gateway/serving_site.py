"""A gateway before real vLLM: the shipped base policy, adapters of it, and requests that show real clips."""

# ruff: noqa: PLC0415 - torch and vLLM are wanted by the tests marked `serving` alone

import json
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx2
from gateway_parts import NOW, QUICK
from plugin_parts import AdapterPress, drawn
from registry_parts import promote, provenance
from service_parts import LogLines, Running, free_port

from taskmem.config import WorldSettings, load_profile
from taskmem.gateway.app import gateway_app
from taskmem.gateway.gateway import Gateway
from taskmem.gateway.responses import ResponseLog
from taskmem.gateway.settings import GatewaySettings
from taskmem.gateway.tokens import create_token
from taskmem.records import Response, read_records
from taskmem.registry import champion, publish
from taskmem.store import LocalStore

LONGEST = 40
NORM = 7.5


@dataclass
class Policy:
    """What is made once: the exported policy, its digest, a press for adapters, and the messages of some contexts."""

    exported: Path
    digest: str
    press: AdapterPress
    messages: list[list[dict[str, Any]]]

    @classmethod
    def make(cls, root: Path) -> Self:
        import torch
        from serving_parts import with_clips

        from taskmem.cli import shipped_base
        from taskmem.policy.export import export_policy
        from taskmem.policy.renderer import render
        from taskmem.policy.stream import by_stream, window_context
        from taskmem.policy.transformers_policy import load_checkpoint, policy_digest
        from taskmem.stages.common import footage
        from taskmem.stages.segmentation import segmentation
        from taskmem.world.splits import render_split

        torch.set_num_threads(1)
        base, profile = shipped_base(), load_profile("miniature")
        digest = policy_digest(base)
        export_policy(base, digest, root / "policy", None)
        sizes = WorldSettings(stream_segments=4, phase_one=1, deployment=2, development=1, held_out=1)
        render_split(root / "world", "deployment", sizes, seed=0)
        segmentation(root / "world" / "videos", profile, root / "film")
        memories = {index: f"red figure in the kitchen, holding the cup; {index} lamps" for index in range(9)}
        messages = []
        for stream in by_stream(footage(root / "film", profile).segments).values():
            for position in range(len(stream)):
                context = window_context(stream, memories, position, profile.policy.window)
                clips = [root / "film" / segment.clip for segment in context.segments]
                messages.append(with_clips(render(context, profile.policy), clips))
        press = AdapterPress(load_checkpoint(base, torch.float32)[0], digest)
        return cls(root / "policy", digest, press, messages)


class RealServer:
    """A store, and real vLLM on a port of its own; use it in `with`."""

    def __init__(self, root: Path, policy: Policy) -> None:
        self.root, self.policy = root, policy
        self.store = LocalStore(root / "store")
        self.tokens: dict[str, str] = {}
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start_again()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__(None, None, None)

    def kill(self) -> None:
        """kill -9 of vLLM itself, and wait until all of it is gone."""
        watcher = self.server._process
        (vllm,) = Path(f"/proc/{watcher.pid}/task/{watcher.pid}/children").read_text().split()
        os.kill(int(vllm), signal.SIGKILL)
        assert watcher.wait(60) != 0

    def start_again(self) -> None:
        """vLLM on the same port, without anything it knew."""
        from serving_parts import Server

        log = self.root / "vllm.log"
        self.server = Server(self.policy.exported, log, slots=8, kept=64, port=self.port).__enter__()

    def publish(self, environment: str, seed: int, norm: float = NORM, promoted: bool = True) -> str:
        """A new version of an environment, its champion if wanted; its name."""
        from taskmem.steer import read_adapter

        folder = self.policy.press.save(self.root / "made" / f"{environment}-{seed}", drawn(seed, norm))
        (folder / "training.json").write_text(json.dumps({"steps": []}))
        made = publish(self.store, environment, folder, provenance(policy=self.policy.digest), read_adapter)
        if promoted:
            promote(self.store, environment, made.version, champion(self.store, environment), time=NOW)
        return made.name

    def token(self, environment: str) -> str:
        if environment not in self.tokens:
            self.tokens[environment] = create_token(self.store, environment, "Ada", NOW)
        return self.tokens[environment]


class RealSite(RealServer):
    """The same with a gateway in this process, and its callers."""

    def __init__(self, root: Path, policy: Policy, **settings: Any) -> None:
        super().__init__(root, policy)
        self.settings = GatewaySettings.model_validate({**QUICK, "in_flight": 32, "adapters": 32, **settings})
        self.log = LogLines()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            super().__enter__()
            stack.callback(super().__exit__)
            self.responses = ResponseLog(self.root / "responses", "test")
            folder, log = self.root / "adapters", self.log.log("gateway")
            self.gateway = Gateway(
                self.store,
                self.url,
                folder,
                self.responses,
                self.settings,
                log,
                "local",
                load_profile("miniature"),
                lambda: NOW,
            )
            self.running = stack.enter_context(Running(gateway_app(self.gateway)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ask(self, model: str, number: int, **more: Any) -> dict[str, Any]:
        """Greedy, so that the same is written each time."""
        messages = self.policy.messages[number % len(self.policy.messages)]
        fixed = {"max_tokens": LONGEST, "temperature": 0, "return_token_ids": True}
        return {"model": model, "messages": messages, **fixed, **more}

    def through(self, environment: str, number: int, url: str | None = None, **more: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.token(environment)}"}
        body = self.ask(environment, number, **more)
        with httpx2.Client(trust_env=False, timeout=300) as client:
            return client.post(f"{url or self.running.url}/v1/chat/completions", json=body, headers=headers)

    def direct(self, model: str, number: int, **more: Any) -> list[int]:
        """What vLLM writes when it is asked itself."""
        with httpx2.Client(trust_env=False, timeout=300) as client:
            reply = client.post(f"{self.url}/v1/chat/completions", json=self.ask(model, number, **more))
        assert reply.status_code == 200, reply.text
        return tokens(reply)

    @property
    def recorded(self) -> dict[str, Response]:
        return {one.id: one for one in read_records(self.responses.path, Response)}


def tokens(reply: httpx2.Response) -> list[int]:
    """The token ids of a reply, whole or streamed."""
    if reply.headers["content-type"].startswith("text/event-stream"):
        said = [json.loads(line[6:]) for line in reply.text.split("\n") if line.startswith("data: {")]
        return [token for chunk in said for choice in chunk["choices"] for token in choice.get("token_ids") or []]
    written: list[int] = reply.json()["choices"][0]["token_ids"]
    return written


Sites = Callable[..., RealSite]
