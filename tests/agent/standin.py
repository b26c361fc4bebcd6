"""What stands behind the agent in tests, over real HTTP: a gateway that answers as a test says, or as the shipped policy does."""

import base64
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from loopback import chat

from taskmem.cli import shipped_base
from taskmem.config import load_profile
from taskmem.endpoint.client import SERVED_POLICY
from taskmem.files import sha256_bytes
from taskmem.policy.completion import SEED_ARGUMENT
from taskmem.policy.encoding import PromptEncoder
from taskmem.policy.grammar import completion_for
from taskmem.policy.http import Vocabulary
from taskmem.policy.packing import sample_groups
from taskmem.policy.transformers_policy import load_checkpoint, prepare_process
from taskmem.records import Context, Segment
from taskmem.video.frames import frames_in

PROFILE = load_profile("miniature")
Body = dict[str, Any]
Writes = Callable[[Body], tuple[list[int], list[int]]]
"""Token ids of the prompt and of the completion for a request."""


class Scripted:
    """Writes text that tells what the request showed: the digest of its videos, and of the memories before."""

    def __init__(self) -> None:
        self._vocabulary = Vocabulary.load(shipped_base())

    def __call__(self, body: Body) -> tuple[list[int], list[int]]:
        parts = body["messages"][0]["content"]
        videos = sum(part["type"] == "video_url" for part in parts)
        shown = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
        tokenizer = self._vocabulary.tokenizer
        said = tokenizer(completion_for(f"{videos} {' '.join(shown)}"), add_special_tokens=False).input_ids
        stamp = tokenizer("<2.5 seconds>", add_special_tokens=False).input_ids
        return [*stamp, self._vocabulary.video] * videos, [*said, tokenizer.eos_token_id]


class Shipped:
    """Writes what the shipped base policy does in this process for the same context and seed."""

    def __init__(self) -> None:
        prepare_process()
        self._model, processor = load_checkpoint(shipped_base())
        self._clips: dict[str, bytes] = {}
        limits = PROFILE.video.limits
        self._encoder = PromptEncoder(processor, PROFILE.policy, lambda s: frames_in(self._clips[s.sha256], limits))
        self._lock = threading.Lock()

    def __call__(self, body: Body) -> tuple[list[int], list[int]]:
        clips = [
            base64.b64decode(part["video_url"]["url"].partition(",")[2])
            for part in body["messages"][0]["content"]
            if part["type"] == "video_url"
        ]
        messages = [
            {
                **message,
                "content": [
                    {"type": "video", "video": "clip"} if part["type"] == "video_url" else part
                    for part in message["content"]
                ],
            }
            for message in body["messages"]
        ]
        with self._lock:
            self._clips |= {sha256_bytes(clip): clip for clip in clips}
            context = Context(segments=tuple(_segment(number, clip) for number, clip in enumerate(clips)))
            prompt = self._encoder.encode(context, messages)
            seed = body["vllm_xargs"][SEED_ARGUMENT]
            ((tokens,),) = sample_groups(self._model, self._encoder, [prompt], 1, [seed])
        return list(prompt.ids), list(tokens)


def _segment(number: int, clip: bytes) -> Segment:
    return Segment(
        stream="shown",
        index=number,
        start_s=float(number),
        end_s=number + 1.0,
        source="shown",
        clip=f"{number}.mp4",
        fps=PROFILE.video.fps,
        width=64,
        height=64,
        sha256=sha256_bytes(clip),
    )


class Gateway:
    """A gateway on loopback for the length of a block; `served` says which model's name each environment has now."""

    def __init__(self, writes: Writes, served: Callable[[str], str] = lambda _: "policy", port: int = 0) -> None:
        self.writes, self.served = writes, served
        self.status, self.delay, self.policy = 200, 0.0, ""
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.asked: Counter[str] = Counter()  # by x-taskmem-memories
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reply(self, body: Body, headers: dict[str, str]) -> Body:
        with self._lock:
            self.bodies.append(body)
            self.headers.append(headers)
            self.asked[headers.get("x-taskmem-memories", "")] += 1
        time.sleep(self.delay)
        prompt, tokens = self.writes(body)
        reply = chat("not read", token_ids=tokens)
        return {**reply, "model": self.served(body["model"]), "prompt_token_ids": prompt}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                name = self.path.rpartition("/")[2]
                self._send({"id": name, "object": "model", "root": outer.served(name)}, outer.status)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                reply = outer.reply(body, headers) if outer.status == 200 else {"error": {"message": "no"}}
                self._send(reply, outer.status)

            def _send(self, value: Body, status: int) -> None:
                data = json.dumps(value).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    if outer.policy:
                        self.send_header(SERVED_POLICY, outer.policy)
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler
