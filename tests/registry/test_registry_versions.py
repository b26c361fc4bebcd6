"""A version is whole or not there, never changes, and comes back to the byte."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registry_parts import (
    HIDDEN,
    KEY,
    OTHER_POLICY,
    POLICY,
    contents,
    objects,
    overwrite,
    provenance,
    publish_light,
    read_light,
    write_adapter,
)
from safetensors.numpy import save_file

from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.records import read_json
from taskmem.registry import Manifest, fetch, publish, read_manifest, versions
from taskmem.registry.objects import to_bytes
from taskmem.steer import read_adapter
from taskmem.store import LocalStore

UNSAFE = ["", ".", "..", "../door", "door/room", "door\\room", ".door", "-door", "a b", "door\n", "é", "x" * 129]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter")


def test_a_version_is_fetched_as_it_was_published(store: LocalStore, adapter: Path, tmp_path: Path) -> None:
    manifest = publish(store, "door", adapter, provenance(), read_adapter)
    assert fetch(store, "door", "v1", tmp_path / "fetched" / "door@v1") == manifest
    fetched = contents(tmp_path / "fetched" / "door@v1")
    assert Manifest.model_validate_json(fetched.pop("manifest.json")) == manifest
    assert fetched == contents(adapter)
    layer, vector = read_adapter(tmp_path / "fetched" / "door@v1")
    assert (layer, vector.numel()) == (1, HIDDEN)


def test_a_manifest_says_what_was_published_and_where_it_comes_from(store: LocalStore, adapter: Path) -> None:
    publish_light(store, write_adapter(adapter.with_name("first"), content=9))
    manifest = publish(store, "door", adapter, provenance(parent="v1", seed=7), read_adapter)
    assert (manifest.environment, manifest.version, manifest.name) == ("door", "v2", "door@v2")
    assert (manifest.layer, manifest.size) == (1, HIDDEN)
    _, vector = read_adapter(adapter)
    assert math.isclose(manifest.norm, float(vector.double().norm()), rel_tol=1e-12)
    assert manifest.files.by_name() == {name: sha256_bytes(data) for name, data in contents(adapter).items()}
    said = {name: getattr(manifest, name) for name in provenance().model_dump()}
    assert said == dict(provenance(parent="v1", seed=7))
    assert read_manifest(store, "door", "v2") == manifest


def test_versions_are_numbered_in_the_order_they_were_published(store: LocalStore, tmp_path: Path) -> None:
    published = [publish_light(store, write_adapter(tmp_path / str(n), n)) for n in range(11)]
    assert [manifest.version for manifest in published] == [f"v{n}" for n in range(1, 12)]
    assert versions(store, "door") == published


def test_the_same_night_again_changes_nothing(store: LocalStore, adapter: Path) -> None:
    first = publish_light(store, adapter)
    before = objects(store)
    # by then it is champion itself, and the code has gone on
    assert publish_light(store, adapter, parent="v1", commit="later", image="newer") == first
    assert objects(store) == before


def test_the_same_files_in_another_environment_are_its_own(store: LocalStore, adapter: Path) -> None:
    assert [publish_light(store, adapter, name).name for name in ("door", "room")] == ["door@v1", "room@v1"]
    assert [m.name for m in versions(store, "room")] == ["room@v1"]
    assert versions(store, "roo") == []


@pytest.mark.parametrize("change", ["vector", "training", "policy"])
def test_other_content_is_another_version(store: LocalStore, adapter: Path, tmp_path: Path, change: str) -> None:
    publish_light(store, adapter)
    other = write_adapter(tmp_path / "other", int(change == "vector"), OTHER_POLICY if change == "policy" else POLICY)
    if change == "training":
        (other / "training.json").write_text("{}")
    policy = OTHER_POLICY if change == "policy" else POLICY
    assert publish_light(store, other, policy=policy).version == "v2"


def test_what_happens_to_the_folder_later_does_not_reach_the_version(
    store: LocalStore, adapter: Path, tmp_path: Path
) -> None:
    original = contents(adapter)
    publish_light(store, adapter)
    (adapter / "training.json").write_text("changed")
    fetch(store, "door", "v1", tmp_path / "fetched")
    assert contents(tmp_path / "fetched")["training.json"] == original["training.json"]


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_however_often_and_in_whatever_order_each_content_is_one_version(
    tmp_path_factory: pytest.TempPathFactory, order: list[int]
) -> None:
    root = tmp_path_factory.mktemp("property")
    store, folders = LocalStore(root / "store"), {n: write_adapter(root / str(n), n) for n in set(order)}
    given_out = {n: publish_light(store, folders[n], pairs=f"{at:064x}") for at, n in reversed([*enumerate(order)])}
    again = [publish_light(store, folders[n]) for n in order]
    assert [given_out[n] for n in order] == again
    assert [m.version for m in versions(store, "door")] == [f"v{n + 1}" for n in range(len(set(order)))]
    for n, manifest in given_out.items():
        fetch(store, "door", manifest.version, root / "fetched")
        assert (
            contents(root / "fetched")["adapter_model.safetensors"]
            == (folders[n] / "adapter_model.safetensors").read_bytes()
        )


def reconfigure(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**read_json(path), **changes}))


def vector(folder: Path, numbers: Any, key: str = KEY) -> None:
    save_file({key: np.asarray(numbers)}, folder / "adapter_model.safetensors")


HOSTILE: dict[str, tuple[Any, str]] = {
    "NaN": (lambda f: vector(f, np.float32([1, float("nan")])), "holds NaN or infinity"),
    "infinity": (lambda f: vector(f, np.float32([1, float("inf")])), "holds NaN or infinity"),
    "half precision": (lambda f: vector(f, np.float16([1, 2])), "a steer vector is torch.float32"),
    "a matrix": (lambda f: vector(f, np.float32([[1, 2]])), "a steer vector is torch.float32"),
    "no values": (lambda f: vector(f, np.float32([])), "a vector of 0 values"),
    "another layer": (lambda f: reconfigure(f, layer=2), "adapter_config.json says layer 2"),
    "a layer below the first": (
        lambda f: (reconfigure(f, layer=-1), vector(f, np.float32([1]), KEY.replace("1", "-1"))),
        "after layer -1",
    ),
    "another method": (lambda f: reconfigure(f, peft_type="LORA"), "not a steer adapter"),
    "another policy": (lambda f: reconfigure(f, base_model_name_or_path=f"sha256:{OTHER_POLICY}"), "not on the policy"),
    "a policy by path": (
        lambda f: reconfigure(f, base_model_name_or_path="/models/x\ny"),
        r"/models/x\\ny, not on the",
    ),
    "no configuration": (lambda f: (f / "adapter_config.json").unlink(), "cannot be read"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "cannot be read"),
    "no curve": (lambda f: (f / "training.json").unlink(), "cannot be read"),
    "a curve that is no JSON": (lambda f: (f / "training.json").write_text("{"), "adapter: "),
    "a curve nested too deeply": (lambda f: (f / "training.json").write_text("[" * 100_000), "adapter: "),
    "a configuration that is no object": (
        lambda f: (f / "adapter_config.json").write_text("[]"),
        "not a steer adapter",
    ),
    "weights that are no tensors": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"\xff" * 100),
        "not a safetensors file",
    ),
    "weights of gigabytes": (
        lambda f: (f / "adapter_model.safetensors").open("r+b").truncate(1 << 32),
        "over 16777216 bytes",
    ),
    "a folder for a file": (
        lambda f: ((f / "training.json").unlink(), (f / "training.json").mkdir()),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_adapter_of_the_policy_is_refused_and_leaves_no_trace(
    store: LocalStore, adapter: Path, what: str
) -> None:
    spoil, reason = HOSTILE[what]
    spoil(adapter)
    with pytest.raises(UserError, match=reason) as caught:
        publish(store, "door", adapter, provenance(), read_adapter)
    assert str(caught.value).startswith(str(adapter))
    assert "\n" not in str(caught.value)
    assert objects(store) == {}


def test_a_vector_of_another_size_than_the_policy_s_is_refused(
    store: LocalStore, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"has {HIDDEN} values, the policy's hidden size is 16; train it again$"):
        publish(store, "door", adapter, provenance(), read_adapter, hidden_size=16)
    publish(store, "door", adapter, provenance(), read_adapter, hidden_size=HIDDEN)
    short = write_adapter(tmp_path / "short", hidden=HIDDEN - 1)
    with pytest.raises(UserError, match=rf"has {HIDDEN - 1} values, the policy's hidden size is {HIDDEN}; train it"):
        publish(store, "door", short, provenance(), read_adapter)
    other = write_adapter(tmp_path / "other", policy=OTHER_POLICY, hidden=HIDDEN - 1)
    assert publish(store, "door", other, provenance(policy=OTHER_POLICY), read_adapter).version == "v2"


def test_a_parent_must_be_a_version(store: LocalStore, adapter: Path) -> None:
    with pytest.raises(UserError, match="its parent door@v1 is not in the registry; publish that first"):
        publish_light(store, adapter, parent="v1")
    assert versions(store, "door") == []


@pytest.mark.parametrize("name", UNSAFE)
def test_an_environment_of_an_unsafe_name_is_refused(store: LocalStore, adapter: Path, name: str) -> None:
    for call in (
        lambda: publish_light(store, adapter, name),
        lambda: versions(store, name),
        lambda: fetch(store, name, "v1", adapter.with_name("fetched")),
    ):
        with pytest.raises(UserError, match=r"^environment .*: not a safe name; use letters") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert objects(store) == {}


@pytest.mark.parametrize("version", ["", "1", "v0", "v01", "V1", "v1/x", "../v1", "v1\n", "latest"])
def test_a_version_of_an_unsafe_name_is_refused(store: LocalStore, adapter: Path, version: str) -> None:
    publish_light(store, adapter)
    with pytest.raises(UserError, match=r"^version .*: not a safe name; use v1, v2 and so on"):
        fetch(store, "door", version, adapter.with_name("fetched"))


def test_an_unknown_version_is_the_users_mistake(store: LocalStore, adapter: Path) -> None:
    with pytest.raises(UserError, match=r"^door@v1: not in the registry, which has no version of it; choose another"):
        read_manifest(store, "door", "v1")
    for number in range(2):
        publish_light(store, write_adapter(adapter.with_name(str(number)), number))
    with pytest.raises(UserError, match=r"^door@v3: not in the registry, which has v1, v2 of it; choose another"):
        fetch(store, "door", "v3", adapter.with_name("fetched"))


def test_an_adapter_that_was_fetched_before_is_replaced_and_anything_else_is_not(
    store: LocalStore, adapter: Path, tmp_path: Path
) -> None:
    for number in range(2):
        publish_light(store, write_adapter(tmp_path / str(number), number))
    out = tmp_path / "out"
    out.mkdir()
    for number in range(2):
        fetch(store, "door", f"v{number + 1}", out)
        assert contents(out)["training.json"] == contents(tmp_path / str(number))["training.json"]
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("dear")
    for taken in (tmp_path / "letters", tmp_path / "letters" / "mine.txt"):
        with pytest.raises(UserError, match="holds something else than an adapter; give another folder"):
            fetch(store, "door", "v1", taken)
    assert contents(tmp_path / "letters") == {"mine.txt": b"dear"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


FILES = ["adapter_config.json", "adapter_model.safetensors", "training.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["other bytes", "missing"])
def test_a_file_that_is_not_the_published_one_is_found_and_nothing_is_written(
    store: LocalStore, adapter: Path, tmp_path: Path, name: str, damage: str
) -> None:
    key = f"registry/door/files/{publish_light(store, adapter).files.by_name()[name]}"
    if damage == "missing":
        store.delete(key)
    else:
        overwrite(store, key, store.get(key).data + b" ")
    what = "missing" if damage == "missing" else "damaged"
    with pytest.raises(UserError, match=rf"^{key}: {name} of door@v1 is {what}; delete it and publish .* again$"):
        fetch(store, "door", "v1", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "store"]


def test_any_flipped_bit_of_the_store_is_found(store: LocalStore, adapter: Path, tmp_path: Path) -> None:
    publish_light(store, adapter)
    for path in sorted((tmp_path / "store" / "objects").rglob("*~")):
        whole = path.read_bytes()
        for position in range(0, 8 * len(whole), 97):
            raw = bytearray(whole)
            raw[position // 8] ^= 1 << position % 8
            path.write_bytes(raw)
            with pytest.raises(UserError):
                fetch(store, "door", "v1", tmp_path / "out")
        path.write_bytes(whole)
    assert fetch(store, "door", "v1", tmp_path / "out").version == "v1"


def test_a_damaged_file_is_mended_by_publishing_the_folder_again(
    store: LocalStore, adapter: Path, tmp_path: Path
) -> None:
    first = publish_light(store, adapter)
    key = f"registry/door/files/{first.files.training}"
    overwrite(store, key, b"{}")
    with pytest.raises(UserError, match=f"^{key}: holds other bytes than its name says; delete the object"):
        publish_light(store, adapter)
    store.delete(key)
    assert publish_light(store, adapter) == first
    assert fetch(store, "door", "v1", tmp_path / "out") == first


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"{", "the document: Invalid JSON"), (b"{}", "parent: Field required"), (b"3", "the document: ")],
)
def test_a_manifest_that_is_none_is_found(store: LocalStore, adapter: Path, data: bytes, reason: str) -> None:
    publish_light(store, adapter)
    overwrite(store, "registry/door/versions/v1", data)
    told = (
        rf"^registry/door/versions/v1: no Manifest of this registry \({reason}.*\); restore the object from a backup$"
    )
    with pytest.raises(UserError, match=told):
        versions(store, "door")


@pytest.mark.parametrize("environment", ["door", "room"])
def test_the_manifest_of_another_version_is_found(store: LocalStore, adapter: Path, environment: str) -> None:
    publish_light(store, adapter)
    publish_light(store, write_adapter(adapter.with_name("second"), 1), environment)
    foreign = versions(store, environment)[-1]
    overwrite(store, "registry/door/versions/v1", to_bytes(foreign))
    with pytest.raises(UserError, match=rf"^registry/door/versions/v1: the manifest of {foreign.name}; restore"):
        read_manifest(store, "door", "v1")


def test_a_stray_object_among_the_versions_is_found(store: LocalStore, adapter: Path) -> None:
    store.put_if_absent("registry/door/versions/latest", b"v1")
    with pytest.raises(UserError, match="version 'latest': not a safe name"):
        publish_light(store, adapter)


def test_a_light_reader_sees_what_the_real_one_does(adapter: Path) -> None:
    (layer, light), (expected, real) = read_light(adapter), read_adapter(adapter)
    assert (layer, light.tolist()) == (expected, real.tolist())


def test_a_registry_needs_no_torch() -> None:
    code = "import sys, taskmem.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
