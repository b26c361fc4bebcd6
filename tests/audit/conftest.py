"""For the audit's tests: the store's S3 servers, and one place for all."""

import pytest
from audit_parts import Place, deployed


@pytest.fixture(scope="session")
def kept_place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Two nights of two environments, recorded: door@v1, door@v2 and room@v1 were promoted, room@v2 was not."""
    return deployed(tmp_path_factory.mktemp("place"))


@pytest.fixture
def place(kept_place: Place) -> Place:
    return kept_place
