"""`taskmem compile`: the IR of every pipeline, the same bytes each time, with the profile in it and no secret."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import components

from taskmem.config import load_profile, parse_profile, profile_names
from taskmem.files import canonical_json

COMMAND = Path(sys.executable).with_name("taskmem")
ROOT = Path(__file__).parents[2]
IMAGES = {"data": "registry.test/data@sha256:" + "d" * 64, "train": "registry.test/train:1@sha256:" + "7" * 64}
WARNING = "images are named by tag, and what a tag names may change: give --images with digests\n"
NAMES = {"miniature": ["phase_one", "adaptation", "end_to_end"], "qwen3-vl-30b": ["phase_one", "adaptation"]}
VALUE = "the-value-itself"
SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "TASKMEM_JUDGE_API_KEY")
PARAMETERS = {
    "phase_one": {"train", "development", "deployed", "held_out", "base", "profile", "seed"},
    "adaptation": {
        *("shards", "events", "segments", "policy", "gate_segments", "gate_questions", "store", "profile", "seed"),
        *("world", "lineage", "remote", "pushgateway"),
    },
    "end_to_end": {"base", "store", "profile", "seed", "lineage", "remote"},
}
Done = subprocess.CompletedProcess[str]


def taskmem(*words: str | Path, cwd: Path, hash_seed: int = 0, **variables: str) -> Done:
    """`taskmem WORDS` in a process of its own."""
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed), **variables}
    return subprocess.run(
        [COMMAND, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def images(folder: Path, content: Any = None) -> Path:
    path = folder / "images.json"
    path.write_text(json.dumps(content or IMAGES), encoding="utf-8")
    return path


def documents(path: Path) -> list[dict[str, Any]]:
    """What a compiled pipeline's file holds: the specification, and what belongs to Kubernetes."""
    return list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader))


def parameters(path: Path) -> dict[str, Any]:
    spec = documents(path)[0]
    found: dict[str, Any] = spec["root"]["inputDefinitions"]["parameters"]
    return found


def texts(value: Any) -> Iterator[str]:
    """Every text in a document, keys too."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    else:
        yield str(value)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every profile compiled once with images by digest, while the secrets' variables are set."""
    folders = {}
    for profile in profile_names():
        folder = tmp_path_factory.mktemp(profile)
        words = ("compile", "--profile", profile, "--images", images(folder), "--out", "ir")
        done = taskmem(*words, cwd=folder, hash_seed=1, **dict.fromkeys(SECRETS, VALUE))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "".join(f"ir/{name}.yaml\n" for name in NAMES[profile])
        folders[profile] = folder / "ir"
    return folders


@pytest.mark.parametrize("profile", profile_names())
def test_in_another_process_and_place_the_bytes_are_the_same(
    built: dict[str, Path], tmp_path: Path, profile: str
) -> None:
    words = ("compile", "--profile", profile, "--images", images(tmp_path), "--out", tmp_path / "deep" / "ir")
    assert taskmem(*words, cwd=tmp_path, hash_seed=2).returncode == 0
    for name in NAMES[profile]:
        assert (tmp_path / "deep" / "ir" / f"{name}.yaml").read_bytes() == (
            built[profile] / f"{name}.yaml"
        ).read_bytes()


@pytest.mark.parametrize("profile", profile_names())
def test_nothing_but_the_named_files_is_left(built: dict[str, Path], profile: str) -> None:
    assert sorted(path.name for path in built[profile].iterdir()) == sorted(f"{name}.yaml" for name in NAMES[profile])


def test_a_profile_without_a_world_has_no_end_to_end_pipeline() -> None:
    assert {profile: load_profile(profile).world is not None for profile in profile_names()} == {
        profile: "end_to_end" in names for profile, names in NAMES.items()
    }


@pytest.mark.parametrize(("profile", "name"), [(profile, name) for profile in NAMES for name in NAMES[profile]])
def test_the_profile_travels_as_the_default_of_a_parameter(built: dict[str, Path], profile: str, name: str) -> None:
    found = parameters(built[profile] / f"{name}.yaml")
    assert set(found) == PARAMETERS[name]
    text = found["profile"]["defaultValue"]
    # where stages run is decided before, so that other resources are no other input
    assert parse_profile(text) == load_profile(profile).model_copy(update={"cluster": None})
    assert "\n" not in text
    assert text == canonical_json(json.loads(text))


@pytest.mark.parametrize(("profile", "name"), [(profile, name) for profile in NAMES for name in NAMES[profile]])
def test_kubeflow_reads_it_back(built: dict[str, Path], profile: str, name: str) -> None:
    loaded = components.load_component_from_file(str(built[profile] / f"{name}.yaml"))
    assert loaded.name == f"taskmem-{name.replace('_', '-')}"
    assert set(loaded.component_spec.inputs or {}) == PARAMETERS[name]
    # kfp lets no output out of what an exit handler watches over
    assert bool(loaded.component_spec.outputs) == (name != "adaptation")


@pytest.mark.parametrize(("profile", "name"), [(profile, name) for profile in NAMES for name in NAMES[profile]])
def test_images_are_those_of_the_file(built: dict[str, Path], profile: str, name: str) -> None:
    spec = documents(built[profile] / f"{name}.yaml")[0]
    containers = [e["container"] for e in spec["deploymentSpec"]["executors"].values() if "container" in e]
    assert {container["image"] for container in containers} == set(IMAGES.values())


@pytest.mark.parametrize("profile", profile_names())
def test_the_names_of_secrets_are_in_it_and_their_values_never(built: dict[str, Path], profile: str) -> None:
    for path in built[profile].iterdir():
        text = path.read_text(encoding="utf-8")
        assert VALUE not in text
        assert ("AWS_SECRET_ACCESS_KEY" in text) == (profile == "qwen3-vl-30b")


@pytest.mark.parametrize("profile", profile_names())
def test_nothing_of_the_machine_that_compiled_it_is_in_it(built: dict[str, Path], profile: str) -> None:
    here = (str(ROOT), str(Path.home()), sys.prefix, str(built[profile].parent))
    for path in built[profile].iterdir():
        for document in documents(path):
            assert [text for text in texts(document) if any(place in text for place in here)] == []


def test_without_digests_a_warning_says_what_that_means(tmp_path: Path) -> None:
    done = taskmem("compile", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "".join(f"build/{name}.yaml\n" for name in NAMES["miniature"]) + WARNING


def test_one_image_by_tag_is_enough_for_the_warning(tmp_path: Path) -> None:
    given = images(tmp_path, {**IMAGES, "train": "registry.test/train:1"})
    done = taskmem("compile", "--images", given, "--profile", "qwen3-vl-30b", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "build/phase_one.yaml\nbuild/adaptation.yaml\n" + WARNING


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({**IMAGES, "train": "taskmem"}, "images.json: train: 'taskmem' is not a full image reference; write "),
        ({"data": IMAGES["data"]}, "images.json: train: Field required; give one reference for each of data, train"),
        ("[", "images.json: "),
    ],
)
def test_a_malformed_file_of_images_is_one_line_and_nothing_is_written(tmp_path: Path, content: Any, said: str) -> None:
    given = images(tmp_path, content)
    if isinstance(content, str):
        given.write_text(content, encoding="utf-8")
    done = taskmem("compile", "--images", given.name, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"taskmem: {said}")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["images.json"]


def test_an_unknown_profile_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    done = taskmem("compile", "--profile", "nobody", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "nobody" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_compiled_again_into_the_same_folder_nothing_of_another_profile_is_left(tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    for name in NAMES["miniature"]:
        (tmp_path / "build" / f"{name}.yaml").write_text("something older")
    words = ("compile", "--profile", "qwen3-vl-30b", "--images", images(tmp_path))
    assert taskmem(*words, cwd=tmp_path).returncode == 0
    assert sorted(path.name for path in (tmp_path / "build").iterdir()) == ["adaptation.yaml", "phase_one.yaml"]
    for name in NAMES["qwen3-vl-30b"]:
        assert set(parameters(tmp_path / "build" / f"{name}.yaml")) == PARAMETERS[name]
