"""A server that speaks the part of vLLM's API that the gateway uses, and does what a test says; the real one: test_serving_*."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

WORDS = 5


class Upstream:
    """`adapters` are loaded now; the counters say what was asked for. A reply's text names the model that wrote it."""

    def __init__(self, root: Path) -> None:
        self.root, self.names = root, ["base"]
        self.adapters: dict[str, str] = {}
        self.loads: Counter[str] = Counter()
        self.unloads: Counter[str] = Counter()
        self.asked: list[dict[str, Any]] = []
        self.refused: dict[str, str] = {}
        self.load_seconds = self.word_seconds = self.first_seconds = 0.0
        self.status: int | None = None  # of completions, if not 200
        self.answer: dict[str, Any] = {}  # laid over a reply
        self.breaks_after: int | None = None  # words of a stream
        self.fails: int | None = None  # the code of an error that a stream begins with
        self.words = WORDS  # of a stream
        self.slips = 0  # completions that fail inside, a stream's behind the event that names the speaker
        self.in_flight = self.most_in_flight = self.gone = 0
        self.app = Starlette(
            routes=[
                Route("/v1/models", self.models),
                Route("/v1/load_lora_adapter", self.load, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self.unload, methods=["POST"]),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
            ]
        )

    async def models(self, request: Request) -> Response:
        base = [{"id": name, "object": "model", "root": str(self.root), "parent": None} for name in self.names]
        loaded = [
            {"id": name, "object": "model", "root": path, "parent": self.names[0]}
            for name, path in self.adapters.items()
        ]
        return JSONResponse({"object": "list", "data": [*base, *loaded]})

    async def load(self, request: Request) -> Response:
        asked = await request.json()
        name, path = asked["lora_name"], asked["lora_path"]
        self.loads[name] += 1
        await asyncio.sleep(self.load_seconds)
        if name in self.adapters:
            return error(400, f"The lora adapter '{name}' has already been loaded. If you want ...")
        if name in self.refused:
            return error(500, f"{path}: {self.refused[name]}")
        assert sorted(one.name for one in Path(path).iterdir()) == [
            "adapter_config.json",
            "adapter_model.safetensors",
            "manifest.json",
            "training.json",
        ]
        self.adapters[name] = path
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        self.unloads[name] += 1
        if self.adapters.pop(name, None) is None:
            return error(404, f"The lora adapter '{name}' cannot be found.")
        return PlainTextResponse("Success")

    async def chat(self, request: Request) -> Response:
        asked = await request.json()
        self.asked.append({**asked, "x-request-id": request.headers.get("x-request-id")})
        model = asked["model"]
        if model not in (*self.names, *self.adapters):
            return error(404, f"The model `{model}` does not exist. Valid aliases: {', '.join(self.names)}.")
        if self.status is not None:
            return error(self.status, "the server's own words")
        said = model if model in self.adapters else self.names[0]
        slips, self.slips = self.slips > 0, max(self.slips - 1, 0)
        if asked.get("stream"):
            return StreamingResponse(self._slip(said) if slips else self._stream(said), media_type="text/event-stream")
        if slips:
            return error(500, "an internal error")
        self._begin()
        try:
            end = asyncio.get_running_loop().time() + self.first_seconds
            while asyncio.get_running_loop().time() < end:
                if await request.is_disconnected():
                    self.gone += 1
                    return Response()
                await asyncio.sleep(0.01)
            words = "".join(f"{said} {number}; " for number in range(WORDS))
            choice = {"index": 0, "message": {"role": "assistant", "content": words}, "finish_reason": "stop"}
            reply = {"id": f"chatcmpl-{request.headers['x-request-id']}", "object": "chat.completion", "created": 1}
            return JSONResponse({**reply, "model": said, "choices": [choice], **self.answer})
        finally:
            self.in_flight -= 1

    def _begin(self) -> None:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    async def _stream(self, model: str) -> AsyncIterator[bytes]:
        self._begin()
        whole = False
        try:
            await asyncio.sleep(self.first_seconds)
            if self.fails is not None:
                yield event(told(self.fails, "the server's own words"))
            for number in range(self.words if self.fails is None else 0):
                if number == self.breaks_after:
                    raise RuntimeError("the engine died")
                yield event({**chunk(model, content=f"{model} {number}; "), **self.answer})
                await asyncio.sleep(self.word_seconds)
            yield b"data: [DONE]\n\n"
            whole = True
        finally:
            self.gone += not whole
            self.in_flight -= 1

    async def _slip(self, model: str) -> AsyncIterator[bytes]:
        yield event(chunk(model, role="assistant", content=""))
        yield event(told(500, "an internal error"))
        yield b"data: [DONE]\n\n"


def chunk(model: str, **delta: str) -> dict[str, Any]:
    """vLLM's shape of a piece of a stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}


def event(said: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(said, ensure_ascii=False).encode() + b"\n\n"


def told(status: int, message: str) -> dict[str, Any]:
    """vLLM's shape of an error."""
    return {"error": {"message": message, "type": "X", "param": None, "code": status}}


def error(status: int, message: str) -> Response:
    return JSONResponse(told(status, message), status)
