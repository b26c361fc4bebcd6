"""Real vLLM: in this process, and as a server of its own. Imported only where it is installed."""

# ruff: noqa: PLC0415 - the environment is set before vLLM is imported

import base64
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from plugin_parts import BOUND, LAYER

SETTINGS = {"steer_layer": LAYER, "steer_max_norm": BOUND}
SHARED_DRAW = "taskmem.vllm_plugin.draw:SharedDraw"
QUIET = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}
BASE = "policy"


@dataclass(frozen=True)
class Reply:
    """What was written, and the log-probability of each token."""

    tokens: tuple[int, ...]
    logps: tuple[float, ...] = field(compare=False)


class Engine:
    """vLLM in this process."""

    def __init__(self, policy: Path, **settings: Any) -> None:
        os.environ.update(QUIET, VLLM_ENABLE_V1_MULTIPROCESSING="0")
        import vllm
        from vllm.lora.request import LoRARequest

        self._vllm, self._lora = vllm, LoRARequest
        self._requests: dict[str | None, Any] = {None: None}
        chosen = {"enforce_eager": True, "additional_config": SETTINGS, "max_loras": 4, "max_cpu_loras": 8}
        self.llm = vllm.LLM(
            model=str(policy),
            dtype="float32",
            max_model_len=1024,
            max_num_seqs=32,
            limit_mm_per_prompt={"image": 0, "video": 3},
            distributed_executor_backend="uni",
            enable_lora=True,
            lora_target_modules=["steer"],
            max_lora_rank=1,
            logits_processors=[SHARED_DRAW],
            **{**chosen, **settings},
        )

    def load(self, name: str, folder: Path, number: int | None = None, in_place: bool = False) -> None:
        request = self._lora(name, number or len(self._requests), str(folder), load_inplace=in_place)
        self.llm.llm_engine.add_lora(request)
        self._requests[name] = request

    def write(self, asks: Sequence[tuple[Any, str | None]], longest: int = 40) -> list[Reply]:
        """The replies to (prompt, adapter) pairs, all in one batch; greedy."""
        greedy = {"temperature": 0, "max_tokens": longest, "logprobs": 0}
        return [self._reply(output) for (output,) in self._generated([(*ask, greedy) for ask in asks])]

    def read(self, prompt: Any) -> list[int]:
        """A prompt's token ids, as vLLM reads it."""
        (output,) = self.llm.generate([prompt], self._vllm.SamplingParams(max_tokens=1), use_tqdm=False)
        ids: list[int] = output.prompt_token_ids
        return ids

    def sample(self, asks: Sequence[tuple[Any, str | None, dict[str, Any]]]) -> list[list[tuple[int, ...]]]:
        """The `n` completions of each (prompt, adapter, sampling parameters), all in one batch."""
        return [[tuple(output.token_ids) for output in outputs] for outputs in self._generated(asks)]

    def _generated(self, asks: Sequence[tuple[Any, str | None, dict[str, Any]]]) -> list[list[Any]]:
        outputs = self.llm.generate(
            [prompt for prompt, _, _ in asks],
            [self._vllm.SamplingParams(**sampling) for _, _, sampling in asks],
            lora_request=[self._requests[adapter] for _, adapter, _ in asks],
            use_tqdm=False,
        )
        return [output.outputs for output in outputs]

    @staticmethod
    def _reply(written: Any) -> Reply:
        chosen = [step[token].logprob for step, token in zip(written.logprobs, written.token_ids, strict=True)]
        return Reply(tuple(written.token_ids), tuple(chosen))

    @property
    def runner(self) -> Any:
        """The model runner, for a look inside."""
        return self.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner


class Server:
    """`taskmem serve policy` as a process of its own; ends with the block."""

    def __init__(
        self, policy: Path, log: Path, slots: int, kept: int, port: int = 18437, more: Sequence[str] = ()
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        ours = {"--port": port, "--layer": LAYER, "--max-norm": BOUND, "--slots": slots, "--kept": kept}
        vllm = {"--dtype": "float32", "--max-model-len": 1024, "--max-num-seqs": 32, "--max-num-batched-tokens": 2048}
        words = [str(word) for pair in (*ours.items(), ("--", "--enforce-eager"), *vllm.items()) for word in pair]
        with log.open("a") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.cli", "serve", "policy", str(policy), *words, *more],
                env={**os.environ, **QUIET, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        for _ in range(600):
            if self._process.poll() is not None:
                raise RuntimeError(
                    f"taskmem serve policy ended with {self._process.returncode}: {self._log.read_text()[-2000:]}"
                )
            try:
                self.get("/health")
                return self
            except OSError:
                time.sleep(0.5)
        raise RuntimeError(f"taskmem serve policy is not up after five minutes: {self._log.read_text()[-2000:]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=5) as answer:
            return str(answer.read().decode())

    def _request(self, path: str, body: Any) -> urllib.request.Request:
        return urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def post(self, path: str, body: Any) -> tuple[int, str]:
        """Status and body of the answer, whatever it is."""
        try:
            with urllib.request.urlopen(self._request(path, body), timeout=300) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def load(self, name: str, folder: Path, **more: Any) -> tuple[int, str]:
        return self.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder), **more})

    def unload(self, name: str) -> tuple[int, str]:
        return self.post("/v1/unload_lora_adapter", {"lora_name": name})

    def chat(self, adapter: str | None, messages: list[Any], longest: int = 40) -> dict[str, Any]:
        """The first choice, with `token_ids`, and the prompt's `prompt_token_ids`."""
        ask = {"model": adapter or BASE, "messages": messages, "max_tokens": longest, "temperature": 0}
        status, text = self.post("/v1/chat/completions", {**ask, "return_token_ids": True})
        assert status == 200, text
        answer = json.loads(text)
        return {**answer["choices"][0], "prompt_token_ids": answer["prompt_token_ids"]}

    def tokens(self, adapter: str | None, messages: list[Any]) -> list[int]:
        tokens: list[int] = self.chat(adapter, messages)["token_ids"]
        return tokens

    def stream(self, adapter: str | None, messages: list[Any], longest: int) -> Iterator[tuple[float, list[int]]]:
        """When each piece of a reply came, and its tokens; as many as asked for."""
        ask = {"model": adapter or BASE, "messages": messages, "max_tokens": longest, "temperature": 0}
        body = {**ask, "stream": True, "ignore_eos": True, "return_token_ids": True}
        with urllib.request.urlopen(self._request("/v1/chat/completions", body), timeout=300) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        yield time.monotonic(), choice.get("token_ids") or []


def at_once(count: int) -> ThreadPoolExecutor:
    """So many clients."""
    return ThreadPoolExecutor(count)


def with_clips(messages: list[Any], clips: Sequence[Path]) -> list[Any]:
    """Rendered messages as the API takes them: each video part the mp4 file itself, as a data URL."""
    left = iter(clips)

    def part(content: dict[str, Any]) -> dict[str, Any]:
        if content["type"] != "video":
            return content
        data = base64.b64encode(next(left).read_bytes()).decode()
        return {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}

    return [{**message, "content": [part(content) for content in message["content"]]} for message in messages]
