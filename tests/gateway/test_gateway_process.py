"""`taskmem serve gateway` as a process: it says when it is up, survives a kill, and ends on a signal."""

import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from gateway_parts import Site, text, written_by
from gateway_process_parts import TASKMEM, Process
from service_parts import eventually

from taskmem.records import Response, read_records


@contextmanager
def process(site: Site, log: Path, port: int = 0) -> Iterator[Process]:
    places = {"--store": site.root / "store", "--adapters": site.root / "shared", "--responses": site.root / "own"}
    running = Process(log, port, **{**places, "--policy-server": site.server.url})
    try:
        yield running
    finally:
        running.run.kill()
        running.run.wait()


def test_a_killed_gateway_has_recorded_all_it_gave_and_goes_on_when_started_again(site: Site, tmp_path: Path) -> None:
    given: list[httpx2.Response] = []
    token = site.tokens["door"]

    def ask(running: Process) -> None:
        try:
            for number in range(10_000):
                given.append(running.chat(token, stream=bool(number % 2)))
        except httpx2.TransportError:
            pass  # killed meanwhile

    with process(site, tmp_path / "first.log") as first, ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, first) for _ in range(8)]
        eventually(lambda: len(given) > 40, seconds=60)
        first.run.kill()
        for one in asking:
            one.result()
        port = first.port
    with process(site, tmp_path / "second.log", port=port) as second:
        given.append(second.chat(token))
    assert {reply.status_code for reply in given} == {200}
    assert {text(reply) for reply in given} == {written_by("door@v2")}
    recorded = [one.id for one in read_records(tmp_path / "own" / "responses-gateway.jsonl", Response)]
    assert len(set(recorded)) == len(recorded)
    assert {reply.headers["x-request-id"] for reply in given} <= set(recorded)
    # the server had it all the time
    assert site.upstream.adapters["door@v2"] == str(tmp_path / "shared" / "door@v2")


def test_a_signal_ends_it_after_what_is_in_flight(site: Site, tmp_path: Path) -> None:
    with process(site, tmp_path / "log") as running, ThreadPoolExecutor() as pool:
        site.upstream.word_seconds = 0.2
        asked = pool.submit(running.chat, site.tokens["door"], stream=True)
        eventually(lambda: site.upstream.in_flight == 1)
        os.kill(running.run.pid, signal.SIGTERM)
        assert text(asked.result()) == written_by("door@v2")
        assert running.run.wait(20) in (0, -signal.SIGTERM)
    assert all(line.startswith("{") for line in (tmp_path / "log").read_text().splitlines())


def test_environments_are_named_on_the_operations_port_alone(site: Site, tmp_path: Path) -> None:
    with process(site, tmp_path / "log") as running:
        running.chat(site.tokens["door"])
        named = httpx2.get(f"http://127.0.0.1:{running.operations}/metrics", trust_env=False).text
        assert 'taskmem_adapter_version{environment="door"} 2.0' in named
        assert "taskmem_gateway_in_flight" in named
        assert "door" not in running.client.get("/metrics").text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"--policy-server": "127.0.0.1:8000"}, "not an http(s) URL"),
        ({"--adapters": "settings.yaml/x"}, "settings.yaml/x: cannot hold adapters"),
        ({"--profile": "nothing"}, "nothing"),
        ({"--store": "nowhere"}, "holds no store"),
        ({"--instance": "../x"}, "not a safe name"),
        ({"--settings": "settings.yaml"}, "settings.yaml: in_flight: Input should be greater than or equal to 1"),
        ({"--port": "TAKEN"}, "cannot listen there"),
    ],
)
def test_what_keeps_it_from_starting_is_one_line(
    options: dict[str, str], reason: str, site: Site, tmp_path: Path
) -> None:
    (tmp_path / "settings.yaml").write_text("in_flight: 0\n")
    given = {
        "--store": str(site.root / "store"),
        "--adapters": "adapters",
        "--responses": "own",
        "--operations-port": "0",
    }
    words = {**given, **options}
    flat = [word.replace("TAKEN", str(site.server.port)) for pair in words.items() for word in pair]
    run = subprocess.run(
        [*TASKMEM, "serve", "gateway", *flat],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert run.returncode == 2
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("taskmem: ") and reason in last
