"""For the store's tests."""

import os

import pytest
from s3_servers import AWS_NAMES, environment, moto


@pytest.fixture(autouse=True)
def s3_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lead boto3 to the loopback server, and worker processes with it."""
    for name in list(os.environ):
        if AWS_NAMES.fullmatch(name):
            monkeypatch.delenv(name)
    for name, value in environment(moto()).items():
        monkeypatch.setenv(name, value)
