"""For the tests of feedback: the store's S3 servers, and the registry's weather."""

import os
from pathlib import Path

import pytest
from s3_servers import lead, moto, new_bucket

from taskmem.store import LocalStore, Store, open_store


@pytest.fixture
def s3_url(monkeypatch: pytest.MonkeyPatch) -> str:
    """A new place in a bucket of a server on this machine."""
    lead(monkeypatch, moto())
    return f"s3://{new_bucket()}/kept"


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of small objects in seconds: no power cut is tested with them."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store in a folder, and one in a bucket."""
    if request.param == "folder":
        return LocalStore(tmp_path / "store")
    return open_store(request.getfixturevalue("s3_url"))
