"""What does loading an adapter cost those who are being served?

    make bench-hot-loads        about five minutes on two cores

`taskmem serve policy` in float32 on a CPU, on the random model of 24 layers and on the shipped miniature. Two sides by turns,
seven times: 16 streams with 16 different adapters, each writing 96 tokens, and the same while 20 more adapters are loaded one
after the other. Every stream must end whole and with the same tokens on both sides, and every load must be taken, or the
benchmark fails. A load's time is that of its request; a gap is the time between two pieces of a stream, as its client sees it.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx2
import typer
from rich.console import Console

from benchmarks.results import write_result
from benchmarks.serving import ADAPTERS, DEEP, LAYERS, LENGTH, MINIATURE, ROUNDS, deep_policy, save_adapters
from taskmem.cli import shipped_base
from taskmem.policy.export import export_policy
from taskmem.policy.transformers_policy import policy_digest

LOADS, HEAD_START = 20, 0.3
QUIET, LOADING = "quiet", "loading"
Stream = tuple[list[int], list[float]]
console = Console(width=140)


@contextmanager
def served(policy: Path, layer: int, log: Path) -> Iterator[str]:
    """The policy's server; its URL."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = ["--port", str(port), "--layer", str(layer), "--max-norm", "8", "--slots", str(ADAPTERS + LOADS)]
    vllm = ["--dtype", "float32", "--max-model-len", "1024", "--enforce-eager"]
    command = [sys.executable, "-m", "pipelines.cli", "serve", "policy", str(policy), *words, "--", *vllm]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=dict(os.environ))
    try:
        assert process.stdout is not None
        if not any(line.startswith("http://") for line in iter(process.stdout.readline, "")):
            raise SystemExit(f"taskmem serve policy did not start:\n{log.read_text()[-3000:]}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


async def write(client: httpx2.AsyncClient, adapter: str, words: int) -> Stream:
    """One stream: its tokens, and the seconds between its pieces."""
    ask = {
        "model": adapter,
        "messages": [{"role": "user", "content": "red figure in the kitchen " * words}],
        "max_tokens": LENGTH,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "return_token_ids": True,
    }
    tokens: list[int] = []
    times: list[float] = []
    async with client.stream("POST", "/v1/chat/completions", json=ask) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    tokens += choice.get("token_ids") or []
                    times.append(time.perf_counter())
    return tokens, [b - a for a, b in pairwise(times)]


async def load(client: httpx2.AsyncClient, name: str, folder: Path) -> float:
    """The seconds that one load took."""
    start = time.perf_counter()
    reply = await client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder)})
    reply.raise_for_status()
    return time.perf_counter() - start


async def side(
    client: httpx2.AsyncClient, names: Sequence[str], hot: dict[str, Path]
) -> tuple[list[Stream], list[float]]:
    """All streams side by side, and the loads among them one after the other."""

    async def loads() -> list[float]:
        await asyncio.sleep(HEAD_START)
        return [await load(client, name, folder) for name, folder in hot.items()]

    streams = asyncio.gather(*(write(client, name, 2 + number % 5) for number, name in enumerate(names)))
    written, took = await asyncio.gather(streams, loads())
    return written, took


async def alternate(url: str, adapters: Sequence[Path]) -> dict[str, Any]:
    """Seven rounds of both sides: the gaps of each, and what every load took."""
    gaps: dict[str, list[float]] = {QUIET: [], LOADING: []}
    took: list[float] = []
    written: list[list[int]] = []
    limits = httpx2.Limits(max_connections=ADAPTERS + 1)
    async with httpx2.AsyncClient(base_url=url, timeout=600.0, limits=limits, trust_env=False) as client:
        names = [f"env{number}@v1" for number in range(ADAPTERS)]
        for name, folder in zip(names, adapters, strict=True):
            await load(client, name, folder)
        for number in range(ROUNDS + 1):
            for which in (QUIET, LOADING) if number % 2 else (LOADING, QUIET):
                count = LOADS if which == LOADING else 0
                hot = {f"hot{number}-{i}@v1": adapters[i % ADAPTERS] for i in range(count)}
                streams, loads = await side(client, names, hot)
                tokens = [tokens for tokens, _ in streams]
                written = written or tokens
                if tokens != written or {len(of) for of in tokens} != {LENGTH}:
                    raise SystemExit(f"round {number}, {which}: a stream wrote other tokens")
                if number:  # the first round warms up
                    gaps[which] += [gap for _, between in streams for gap in between]
                    took += loads
    return {"gaps": gaps, "took": took}


def summed_up(model: str, measured: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """Sides and ratio of a model for the result file, in milliseconds; those of 24 layers have no suffix."""
    suffix = "" if model == DEEP else f"_{model}"
    p99 = {name: quantiles(gaps, n=100)[98] * 1e3 for name, gaps in measured["gaps"].items()}
    sides: dict[str, Any] = {
        f"{name}{suffix}": {"p99_gap_ms": p99[name], "median_gap_ms": median(gaps) * 1e3, "gaps": len(gaps)}
        for name, gaps in measured["gaps"].items()
    }
    took = [seconds * 1e3 for seconds in measured["took"]]
    sides[f"{LOADING}{suffix}"] |= {"median_load_ms": median(took), "longest_load_ms": max(took), "loads": len(took)}
    return sides, {f"p99_gap_loading_over_quiet{suffix}": p99[LOADING] / p99[QUIET]}


def main() -> None:
    """Measure, print and write benchmarks/results/hot_loads.json."""
    before = os.getloadavg()[0]
    sides: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    for model in (DEEP, MINIATURE):
        console.print(f"{model}, {ROUNDS} rounds", highlight=False)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            base = shipped_base() if model == MINIATURE else deep_policy(folder / "base")
            digest = policy_digest(base)
            export_policy(base, digest, folder / "policy", None)
            adapters = save_adapters(base, digest, LAYERS[model], folder / "adapters")
            with served(folder / "policy", LAYERS[model], folder / "log") as url:
                of_model = summed_up(model, asyncio.run(alternate(url, adapters)))
        sides |= of_model[0]
        ratios |= of_model[1]
    settings = {"streams": ADAPTERS, "tokens": LENGTH, "loads": LOADS, "rounds": ROUNDS}
    path = write_result("hot_loads", {**settings, "load": [before, os.getloadavg()[0]]}, sides, ratios)
    for name, figures in sides.items():
        console.print(f"{name}: {', '.join(f'{key} {value:.4g}' for key, value in figures.items())}", highlight=False)
    console.print(f"{path}", highlight=False)
    for name, ratio in ratios.items():
        console.print(f"{name} {ratio:.3f}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
