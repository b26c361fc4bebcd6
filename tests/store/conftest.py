"""For the store's tests."""

import pytest
from s3_servers import lead, moto


@pytest.fixture(autouse=True)
def s3_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lead boto3 to the loopback server, and worker processes with it."""
    lead(monkeypatch, moto())
