"""Images come from one place and are refused when they are not full references."""

import json
from importlib import metadata
from pathlib import Path
from typing import get_args

import pytest

from components.images import Images, Kind, load_images
from taskmem.cluster import StageResources
from taskmem.errors import UserError

DIGEST = "@sha256:" + "0123456789abcdef" * 4


def written(folder: Path, **references: object) -> Path:
    path = folder / "images.json"
    path.write_text(json.dumps(references), encoding="utf-8")
    return path


def test_without_a_file_the_images_are_this_version_s_by_tag() -> None:
    images = load_images(None)
    version = metadata.version("taskmem")
    assert images == Images(data=f"ghcr.io/taskmem/data:{version}", train=f"ghcr.io/taskmem/train:{version}")
    assert not images.pinned


def test_a_file_names_every_image(tmp_path: Path) -> None:
    images = load_images(written(tmp_path, data=f"a.b/c{DIGEST}", train=f"localhost:5000/x/y_z:1.0{DIGEST}"))
    assert images.reference("data") == f"a.b/c{DIGEST}"
    assert images.reference("train") == f"localhost:5000/x/y_z:1.0{DIGEST}"


@pytest.mark.parametrize(
    ("data", "train", "pinned"),
    [(DIGEST, DIGEST, True), (f":1{DIGEST}", DIGEST, True), (DIGEST, ":1", False), (":1", DIGEST, False)],
)
def test_images_are_pinned_only_if_every_one_has_a_digest(data: str, train: str, pinned: bool) -> None:
    assert Images(data=f"a.b/data{data}", train=f"a.b/train{train}").pinned is pinned


@pytest.mark.parametrize(
    "reference",
    [
        "",
        "python:3.11",  # a short name
        "taskmem/data:1",
        "ghcr.io/taskmem/data",  # neither tag nor digest
        "ghcr.io/taskmem/data:",
        "ghcr.io/taskmem/Data:1",
        "ghcr.io//data:1",
        "ghcr.io/taskmem/data:1\n",
        " ghcr.io/taskmem/data:1",
        "ghcr.io/taskmem/data:1 --privileged",
        "https://ghcr.io/taskmem/data:1",
        "ghcr.io/taskmem/data@sha256:abc",
        "ghcr.io/taskmem/data@sha256:" + "A" * 64,
        "ghcr.io/taskmem/data@md5:" + "a" * 64,
        "ghcr.io/taskmem/data:" + "1" * 129,
        "{{$.inputs.parameters['image']}}",
    ],
)
def test_a_malformed_reference_is_refused_in_one_line(tmp_path: Path, reference: str) -> None:
    path = written(tmp_path, data="a.b/c:1", train=reference)
    with pytest.raises(UserError) as refused:
        load_images(path)
    assert str(refused.value).startswith(f"{path}: train: {reference!r} is not a full image reference; write ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"data": "a.b/c:1"}, "train"),
        ({"data": "a.b/c:1", "train": "a.b/c:1", "server": "a.b/c:1"}, "server"),
        ({"data": 1, "train": "a.b/c:1"}, "data"),
        ([], "the document"),
        (None, "the document"),
    ],
)
def test_a_missing_unknown_or_mistyped_entry_is_named(tmp_path: Path, document: object, field: str) -> None:
    path = tmp_path / "images.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UserError, match=f"^{path}: {field}: [^\n]+; give one reference for each of data, train$"):
        load_images(path)


@pytest.mark.parametrize("content", ["", "{", b"\xff"])
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "images.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"^{path}: not valid JSON"):
        load_images(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; give a JSON file"):
        load_images(tmp_path / "images.json")


def test_there_is_an_image_for_every_kind_that_a_stage_can_ask_for() -> None:
    kinds = get_args(StageResources.model_fields["image"].annotation)
    assert set(kinds) == set(get_args(Kind)) == set(Images.model_fields) - {"serve"}
