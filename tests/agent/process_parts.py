"""The agent as a process of its own, which may be killed and started again on the same port."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from service_parts import free_port

from taskmem.cli import shipped_base

SECONDS = 120.0


class AgentProcess:
    """`taskmem serve agent` in `folder`, with its object store in `folder`/store; running inside the block."""

    def __init__(
        self, folder: Path, database: str, gateway: str, instance: str = "agent", settings: str = "{decoders: 1}"
    ) -> None:
        self.port = free_port()
        self.log = folder / f"{instance}.log"
        chosen = folder / f"{instance}.yaml"
        chosen.write_text(settings)
        options = {
            "--store": folder / "store",
            "--policy": shipped_base(),
            "--database": database,
            "--responses": folder / "responses",
            "--gateway": gateway,
            "--instance": instance,
            "--port": self.port,
            "--settings": chosen,
        }
        words = [str(word) for pair in options.items() for word in pair]
        self._command = [sys.executable, "-m", "pipelines.cli", "serve", "agent", *words]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it listens."""
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=root, env=environment)
        end = time.monotonic() + SECONDS
        while b'"event": "start"' not in self.log.read_bytes()[before:]:
            assert self._process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and wait for its end."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(60)

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def lines(self, event: str) -> list[dict[str, object]]:
        """The log's lines of one kind."""
        found = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in found if line["event"] == event]

    def peak_bytes(self) -> int:
        """The most memory that it has had."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024
