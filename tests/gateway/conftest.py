"""The parts of other rooms that a gateway is tested with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_parts import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A gateway before a server that does what the test says, with the environments door and shop."""
    with Site(tmp_path) as site:
        yield site
