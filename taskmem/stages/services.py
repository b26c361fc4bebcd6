"""The services on this machine: the policy in vLLM, the gateway before it and the agent, each a process of its own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.processes import answers, end_with_parent
from taskmem.progress import Note, unheard
from taskmem.records import one_line, write_json

HOST = "127.0.0.1"
POLICY, GATEWAY, AGENT = "policy", "gateway", "agent"
PAUSE = 0.2  # seconds between two looks at a service that starts
GRACE = 40.0  # seconds a service has to finish its requests after it was told to stop


@dataclass(frozen=True)
class Ports:
    """Where each service listens on the loopback interface."""

    policy: int = 8000
    gateway: int = 8100
    operations: int = 8101  # the gateway's metrics
    agent: int = 8200

    @classmethod
    def free(cls) -> Self:
        """Four ports that nobody listens on now."""
        with contextlib.ExitStack() as held:
            sockets = [held.enter_context(socket.socket()) for _ in range(4)]
            for each in sockets:
                each.bind((HOST, 0))
            return cls(*(each.getsockname()[1] for each in sockets))


@dataclass(frozen=True)
class Site:
    """What is served, and where what it keeps lies.

    `policy` is a folder that `taskmem export` wrote, `python` an environment with vLLM or its interpreter, `store` the
    object store's URL. `folder` holds what they keep: adapters/, responses/, the agent's
    database, logs/ and the profile as the services read it.
    """

    policy: Path
    python: Path
    store: str
    folder: Path
    profile: Profile
    seed: int
    ports: Ports
    vllm: tuple[str, ...] = ()  # words for `vllm serve`
    image: str = "local"
    seconds: float = 300.0  # until all must be ready


@dataclass
class _Process:
    name: str
    words: Sequence[str]
    ready: str
    log: Path
    run: subprocess.Popen[bytes] | None = field(default=None)

    def start(self, environment: Mapping[str, str]) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as handle:
            self.run = subprocess.Popen(
                list(self.words),
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,  # Ctrl-C is ours to take, so that they end one after the other
                preexec_fn=end_with_parent,
            )

    def check(self) -> None:
        """UserError with the log's last line if it has ended."""
        if self.run is not None and (code := self.run.poll()) is not None:
            raise UserError(f"{self.log}: the {self.name} ended with {code} ({self.last_line()}); see the log")

    def last_line(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        return one_line(next((line for line in reversed(lines) if line.strip()), "no output"))[:300]

    def stop(self) -> None:
        if self.run is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.run.send_signal(signal.SIGTERM)
        try:
            self.run.wait(GRACE)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.run.pid, signal.SIGKILL)
            self.run.wait()
        self.run = None


class Services:
    """All three, started in the order in which they need each other and stopped in the other; works inside a `with` block."""

    def __init__(self, site: Site, note: Note = unheard) -> None:
        """`note` is told of every service that is ready."""
        self._site = site
        self._note = note
        self._processes = [self._policy(), self._gateway(), self._agent()]

    @property
    def agent_url(self) -> str:
        """Where the agent answers."""
        return f"http://{HOST}:{self._site.ports.agent}"

    @property
    def gateway_url(self) -> str:
        """Where the gateway answers."""
        return f"http://{HOST}:{self._site.ports.gateway}"

    def __enter__(self) -> Self:
        write_json(self._profile, self._site.profile.model_dump(mode="json"))
        end = time.monotonic() + self._site.seconds
        try:
            for process in self._processes:
                began = time.monotonic()
                process.start(os.environ)
                while not answers(process.ready):
                    process.check()
                    if time.monotonic() > end:
                        raise UserError(
                            f"{process.log}: the {process.name} is not ready after {self._site.seconds:g} s "
                            f"({process.last_line()}); see the log"
                        )
                    time.sleep(PAUSE)
                self._note(f"{process.name} ready after {time.monotonic() - began:.1f} s, its log is {process.log}")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def watch(self) -> None:
        """Wait until one of them ends by itself, which is a UserError."""
        while True:
            for process in self._processes:
                process.check()
            time.sleep(PAUSE)

    def _stop(self) -> None:
        for process in reversed(self._processes):
            process.stop()

    @property
    def _profile(self) -> Path:
        return self._site.folder / "profile.yaml"

    def _process(self, name: str, port: int, ready: str, words: Sequence[str], last: Sequence[str] = ()) -> _Process:
        where = ["--host", HOST, "--port", str(port)]
        command = [sys.executable, "-m", "pipelines.cli", "serve", name, *words, *where, *last]
        return _Process(name, command, f"http://{HOST}:{port}{ready}", self._site.folder / "logs" / f"{name}.log")

    def _policy(self) -> _Process:
        site = self._site
        words = [str(site.policy), "--serving", str(site.python), "--profile", str(self._profile)]
        return self._process(POLICY, site.ports.policy, "/health", words, ["--", *site.vllm] if site.vllm else [])

    def _gateway(self) -> _Process:
        site = self._site
        words = ["--policy-server", f"http://{HOST}:{site.ports.policy}", "--adapters", str(site.folder / "adapters")]
        words += ["--operations-port", str(site.ports.operations), "--profile", str(self._profile), *self._kept()]
        return self._process(GATEWAY, site.ports.gateway, "/readyz", words)

    def _agent(self) -> _Process:
        site = self._site
        database = f"sqlite:///{(site.folder / 'agent.db').absolute()}"
        words = ["--gateway", self.gateway_url, "--policy", str(site.policy), "--database", database]
        words += ["--profile", str(self._profile), "--seed", str(site.seed), *self._kept()]
        return self._process(AGENT, site.ports.agent, "/readyz", words)

    def _kept(self) -> list[str]:
        site = self._site
        return ["--store", site.store, "--responses", str(site.folder / "responses"), "--image", site.image]
