"""Pushgateways: a listener that keeps what is pushed to it, and the real one, which `make manifests-setup` brings."""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families
from service_parts import free_port

REAL = Path(__file__).parents[2] / ".venv-manifests" / "bin" / "prometheus-pushgateway"
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Listener:
    """What a Pushgateway does with PUT, in the length a test needs: the last body of every group. `status` is its answer."""

    def __init__(self) -> None:
        self.groups: dict[str, str] = {}
        self.status = 200
        keeper = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                if keeper.status < 400:
                    keeper.groups[self.path] = body
                self.send_response(keeper.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator["Listener"]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def series(self, path: str) -> dict[str, float]:
        """The series of one group, a status in brackets."""
        return parsed(self.groups[path])


def parsed(text: str) -> dict[str, float]:
    """The series of a text, by name and the label `status`."""
    return {
        sample.name + (f"[{sample.labels['status']}]" if "status" in sample.labels else ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("taskmem_")
    }


@contextmanager
def pushgateway(folder: Path) -> Iterator[str]:
    """The real one on loopback: its URL."""
    port = free_port()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([REAL, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(100):
            try:
                urlopen(f"{url}/-/ready", timeout=5).close()
                break
            except URLError:
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()
