"""An adapter made again: on a real S3 server, from a fresh clone of its lineage, byte for byte."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from audit_parts import broken, one_byte_off
from s3_servers import AWS_NAMES, client, environment, moto, new_bucket
from safetensors.numpy import load_file, save_file
from trained_parts import Night, night
from typer.testing import CliRunner

from taskmem.audit.adapter import audit_adapter
from taskmem.audit.rebuild import Rebuilt, rebuild
from taskmem.audit.vectors import Distance
from taskmem.commands.audit import audit_app
from taskmem.config import Profile
from taskmem.files import sha256_file
from taskmem.registry.objects import file_key
from taskmem.registry.versions import read_manifest


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Lead boto3, and DVC with it, to the loopback server."""
    nothing = tmp_path_factory.mktemp("aws") / "config"
    nothing.touch()
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if AWS_NAMES.fullmatch(name):
                patch.delenv(name)
        for name, value in environment(moto()).items():
            # DVC's S3 library takes no device for a file
            patch.setenv(name, str(nothing) if value == os.devnull else value)
        yield


@pytest.fixture(scope="module")
def finished(server: None, tmp_path_factory: pytest.TempPathFactory) -> Night:
    root = tmp_path_factory.mktemp("night")
    return night(root, f"s3://{new_bucket()}/registry", f"s3://{new_bucket()}/data")


def verify(finished: Night, *more: str) -> tuple[int, str, str]:
    arguments = ["verify", "door@v1", "--store", finished.url, "--lineage", finished.lineage, *more]
    done = CliRunner().invoke(audit_app, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done.exit_code, done.stdout, done.stderr


def trained_elsewhere(finished: Night, work: Path, factor: float) -> Rebuilt:
    """What `rebuild` says if training gives the registry's vector times `factor`, half of it turned if below zero."""

    def train(preferences: Path, rollouts: Path, segments: Path, policy: Path, name: str, *rest: object) -> None:
        out = rest[-1]
        assert isinstance(out, Path)
        for path in finished.adapter.iterdir():
            (out / name).mkdir(parents=True, exist_ok=True)
            (out / name / path.name).write_bytes(path.read_bytes())
        ((key, vector),) = load_file(finished.adapter / "adapter_model.safetensors").items()
        vector = vector * abs(factor)
        vector[: len(vector) // 2] *= 1 if factor > 0 else -1
        save_file({key: vector}, out / name / "adapter_model.safetensors")

    return rebuild(finished.store, finished.lineage, "door@v1", work, train)


def test_an_adapter_is_made_again_from_a_fresh_clone_of_its_lineage_and_is_identical(
    finished: Night, tmp_path: Path
) -> None:
    code, said, wrong = verify(finished, "--json", str(tmp_path / "verified.json"))
    assert (code, wrong) == (0, "")
    assert "door@v1: identical\n" in said
    document = json.loads((tmp_path / "verified.json").read_text())
    assert (document["identical"], document["holds"]) == (True, True)
    assert {name: f["here"] for name, f in document["files"].items()} == {
        name: sha256_file(finished.adapter / name) for name in document["files"]
    }
    assert document["distance"]["difference"] == 0
    assert "torch" in document["sides"]["here"]["platform"]


def test_a_clone_elsewhere_gets_with_dvc_pull_what_the_stages_wrote(finished: Night, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(
        ["git", "clone", "--quiet", "--branch", "door@v1", finished.lineage, str(clone)],
        check=True,
        env={**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"},
    )
    variables = {**os.environ, "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(tmp_path / "site")}
    pull = [sys.executable, "-m", "dvc", "pull", "--quiet"]
    done = subprocess.run(pull, cwd=clone, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    place = clone / "environments" / "door"
    for name in ("adapter_model.safetensors", "adapter_config.json", "training.json", "influence.json"):
        assert (place / "adapter" / name).read_bytes() == (finished.adapter / name).read_bytes()
    pairs = finished.root / "preferences" / "door" / "preferences.jsonl"
    assert (place / "preferences" / "preferences.jsonl").read_bytes() == pairs.read_bytes()
    assert (place / "events.jsonl").read_bytes() == (finished.root / "events" / "door.jsonl").read_bytes()


def test_every_link_holds_on_s3(finished: Night, tmp_path: Path) -> None:
    assert broken(audit_adapter(finished.store, finished.lineage, "door@v1", tmp_path / "audit")) == []


def objects(url: str) -> dict[str, bytes]:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    s3 = client(moto())
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
    return {entry["Key"]: s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read() for entry in listed}


@pytest.fixture
def remote_object(finished: Night) -> Iterator[tuple[str, str]]:
    """Bucket and key of the object that holds the pairs; it is put back afterwards."""
    data = (finished.root / "preferences" / "door" / "preferences.jsonl").read_bytes()
    (key,) = [key for key, held in objects(finished.remote).items() if held == data]
    bucket = finished.remote.removeprefix("s3://").partition("/")[0]
    yield bucket, key
    client(moto()).put_object(Bucket=bucket, Key=key, Body=data)


def test_one_byte_of_a_pair_in_the_bucket_is_found_before_anything_is_trained(
    finished: Night, remote_object: tuple[str, str]
) -> None:
    bucket, key = remote_object
    data = (finished.root / "preferences" / "door" / "preferences.jsonl").read_bytes()
    client(moto()).put_object(Bucket=bucket, Key=key, Body=one_byte_off(data))
    code, said, wrong = verify(finished)
    assert code == 2
    assert "door@v1: not trained again: 1 of its inputs do not hold" in said
    first, *others = wrong.splitlines()
    assert first.startswith("taskmem: pairs: damaged: environments/door/preferences/preferences.jsonl (files/md5/")
    assert others == ["taskmem: door@v1: not trained again: 1 of its inputs do not hold"]


def test_an_object_that_is_gone_from_the_bucket_is_named(finished: Night, remote_object: tuple[str, str]) -> None:
    bucket, key = remote_object
    client(moto()).delete_object(Bucket=bucket, Key=key)
    code, _, wrong = verify(finished)
    assert code == 2
    assert wrong.startswith("taskmem: pairs: missing: environments/door/preferences/preferences.jsonl (files/md5/")


def test_one_byte_of_a_clip_is_found_before_anything_is_trained(finished: Night) -> None:
    (clip, *_) = sorted((finished.root / "film").rglob("*.mp4"))
    (key,) = [key for key, held in objects(finished.remote).items() if held == clip.read_bytes()]
    bucket = finished.remote.removeprefix("s3://").partition("/")[0]
    client(moto()).put_object(Bucket=bucket, Key=key, Body=one_byte_off(clip.read_bytes()))
    try:
        code, _, wrong = verify(finished)
    finally:
        client(moto()).put_object(Bucket=bucket, Key=key, Body=clip.read_bytes())
    assert code == 2
    assert wrong.startswith(f"taskmem: segments: damaged: shared/segments/{clip.relative_to(finished.root / 'film')} (")


def test_an_adapter_that_is_damaged_in_the_registry_s_bucket_is_not_trained_again(finished: Night) -> None:
    key = file_key("door", read_manifest(finished.store, "door", "v1").files.adapter_model)
    bucket, _, prefix = finished.url.removeprefix("s3://").partition("/")
    kept = client(moto()).get_object(Bucket=bucket, Key=f"{prefix}/{key}")["Body"].read()
    client(moto()).put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=one_byte_off(kept))
    try:
        code, said, wrong = verify(finished)
    finally:
        client(moto()).put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=kept)
    assert code == 2
    assert wrong.startswith(
        f"taskmem: adapter_model.safetensors: damaged: {key}: the object holds other bytes than were"
    )
    assert "not trained again" in said


def test_a_vector_a_little_longer_is_what_another_machine_explains(finished: Night, tmp_path: Path) -> None:
    done = trained_elsewhere(finished, tmp_path / "work", 1.0001)
    assert (done.identical, done.chain.broken) == (False, ())
    assert "another processor or other versions explain a difference of this size" in done.verdict


def test_a_vector_that_points_elsewhere_is_not(finished: Night, tmp_path: Path) -> None:
    done = trained_elsewhere(finished, tmp_path / "work", -1.0)
    assert "this is more than another processor or other versions explain" in done.verdict


def test_the_settings_that_are_trained_with_are_the_recorded_ones(finished: Night, tmp_path: Path) -> None:
    seen: list[tuple[Profile, int]] = []

    def train(*arguments: object) -> None:
        profile, seed = arguments[5], arguments[6]
        assert isinstance(profile, Profile)
        assert isinstance(seed, int)
        seen.append((profile, seed))
        raise InterruptedError

    with pytest.raises(InterruptedError):
        rebuild(finished.store, finished.lineage, "door@v1", tmp_path / "work", train)
    ((profile, seed),) = seen
    assert (profile.phase_two.steps, profile.mining.candidates, profile.cluster, seed) == (3, 6, None, 5)


@pytest.mark.parametrize(
    ("difference", "norm", "explained"),
    [(0.0, 1.0, True), (0.0009, 1.0, True), (0.0011, 1.0, False), (0.0011, 2.0, True), (None, 1.0, False)],
)
def test_what_another_machine_explains_has_a_bound(difference: float | None, norm: float, explained: bool) -> None:
    assert Distance((1, 1), (norm, 1.0), difference, 0.9).explained is explained
