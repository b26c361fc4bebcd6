"""podman with its Docker API, and the images data and train, built from this checkout on a Debian base."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from container_parts import ROOT, engine, wait_until

from components.images import Images, load_images


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The engine, answering at DOCKER_HOST for the length of the tests."""
    socket = tmp_path_factory.mktemp("podman") / "podman.sock"
    with pytest.MonkeyPatch.context() as patch:
        if "CONTAINERS_CONF" not in os.environ:
            patch.setenv("CONTAINERS_CONF", str(Path(__file__).with_name("containers.conf")))
        patch.setenv("DOCKER_HOST", f"unix://{socket}")
        with subprocess.Popen(["podman", "system", "service", "--time=0", f"unix://{socket}"]) as service:
            wait_until(socket.exists)
            yield
            service.terminate()


@pytest.fixture(scope="session")
def references(podman: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make images` writes: see there for what stays and is not built again."""
    out = tmp_path_factory.mktemp("images") / "images.json"
    base = [sys.executable, ROOT / "tools" / "base_image.py"]
    build = [sys.executable, ROOT / "tools" / "images.py", "data", "train", "--engine", "podman", "--out", out]
    subprocess.run(base, check=True)
    subprocess.run([*build, "--base", "localhost/taskmem-base:bookworm"], check=True, stdout=subprocess.DEVNULL)
    return out


@pytest.fixture(scope="session")
def images(references: Path) -> Images:
    return load_images(references)


@pytest.fixture
def no_container_is_left(podman: None) -> Iterator[None]:
    yield
    assert engine("ps", "--all", "--quiet") == ""
