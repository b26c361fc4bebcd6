"""A file to start from, and a folder to run in."""

from pathlib import Path

import pytest
from cluster_parts import cluster, ir

__all__ = ["cluster", "ir"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("hello")
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    # kfp's own runner would take "python3" in a path for the interpreter, and a blank for the end of a word
    return tmp_path / "python3 runs"
