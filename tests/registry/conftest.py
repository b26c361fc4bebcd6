"""One shelf of published versions, copied for every test that wants it."""

import shutil
from pathlib import Path

import pytest
from registry_parts import publish_light, write_adapter

from taskmem.store import LocalStore


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shelf")
    store = LocalStore(root / "store")
    for number in range(3):
        publish_light(store, write_adapter(root / f"adapter-{number}", number))
    return root


@pytest.fixture
def published(tmp_path: Path, shelf: Path) -> LocalStore:
    """A store with v1, v2 and v3 of `door`, of the adapters `adapter-0` to `adapter-2` beside it."""
    shutil.copytree(shelf, tmp_path, dirs_exist_ok=True)
    return LocalStore(tmp_path / "store")
