"""What is in the images, and what is not."""

import json
import re
import subprocess
import tomllib
from collections.abc import Iterable
from typing import Any

import pytest
from container_parts import ROOT, engine

from components.images import Images, is_pinned

pytestmark = pytest.mark.system

KINDS = ("data", "train")
TOOLS = ("cc", "gcc", "g++", "make", "pip", "pip3", "cmake", "ld", "as")


@pytest.fixture(scope="module", params=KINDS)
def image(request: pytest.FixtureRequest, images: Images) -> str:
    return images.reference(request.param)


def inside(image: str, *command: str) -> str:
    return engine("run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp", image, *command)


def described(image: str) -> dict[str, Any]:
    (found,) = json.loads(engine("image", "inspect", image))
    return dict(found)


def test_they_are_named_by_digest(images: Images) -> None:
    assert images.pinned
    assert is_pinned(images.data)


def test_they_run_as_nobody_special_without_an_entrypoint(image: str) -> None:
    config = described(image)["Config"]
    assert config["User"] == "1000:1000"
    assert not config.get("Entrypoint")
    assert inside(image, "id", "-u") == "1000"


def test_nothing_that_builds_or_installs_is_left(image: str) -> None:
    search = f"for tool in {' '.join(TOOLS)}; do command -v $tool; done; python3 -m pip --version 2>/dev/null; true"
    assert inside(image, "sh", "-c", search) == ""
    assert inside(image, "sh", "-c", "ls /source /opt/pip /root/.cache /etc/pip.conf 2>/dev/null; true") == ""


def test_labels_say_what_it_is_and_where_from(image: str, images: Images) -> None:
    labels = described(image)["Config"]["Labels"]
    said = {key.removeprefix("org.opencontainers.image."): value for key, value in labels.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert said["version"] == project["version"]
    assert said["licenses"] == project["license"]
    assert said["revision"].removesuffix("-dirty") == head.stdout.strip()
    assert said["title"] == f"taskmem-{'data' if image == images.data else 'train'}"
    assert {"source", "created", "description", "vendor"} <= said.keys()


def test_every_package_has_the_version_of_the_lock(image: str) -> None:
    def versions(lines: Iterable[str]) -> dict[str, str]:
        pairs = (line.strip().split("==") for line in lines if "==" in line)
        return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}

    program = "import importlib.metadata as m; [print(d.name, d.version, sep='==') for d in m.distributions()]"
    found = versions(inside(image, "python3", "-c", program).splitlines())
    lock = versions((ROOT / "requirements.lock").read_text().splitlines())
    assert found.pop("taskmem") == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    # the part after + names the build, for a CPU or for CUDA
    assert {name: version for name, version in found.items() if version.partition("+")[0] != lock[name]} == {}
    assert len(found) > 50


def test_an_image_holds_only_what_its_stages_use(images: Images) -> None:
    asked = ("torch", "dvc", "kfp", "boto3", "vllm", "fastapi", "pytest")
    program = f"import importlib.util as u; print(*[n for n in {asked} if u.find_spec(n)])"
    assert inside(images.data, "python3", "-c", program) == "dvc kfp boto3"
    assert inside(images.train, "python3", "-c", program) == "torch kfp boto3"
    assert inside(images.data, "git", "--version").startswith("git version")


def test_it_knows_the_commit_it_was_built_from(image: str) -> None:
    program = "from taskmem.lineage.code import commit; print(commit())"
    assert (
        inside(image, "python3", "-c", program)
        == described(image)["Config"]["Labels"]["org.opencontainers.image.revision"]
    )


def test_the_command_is_there(image: str) -> None:
    assert inside(image, "taskmem", "--help").strip().startswith("Usage: taskmem")
