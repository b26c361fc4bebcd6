"""`taskmem serve gateway` as a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
from gateway_parts import HELLO
from service_parts import eventually

TASKMEM = [sys.executable, "-c", "from pipelines.cli import main; main()"]


class Process:
    """A gateway of its own, on a port of its own choice."""

    def __init__(self, log: Path, port: int = 0, **options: Any) -> None:
        words = {"--image": "sha256:image", "--port": port, "--operations-port": 0, **options}
        flat = [str(word) for pair in words.items() for word in pair]
        self._log = log
        with log.open("w") as out:
            self.run = subprocess.Popen([*TASKMEM, "serve", "gateway", *flat], stderr=out, stdout=out)
        eventually(lambda: self.run.poll() is not None or bool(self.lines("start")), seconds=60)
        self.port = self.lines("start")[0]["port"]
        self.operations = self.lines("operations")[0]["port"]
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False, timeout=20)
        eventually(self._up, seconds=30)

    def lines(self, event: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [line for line in found if line["event"] == event]

    def _up(self) -> bool:
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def chat(self, token: str, **body: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return self.client.post(
            "/v1/chat/completions", json={"model": "door", "messages": HELLO, **body}, headers=headers
        )
