"""For the tests of manifests/: each overlay is rendered once."""

import pytest
from manifest_parts import OVERLAYS, Cluster, documents, rendered


@pytest.fixture(scope="session", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> Cluster:
    return Cluster(documents(rendered(f"overlays/{request.param}")))
