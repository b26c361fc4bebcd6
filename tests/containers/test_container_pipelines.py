"""The pipelines in containers make what they make as processes of this machine."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adaptation_parts import Night, first_feedback, trained
from container_parts import ROOT

from components.images import Images
from pipelines.local.containers import Containers
from taskmem.cluster import USER

pytestmark = pytest.mark.system

DEMO = (sys.executable, "-m", "pipelines.cli", "demo", "--out")


def results(out: Path) -> dict[str, Any]:
    """What a demo found, without the time it took."""
    found = json.loads((out / "results.json").read_text())
    del found["seconds"]
    return dict(found)


@pytest.fixture(scope="module")
def contained(
    references: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The demo in containers, running while other tests go on."""
    out = tmp_path_factory.mktemp("contained")
    command = [*DEMO, str(out / "demo"), "--images", str(references)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        yield process, out / "demo"
        process.kill()


def comparable(night: Night) -> dict[str, Any]:
    """What was said of every stage, what became of every environment, and the bytes of what stages made of tensors and lines."""
    made = {name: data for name, data in night.files.items() if name.endswith((".safetensors", ".jsonl"))}
    assert {Path(name).suffix for name in made} == {".safetensors", ".jsonl"}
    return {"said": night.said, "outcomes": night.outcomes, "made": made}


def test_a_night_of_adaptation_has_the_same_outcomes(contained: object, images: Images, tmp_path: Path) -> None:
    root = tmp_path / "site"
    root.mkdir()
    site = trained(root)
    first_feedback(site)
    here = site.night(tmp_path / "here")
    # again the first night: nothing is published yet
    (root / "store").rename(tmp_path / "store of here")
    (root / "store").mkdir()
    if os.geteuid() == 0:
        os.chown(root / "store", USER, USER)
    there = Containers(reads=[root], writes=[root / "store"])
    assert comparable(site.night(tmp_path / "there", images=images, attempts=there)) == comparable(here)
    assert "promoted" in {outcome.status for outcome in here.outcomes.values()}


def test_end_to_end_has_the_same_results(contained: tuple[subprocess.Popen[str], Path], images: Images) -> None:
    process, out = contained
    said, _ = process.communicate()
    assert process.returncode == 0, said
    # what `make demo` has made is not made again
    here = ROOT / "runs" / "demo"
    subprocess.run([*DEMO, str(here)], check=True, stdout=subprocess.DEVNULL)
    assert results(out) == results(here)
    recorded = [json.loads(path.read_text()) for path in (out / "runs").rglob("lineage.json")]
    assert [record["image"] for record in recorded] == [images.data]
