"""An exported policy: experts in the hub's layout, settings vLLM needs, and a file that says what it is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from taskmem.errors import UserError
from taskmem.files import sha256_tree
from taskmem.policy.export import experts_layout, export_policy
from taskmem.policy.exported import Checked, read_export, verify_export

DIGEST = "d" * 64
GATE_UP, DOWN = "l.{}.mlp.experts.gate_up_proj", "l.{}.mlp.experts.down_proj"
CHECKED = Checked(vllm="0.0", contexts=1, tokens=1)


@pytest.fixture
def policy(checkpoint: Path, tmp_path: Path) -> Path:
    shutil.copytree(checkpoint, tmp_path / "policy")
    return tmp_path / "policy"


def changed(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_experts_are_transposed_and_all_else_is_as_it_was(policy: Path, tmp_path: Path) -> None:
    export = export_policy(policy, DIGEST, tmp_path / "out", None)
    ours, theirs = load_file(policy / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    experts = {name for name in ours if ".experts." in name}
    assert export.transposed == len(experts) == 8
    for name, tensor in ours.items():
        assert torch.equal(theirs[name], tensor.transpose(1, 2) if name in experts else tensor), name


def test_a_policy_in_the_hub_s_layout_stays_so(policy: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    # the shipped size has square matrices, which transformers would misread in that layout
    shrink(policy)
    export_policy(policy, DIGEST, first, None)
    (first / "export.json").unlink()
    assert export_policy(first, DIGEST, second, None).transposed == 0
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


def shrink(policy: Path) -> None:
    """Half as wide experts, so that no matrix is square."""
    tensors = load_file(policy / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith("down_proj") and ".experts." in name:
            tensors[name] = tensor[..., :32].contiguous()
        if name.endswith("gate_up_proj"):
            tensors[name] = tensor[:, :64].contiguous()
    save_file(tensors, policy / "model.safetensors", {"format": "pt"})
    config = json.loads((policy / "config.json").read_text())
    changed(policy / "config.json", text_config={**config["text_config"], "moe_intermediate_size": 32})


def test_a_square_matrix_in_the_hub_s_layout_is_refused(policy: Path, tmp_path: Path) -> None:
    export_policy(policy, DIGEST, tmp_path / "first", None)
    (tmp_path / "first" / "export.json").unlink()
    with pytest.raises(UserError, match="a square expert matrix in the hub's layout"):
        export_policy(tmp_path / "first", DIGEST, tmp_path / "second", None)


@pytest.mark.parametrize(("hidden", "expert"), [(96, 96), (64, 32), (2048, 768), (32, 96)])
def test_both_matrices_together_tell_the_layout(hidden: int, expert: int) -> None:
    stored = {GATE_UP.format(0): (4, 2 * expert, hidden), DOWN.format(0): (4, hidden, expert)}
    turned = {name: (shape[0], shape[2], shape[1]) for name, shape in stored.items()}
    assert experts_layout(stored, hidden, expert, "here") == "transformers"
    assert experts_layout(turned, hidden, expert, "here") == "hub"


def test_layers_must_agree_on_a_layout() -> None:
    mixed = {GATE_UP.format(0): (4, 6, 5), DOWN.format(0): (4, 5, 3)} | {
        GATE_UP.format(1): (4, 5, 6),
        DOWN.format(1): (4, 3, 5),
    }
    for shapes in (mixed, {}, {GATE_UP.format(0): (4, 6, 5)}):
        with pytest.raises(UserError, match=r"here: . layers of fused experts that are neither"):
            experts_layout(shapes, 5, 3, "here")


def test_settings_that_vllm_needs_are_added(policy: Path, tmp_path: Path) -> None:
    export_policy(policy, DIGEST, tmp_path / "out", None)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"].pop("norm_topk_prob") is True
    assert config == json.loads((policy / "config.json").read_text())
    processor = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    image, video = processor["image_processor"], processor["video_processor"]
    assert image["image_mean"] == video["image_mean"] == [0.5] * 3
    before = json.loads((policy / "processor_config.json").read_text())
    assert before["image_processor"]["image_mean"] != image["image_mean"]
    assert before["video_processor"] == video


def test_export_json_names_the_policy_and_every_file(policy: Path, tmp_path: Path) -> None:
    export = export_policy(policy, DIGEST, tmp_path / "out", lambda folder: CHECKED)
    assert export == read_export(tmp_path / "out") == verify_export(tmp_path / "out")
    assert (export.policy, export.layers, export.hidden_size, export.checked) == (DIGEST, 4, 96, CHECKED)
    assert set(export.files) == {p.name for p in policy.iterdir()}


def test_the_same_policy_gives_the_same_bytes(policy: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export_policy(policy, DIGEST, tmp_path / name, None)
    assert sha256_tree(tmp_path / "one") == sha256_tree(tmp_path / "two")


@pytest.mark.parametrize("name", ["model.safetensors", "chat_template.jinja", "new.json"])
def test_a_file_that_changed_after_the_export_is_named(name: str, policy: Path, tmp_path: Path) -> None:
    export_policy(policy, DIGEST, tmp_path / "out", None)
    with (tmp_path / "out" / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(UserError, match=f"{name}: .*export the policy again"):
        verify_export(tmp_path / "out")


def test_a_lost_file_is_named(policy: Path, tmp_path: Path) -> None:
    export_policy(policy, DIGEST, tmp_path / "out", None)
    (tmp_path / "out" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer.json: missing"):
        verify_export(tmp_path / "out")


def test_a_failed_check_leaves_the_earlier_export(policy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_policy(policy, DIGEST, out, None)
    before = sha256_tree(out)

    def fails(folder: Path) -> Checked:
        assert (folder / "model.safetensors").is_file()
        raise UserError("not the same tokens")

    with pytest.raises(UserError, match="not the same tokens"):
        export_policy(policy, "e" * 64, out, fails)
    assert sha256_tree(out) == before
    assert {p.name for p in tmp_path.iterdir()} == {"policy", "out"}


def test_a_folder_of_something_else_is_not_replaced(policy: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="exists and is no exported policy"):
        export_policy(policy, DIGEST, tmp_path / "mine", None)
    with pytest.raises(UserError, match="in the policy's own folder"):
        export_policy(policy, DIGEST, policy / "export", None)


def test_pickled_weights_are_refused(policy: Path, tmp_path: Path) -> None:
    (policy / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(UserError, match=r"pytorch_model.bin: pickled weights"):
        export_policy(policy, DIGEST, tmp_path / "out", None)


def test_another_kind_of_folder_is_refused(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config.json is missing"):
        export_policy(tmp_path / "nowhere", DIGEST, tmp_path / "out", None)
    changed(policy / "config.json", model_type="llama")
    with pytest.raises(UserError, match="not the configuration of a qwen3_vl_moe"):
        export_policy(policy, DIGEST, tmp_path / "out", None)


def test_a_folder_without_export_json_is_refused(policy: Path) -> None:
    with pytest.raises(UserError, match="write the folder with `taskmem export`"):
        read_export(policy)
