"""What the agent's tests share: the databases, and a service put together from real parts around a policy of a test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from databases import BOTH, PostgreSQL, postgresql

from taskmem.agent.storage import Storage


@pytest.fixture(scope="session")
def server() -> Iterator[PostgreSQL]:
    with postgresql() as server:
        yield server


@pytest.fixture(params=BOTH)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/agent.db"
    url: str = request.getfixturevalue("server").new_database()
    return url


@pytest.fixture
def storage(database: str) -> Iterator[Storage]:
    with Storage(database) as storage:
        yield storage
