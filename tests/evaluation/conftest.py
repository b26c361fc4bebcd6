"""One small run, made once for the tests of the report."""

from pathlib import Path

import pytest
from report_parts import Finished, finish


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finish(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def page(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of the run as it is."""
    return finished.report(tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "report.html"
