"""Real S3 servers on loopback: moto, which honours conditional writes, and rclone, which takes and ignores them.

A test opens a store there as a user does, by environment and URL:

    lead(monkeypatch, moto())
    open_store(f"s3://{new_bucket()}/prefix")
"""

import os
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from boto3.session import Session
from moto.server import ThreadedMotoServer

ACCESS_KEY, SECRET_KEY = "loopback-access-key", "loopback-secret-key"
AWS_NAMES = re.compile(r"AWS_.*")


def environment(endpoint: str) -> dict[str, str]:
    """The variables that lead boto3 to `endpoint` and away from this machine's own configuration and role."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def lead(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Lead boto3 to `endpoint` for as long as `patch` lasts, and worker processes with it."""
    for name in list(os.environ):
        if AWS_NAMES.fullmatch(name):
            patch.delenv(name)
    for name, value in environment(endpoint).items():
        patch.setenv(name, value)


@cache
def moto() -> str:
    """The endpoint of a moto server in this process, which lives as long as the process."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    assert server._server is not None
    answer, one = server._server.app, threading.Lock()

    def answer_alone(environ: Any, start: Any) -> Iterable[bytes]:
        # S3 checks a condition and writes in one step; moto does so only if nobody comes in between.
        with one:
            return list(answer(environ, start))

    server._server.app = answer_alone
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


@cache
def client(endpoint: str) -> Any:
    """boto3's own client of a loopback server, to look at it from outside."""
    return Session(ACCESS_KEY, SECRET_KEY, region_name="us-east-1").client("s3", endpoint_url=endpoint)


def new_bucket(endpoint: str | None = None) -> str:
    """A new bucket's name."""
    name = f"bucket-{uuid.uuid4().hex}"
    client(endpoint or moto()).create_bucket(Bucket=name)
    return name


@contextmanager
def rclone(folder: Path) -> Iterator[str]:
    """The endpoint of `rclone serve s3`, whose buckets are the folders in `folder`; it checks signatures."""
    command = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--addr", "127.0.0.1:0"]
    command += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--config", os.devnull, str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            said = ""
            for line in server.stderr:
                said += line
                if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                    threading.Thread(target=server.stderr.read, daemon=True).start()
                    yield found[0]
                    return
            raise AssertionError(f"rclone did not start: {said}")
        finally:
            server.kill()
