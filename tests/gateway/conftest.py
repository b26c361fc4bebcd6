"""The parts of other rooms that a gateway is tested with."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

for room in ("service", "registry", "video", "vllm_plugin"):
    sys.path.insert(0, str(Path(__file__).parents[1] / room))

from gateway_parts import Site  # noqa: E402 - found there


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A gateway before a server that does what the test says, with the environments door and shop."""
    with Site(tmp_path) as site:
        yield site
