"""The pipelines in containers make what they make as processes of this machine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from adaptation_parts import Night, first_feedback, trained

from components.images import Images
from pipelines.local.containers import Containers

pytestmark = pytest.mark.system


def results(out: Path) -> dict[str, Any]:
    """What a demo found, without the time it took."""
    found = json.loads((out / "results.json").read_text())
    del found["seconds"]
    return dict(found)


def test_end_to_end_has_the_same_results(references: Path, images: Images, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "demo", "--out"]
    sides = {"here": [], "contained": ["--images", str(references)]}
    runs = {out: subprocess.Popen([*command, str(tmp_path / out), *more]) for out, more in sides.items()}
    assert {out: run.wait() for out, run in runs.items()} == {"here": 0, "contained": 0}
    assert results(tmp_path / "contained") == results(tmp_path / "here")
    recorded = [path.read_text() for path in (tmp_path / "contained" / "runs").rglob("lineage.json")]
    assert recorded
    assert images.data in recorded[0]


def comparable(night: Night) -> dict[str, Any]:
    """What became of every environment, and the bytes of what stages made that name neither time nor image."""
    made = {name: data for name, data in night.files.items() if name.endswith((".safetensors", ".jsonl"))}
    return {"said": night.said, "outcomes": night.outcomes, "made": made}


def test_a_night_of_adaptation_has_the_same_outcomes(images: Images, tmp_path: Path) -> None:
    site = trained(tmp_path / "site")
    first_feedback(site)
    here = site.night(tmp_path / "here")
    # the same first night, with a store of its own
    (site.root / "store").rename(tmp_path / "store of here")
    (site.root / "store").mkdir()
    contained = site.night(
        tmp_path / "contained", images=images, attempts=Containers(reads=[site.root], writes=[site.root / "store"])
    )
    assert comparable(contained)["said"] == comparable(here)["said"]
    assert comparable(contained) == comparable(here)
