"""The databases that the agent's tests run on, all of them on both."""

import pytest

from benchmarks.postgresql import PostgreSQL, installed, postgresql

# where there is no server, `make test-system` says what to install
POSTGRESQL = pytest.param("postgresql", marks=() if installed() else pytest.mark.system, id="postgresql")
BOTH = ["sqlite", POSTGRESQL]

__all__ = ["BOTH", "PostgreSQL", "postgresql"]
