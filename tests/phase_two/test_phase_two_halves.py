"""Each half alone holds its own part of the policy, and together they are the policy."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from exactness_parts import case, encoder_of, six_layers
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLMoeForConditionalGeneration

from taskmem.errors import UserError
from taskmem.phase_two.halves import load_lower, load_upper
from taskmem.phase_two.trunk import pack_trunks, trunks
from taskmem.policy.transformers_policy import load_checkpoint


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return six_layers(tmp_path_factory.mktemp("halves") / "six")


def shards_of(policy: Path, *parts: str) -> set[Path]:
    """The shards that hold a tensor whose name contains one of `parts`."""
    index = json.loads((policy / "model.safetensors.index.json").read_text())["weight_map"]
    return {policy / shard for name, shard in index.items() if any(part in name for part in parts)}


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("layer", [0, 2, 5])
def test_the_halves_share_no_weight_and_leave_none_out(six: Path, layer: int) -> None:
    whole = Qwen3VLMoeForConditionalGeneration.from_pretrained(six)
    lower, upper = load_lower(six, layer), load_upper(six, layer)
    assert size(lower) + size(upper) == size(whole)
    assert len(lower.model.language_model.layers) == layer + 1
    assert sorted(upper.layers) == [str(number) for number in range(layer + 1, 6)]


def test_a_tied_head_is_the_only_weight_that_both_halves_hold(base: Path) -> None:
    whole, _ = load_checkpoint(base)
    lower, upper = load_lower(base, 1), load_upper(base, 1)
    assert torch.equal(upper.head.weight, lower.model.get_input_embeddings().weight)
    assert size(lower) + size(upper) == size(whole) + upper.head.weight.numel()


def test_a_half_does_not_open_the_shards_of_the_other(six: Path, tmp_path: Path) -> None:
    lower_only = shards_of(six, "visual", "embed_tokens", *(f"layers.{i}." for i in range(3)))
    upper_only = shards_of(six, "lm_head", "language_model.norm", *(f"layers.{i}." for i in range(3, 6)))
    for load, others in ((load_lower, upper_only - lower_only), (load_upper, lower_only - upper_only)):
        assert len(others) > 5
        torn = shutil.copytree(six, tmp_path / load.__name__)
        for shard in others:
            (torn / shard.name).unlink()
        wanted, found = load(six, 2).state_dict(), load(torn, 2).state_dict()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_experts_saved_the_other_way_round_are_turned(six: Path, tmp_path: Path) -> None:
    """The published checkpoint holds them as [experts, in, out]."""
    turned = shutil.copytree(six, tmp_path / "turned")
    for shard in shards_of(turned, "experts"):
        tensors = load_file(shard)
        save_file(
            {n: t.transpose(1, 2).contiguous() if "experts" in n else t for n, t in tensors.items()},
            shard,
            {"format": "pt"},
        )
    wanted, found = load_upper(six, 2).state_dict(), load_upper(turned, 2).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("layer", [0, 2, 5])
@torch.no_grad()
def test_the_halves_in_turn_give_the_whole_models_states(six: Path, layer: int) -> None:
    encoder = encoder_of(six)
    of = case(encoder, pairs=1, video=True)
    found = trunks(load_lower(six, layer), encoder, of.prompts, of.groups)
    upper = load_upper(six, layer)
    packed = pack_trunks(
        [t.prompt for t in found], [list(t.completions.values()) for t in found], layer, torch.device("cpu")
    )
    states = upper.run(packed.hidden, packed.layout, packed.visual, packed.deepstack)
    whole = Qwen3VLMoeForConditionalGeneration.from_pretrained(six).eval()
    for row, (prompt, group) in enumerate(zip(of.prompts, of.groups, strict=True)):
        inputs, _ = encoder.batch([prompt], [group[0]], side="right")
        wanted = whole.model(**inputs).last_hidden_state[0]
        start = packed.layout.prompt.shape[1]
        torch.testing.assert_close(states[row, : len(prompt.ids)], wanted[: len(prompt.ids)], rtol=1e-3, atol=1e-4)
        tail = states[row, start : start + len(group[0])]
        torch.testing.assert_close(tail, wanted[len(prompt.ids) :], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layer", [6, 48])
def test_a_layer_that_the_policy_does_not_have_is_refused(six: Path, layer: int) -> None:
    with pytest.raises(UserError, match=rf"decoder layers 0 to 5, phase_two\.layer is {layer}") as refusal:
        load_upper(six, layer)
    assert "\n" not in str(refusal.value)


def test_a_checkpoint_with_a_missing_weight_is_refused(base: Path, tmp_path: Path) -> None:
    torn = shutil.copytree(base, tmp_path / "torn")
    tensors = load_file(torn / "model.safetensors")
    del tensors["model.language_model.layers.3.mlp.gate.weight"]
    save_file(tensors, torn / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are missing, first .*layers\.3\.mlp\.gate\.weight"):
        load_upper(torn, 1)


def test_a_weight_of_another_shape_is_refused(base: Path, tmp_path: Path) -> None:
    torn = shutil.copytree(base, tmp_path / "torn")
    tensors = load_file(torn / "model.safetensors")
    tensors["model.language_model.norm.weight"] = torch.ones(95)
    save_file(tensors, torn / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"norm\.weight: has shape \(95,\), not \(96,\)"):
        load_upper(torn, 1)


@pytest.mark.parametrize("cut", [0, 100, -1])
def test_a_checkpoint_that_is_cut_off_is_refused(base: Path, tmp_path: Path, cut: int) -> None:
    torn = shutil.copytree(base, tmp_path / "torn")
    data = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(data[:cut])
    with pytest.raises(UserError, match="cannot be loaded") as refusal:
        load_lower(torn, 1)
    assert "\n" not in str(refusal.value)


def test_another_kind_of_model_and_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no policy checkpoint"):
        load_upper(tmp_path, 1)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    with pytest.raises(UserError, match="model_type is qwen3"):
        load_upper(tmp_path, 1)
    for config in ("[]", '{"model_type": "qwen3_vl_moe", "text_config": 5}'):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(UserError, match=rf"^{tmp_path}.*; (copy the checkpoint again|give another policy)$"):
            load_upper(tmp_path, 1)
