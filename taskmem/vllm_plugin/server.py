"""vLLM as the policy's server: what it is started with, and one process watched from its start to its end."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from taskmem.config import Profile
from taskmem.endpoint.media import server_flags
from taskmem.errors import UserError
from taskmem.files import canonical_json
from taskmem.policy.exported import Export, read_export
from taskmem.processes import answers, end_with_parent

NAME = "policy"
TEXT_TOKENS = 4096  # instruction, memories and task prompt of a context, at most
LOOKED_AFTER_SECONDS = 0.5
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STDERR = 2
# on a CPU: vLLM would take nine tenths of the memory, and bind threads to cores that others use too
UNLESS_SET = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
ALWAYS = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    # custom logits processors and the steer layer are written for the first of vLLM's two model runners
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True)
class Serving:
    """An exported policy on an address: steered after `layer` (from 0), by vectors of norm `max_norm` at most.

    `slots` adapters are used at once and `kept` are in memory; `more` are words for vLLM, which come last.
    """

    policy: Path
    host: str
    port: int
    layer: int
    max_norm: float
    slots: int
    kept: int
    more: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """Where a client on this machine finds it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def check_serving(serving: Serving) -> Export:
    """What export.json says; UserError if the folder is no exported policy, lacks the layer, or the address is taken."""
    export = read_export(serving.policy)
    if not 0 <= serving.layer < export.layers:
        raise UserError(
            f"--layer {serving.layer}: {serving.policy} has decoder layers 0 to {export.layers - 1}; choose the one that its "
            "adapters are trained after"
        )
    try:
        family, *_, address = socket.getaddrinfo(serving.host, serving.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{serving.host}:{serving.port}: cannot be served on ({reason}); give another --port") from None
    return export


def vllm_words(serving: Serving, profile: Profile, digest: str) -> list[str]:
    """The words after `vllm serve`: adapters, the shared draw, and video as the profile's clips are; `digest` is the policy's."""
    server = profile.calls.policy if profile.calls else None
    media: Literal["mp4", "frames"] = "frames" if server is not None and server.media == "frames" else "mp4"
    window = profile.policy.window
    flags: dict[str, Any] = {
        "--host": serving.host,
        "--port": serving.port,
        "--lora-target-modules": "steer",
        "--max-lora-rank": 1,
        "--max-loras": serving.slots,
        "--max-cpu-loras": serving.kept,
        "--additional-config": {"steer_layer": serving.layer, "steer_max_norm": serving.max_norm},
        "--logits-processors": "taskmem.vllm_plugin.draw:SharedDraw",
        "--limit-mm-per-prompt": {"image": 0, "video": window},
    }
    if server is not None:
        longest = window * server.media_tokens + TEXT_TOKENS + profile.policy.max_completion_tokens
        flags["--max-model-len"] = longest
    # the second name says which policy it is, to whoever asks by network alone
    words = [str(serving.policy), "--enable-lora", "--served-model-name", NAME, f"sha256:{digest}"]
    for flag, value in flags.items():
        words += [flag, canonical_json(value) if isinstance(value, dict) else str(value)]
    return [*words, *server_flags(media, profile.video.fps), *serving.more]


def vllm_environment(given: Mapping[str, str]) -> dict[str, str]:
    """The environment to start vLLM in: `given`, less what would change how it serves."""
    environment = {**UNLESS_SET, **given, **ALWAYS}
    if "VLLM_PLUGINS" in given:
        # a list without ours would start a server that takes no adapter
        environment["VLLM_PLUGINS"] = ",".join(dict.fromkeys([*given["VLLM_PLUGINS"].split(","), "taskmem"]))
    return environment


def run_server(words: Sequence[str], environment: Mapping[str, str], url: str, ready: Callable[[], None]) -> int:
    """Start a server, call `ready` once `url`/health answers, and wait for its end; its exit code, 128 + n after a signal n.

    What it prints goes to stderr. SIGTERM, SIGINT and SIGHUP go to it. An end that nobody asked for is never code 0. Nothing
    of it is left running, and it ends if this process is killed.
    """
    asked: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: object) -> None:
        asked.append(number)
        for process in running:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in PASSED_ON}
    try:
        # a session of its own: a terminal's Ctrl-C reaches it once, through here
        process = subprocess.Popen(
            words, env=environment, stdout=STDERR, start_new_session=True, preexec_fn=end_with_parent
        )
        running.append(process)
        for number in asked:
            process.send_signal(number)
        code = _watched(process, url, ready)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if code < 0:
        return 128 - code
    return code if asked else code or 1


def _watched(process: subprocess.Popen[bytes], url: str, ready: Callable[[], None]) -> int:
    while process.poll() is None:
        if answers(f"{url}/health"):
            ready()
            return process.wait()
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOKED_AFTER_SECONDS)
    return process.wait()
