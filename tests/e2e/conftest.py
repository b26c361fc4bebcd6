"""One uninterrupted loop, run once for all tests."""

from pathlib import Path

import pytest
from small_loop import PROFILE, Run, loop


@pytest.fixture(scope="session")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "small.yaml"
    path.write_text(PROFILE)
    return path


@pytest.fixture(scope="session")
def options(profile: Path) -> tuple[str, ...]:
    return ("--seed", "0", "--profile", str(profile))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, options: tuple[str, ...]) -> Run:
    return loop(tmp_path_factory.mktemp("finished") / "loop", options)
