"""What the agent's tests share: the databases, and a service put together from real parts around a policy of a test's own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from databases import BOTH, PostgreSQL, postgresql
from site_parts import Site
from standin import Scripted, Shipped, Writes

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


@pytest.fixture(scope="session")
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture(scope="session")
def shipped() -> Shipped:
    return Shipped()


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Opens served agents, which are closed at the end."""
    with ExitStack() as held:

        def opened(database: str, writes: Writes, **settings: Any) -> Site:
            return held.enter_context(Site(tmp_path, database, writes, **settings))

        yield opened


@pytest.fixture
def site(sites: Callable[..., Site], database: str, scripted: Scripted) -> Site:
    """A served agent whose memories tell what the policy was shown."""
    return sites(database, scripted)
