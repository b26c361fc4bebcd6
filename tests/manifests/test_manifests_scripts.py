"""The two small programs that stand in the manifests do what they say."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from manifest_parts import Cluster, containers, documents, rendered
from moto.server import ThreadedMotoServer

from taskmem.files import sha256_bytes
from taskmem.policy.exported import EXPORT, Export
from taskmem.records import write_json

pytestmark = pytest.mark.system
KEYS = {"AWS_ACCESS_KEY_ID": "testing-key", "AWS_SECRET_ACCESS_KEY": "testing-secret"}


def program(command: list[str]) -> str:
    """The text of a container's `python3 -c`."""
    interpreter, option, text = command
    assert (interpreter, option) == ("python3", "-c")
    return text


def run(text: str, **variables: str) -> subprocess.CompletedProcess[str]:
    given = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(
        [sys.executable, "-c", text], env=given, capture_output=True, text=True, check=False, timeout=60
    )


class Metrics(ThreadingHTTPServer):
    """Says of itself that so many requests are in flight, one fewer each time it is asked."""

    def __init__(self, busy: int) -> None:
        self.busy = busy
        super().__init__(("127.0.0.1", 0), Page)


class Page(BaseHTTPRequestHandler):
    server: Metrics

    def do_GET(self) -> None:
        asked = self.server.busy
        self.server.busy = max(0, asked - 1)
        lines = [
            "# HELP taskmem_gateway_in_flight 7",
            f"taskmem_gateway_in_flight {float(asked > 1)}",
            f"taskmem_gateway_waiting {float(asked > 0)}",
            'taskmem_gateway_requests_total{status="200"} 9.0',
        ]
        self.send_response(200)
        self.end_headers()
        self.wfile.write("\n".join([*lines, ""]).encode())

    def log_message(self, *_: object) -> None:
        pass


def before_stopping(overlay: Cluster) -> str:
    (gateway,) = [c for w in overlay.workloads for c in containers(w) if c["name"] == "gateway"]
    text = program(gateway["lifecycle"]["preStop"]["exec"]["command"])
    assert "time.sleep(10)" in text
    assert "127.0.0.1:8101" in text
    return text.replace("time.sleep(10)", "time.sleep(0)").replace("time.sleep(1)", "time.sleep(0.01)")


def test_a_gateway_is_not_stopped_before_what_is_in_flight_and_waits_has_ended(overlay: Cluster) -> None:
    text = before_stopping(overlay)
    server = Metrics(busy=5)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        done = run(text.replace("127.0.0.1:8101", f"127.0.0.1:{server.server_port}"))
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    assert server.busy == 0


def test_a_gateway_that_does_not_answer_any_more_is_not_waited_for(overlay: Cluster) -> None:
    server = Metrics(busy=1)
    port = server.server_port
    server.server_close()
    assert run(before_stopping(overlay).replace("127.0.0.1:8101", f"127.0.0.1:{port}")).returncode != 0


@pytest.fixture
def bucket() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def filled(url: str, out: Path, files: dict[str, bytes], said: dict[str, bytes]) -> subprocess.CompletedProcess[str]:
    """What the job does to the folder `out` where the bucket has `files`, and export.json tells of `said`."""
    client = boto3.client(
        "s3", endpoint_url=url, aws_access_key_id="k" * 12, aws_secret_access_key="s" * 12, region_name="us-east-1"
    )
    client.create_bucket(Bucket="taskmem")
    export = Export(
        policy="0" * 64,
        layers=1,
        hidden_size=8,
        transposed=0,
        files={name: sha256_bytes(data) for name, data in said.items()},
        checked=None,
    )
    local = out.parent / EXPORT
    write_json(local, export.model_dump(mode="json"))
    for name, data in {**files, EXPORT: local.read_bytes()}.items():
        client.put_object(Bucket="taskmem", Key=f"policies/first/{name}", Body=data)
    client.put_object(Bucket="taskmem", Key="policies/first-other/config.json", Body=b"another policy's")
    (job,) = [document for document in documents(rendered("fill")) if document["kind"] == "Job"]
    (container,) = containers(job)
    variables = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
    assert variables["POLICY"] == "s3://taskmem/policies/first"
    text = program(container["command"])
    assert '"/policy"' in text
    return run(text.replace('"/policy"', repr(str(out))), **(KEYS | variables | {"AWS_ENDPOINT_URL": url}))


def test_the_policy_s_volume_is_filled_and_checked(bucket: str, tmp_path: Path) -> None:
    files = {"config.json": b"{}", "deep/model.safetensors": b"weights"}
    out = tmp_path / "volume"
    out.mkdir()
    done = filled(bucket, out, files, files)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"policy {'0' * 64}\n"
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == {*files, EXPORT}
    assert (out / "deep/model.safetensors").read_bytes() == b"weights"


def test_a_policy_that_arrives_damaged_fails_the_job(bucket: str, tmp_path: Path) -> None:
    out = tmp_path / "volume"
    out.mkdir()
    done = filled(bucket, out, {"config.json": b"{damaged"}, {"config.json": b"{}"})
    assert done.returncode != 0
    assert "config.json: differs from what was exported" in done.stderr
