"""For the erasure's tests: one deployment, put back for each, and the store's S3 servers."""

import pytest
from erasure_parts import Site, Snapshot, build


@pytest.fixture(scope="session")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    root = tmp_path_factory.mktemp("deployment")
    site = build(root / "site", str(root / "site" / "store"), str(root / "site" / "remote"))
    return Snapshot.of(site, root / "kept")


@pytest.fixture
def site(snapshot: Snapshot) -> Site:
    return snapshot.restore()
