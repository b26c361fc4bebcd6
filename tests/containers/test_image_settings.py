"""What a build of the images is told of pip on this machine."""

import runpy
from pathlib import Path
from typing import Any

import pytest
from container_parts import ROOT

from components.images import REGISTRY, Images

TOOL = runpy.run_path(str(ROOT / "tools" / "images.py"))


def test_the_tool_and_the_pipelines_name_the_same_images() -> None:
    assert set(TOOL["TARGETS"]) == set(Images.model_fields)
    assert TOOL["REGISTRY"] == REGISTRY


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip's settings are those of one file that the test writes, and of variables that it sets."""
    for name in (
        "PIP_INDEX_URL",
        "PIP_EXTRA_INDEX_URL",
        "PIP_FIND_LINKS",
        "PIP_CERT",
        "PIP_CONSTRAINT",
        "PIP_DEFAULT_TIMEOUT",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    return tmp_path / "pip.conf"


def settings() -> dict[str, Any]:
    return dict(TOOL["pip_settings"]())


def test_a_variable_goes_before_the_file_and_what_builds_do_not_need_stays_here(
    pip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip.write_text("[global]\nindex-url = https://one.example/simple\nuser-agent-user-data = me\ncert = /a.pem\n")
    monkeypatch.setenv("PIP_INDEX_URL", "https://two.example/simple")
    found = settings()
    assert found["index-url"] == "https://two.example/simple"
    assert found["cert"] == "/a.pem"
    assert "user-agent-user-data" not in found


def test_folders_that_it_names_are_seen_by_the_build_and_an_index_with_its_files(pip: Path, tmp_path: Path) -> None:
    (tmp_path / "mirror" / "simple").mkdir(parents=True)
    (tmp_path / "wheels").mkdir()
    pip.write_text(
        f"[global]\nindex-url = file://{tmp_path}/mirror/simple\n"
        f"find-links =\n    {tmp_path}/wheels\n    {tmp_path}/nowhere\n    https://wheels.example\n"
    )
    found = {path for path in TOOL["local_paths"](settings()) if path.is_relative_to(tmp_path)}
    assert found == {tmp_path / "mirror", tmp_path / "wheels"}
