"""What `taskmem phase-one --plan` says of a GPU's memory, and that it says so before anything starts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration
from typer.testing import CliRunner

from pipelines.cli import app
from taskmem.config import Profile, load_profile
from taskmem.errors import UserError
from taskmem.phase_one.plan import Plan, Topology, checked, fitting, plan, topology_of
from taskmem.phase_one.sizes import (
    Sizes,
    longest_context,
    read_config,
    sizes_of,
    text_layer_bytes,
    true_config,
    vision_layer_bytes,
)

PAPER = load_profile("qwen3-vl-30b")
H200, FOUR_NODES, ONE = Topology(1, 8, 141.0), Topology(4, 8, 80.0), Topology(1, 1, 80.0)


@pytest.fixture(scope="module")
def sizes() -> Sizes:
    return sizes_of(true_config())


def spread(**changes: Any) -> Profile:
    phase = PAPER.phase_one
    settings = phase.spread.model_copy(update=changes)
    return PAPER.model_copy(update={"phase_one": phase.model_copy(update={"spread": settings})})


def term(planned: Plan, name: str, moment: str = "learning") -> float:
    (found,) = [t.gb for t in planned.terms if t.name == name and t.moment == moment]
    return found


def static(planned: Plan) -> float:
    return planned.held("always") - term(planned, "reserve", "always")


def test_the_true_model_has_48_layers_and_31_07_billion_parameters(sizes: Sizes) -> None:
    assert sizes.parameters == 31_070_754_032
    assert (sizes.layers, Qwen3VLMoeConfig().text_config.num_hidden_layers) == (48, 24)


@pytest.mark.parametrize(("gpus", "gb"), [(8, 62.1), (16, 31.1), (32, 15.5)])
def test_what_zero_3_holds_always_is_16_bytes_of_every_parameter_shared(sizes: Sizes, gpus: int, gb: float) -> None:
    assert static(plan(sizes, PAPER, Topology(gpus // 8, 8, 141.0))) == pytest.approx(gb, abs=0.05)


@pytest.mark.parametrize("topology", [H200, FOUR_NODES], ids=str)
def test_one_node_of_h200s_and_four_of_80_gb_fit(sizes: Sizes, topology: Topology) -> None:
    assert checked(sizes, PAPER, topology).peak < topology.memory


def test_one_gpu_of_80_gb_is_refused_with_what_would_fit(sizes: Sizes) -> None:
    with pytest.raises(UserError, match=r"needs 540 GB of each; what fits: 2 x 8 GPUs of 80 GB, or 1 x 8 .* 141"):
        checked(sizes, PAPER, ONE)
    for topology in fitting(sizes, PAPER, ONE):
        assert plan(sizes, PAPER, topology).fits
        if topology.gpus > 1:
            half = Topology(max(1, topology.nodes // 2), min(8, topology.gpus // 2), topology.memory)
            assert not plan(sizes, PAPER, half).fits


def test_without_zero_no_gpu_is_large_enough(sizes: Sizes) -> None:
    planned = plan(sizes, spread(zero=None), H200)
    assert static(planned) == pytest.approx(22 * 31.07, rel=0.01)
    assert not planned.fits


def test_each_setting_that_spares_memory_spares_it(sizes: Sizes) -> None:
    usual = plan(sizes, PAPER, H200)
    kept = plan(sizes, spread(gradient_checkpointing=False), H200)
    assert term(kept, "activations") > 20 * term(usual, "activations")
    assert not kept.fits
    groups = plan(sizes, spread(micro_batch=8), H200)
    assert term(groups, "layer or head") == pytest.approx(8 * term(usual, "layer or head"))
    many = plan(sizes, spread(sampled=2), H200)
    assert term(many, "key-value cache", "sampling") == pytest.approx(2 * term(usual, "key-value cache", "sampling"))
    whole = plan(sizes, spread(sampling="whole"), H200)
    assert term(whole, "gathered weights", "sampling") == pytest.approx(62.1, abs=0.1)


def test_the_cache_of_a_token_is_its_keys_and_values_in_every_layer(sizes: Sizes) -> None:
    assert sizes.cache == 48 * 2 * 4 * 128 * 2
    # a window of five segments of 640 x 640: ten steps of 400 tokens each
    assert 20_000 < longest_context(sizes, PAPER).tokens < 22_000


def kept_bytes(run: Any, model: Any) -> int:
    """Bytes of all storages that autograd saves while `run`, without the parameters'."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


def small(layers: int, experts: int, active: int, hidden: int) -> tuple[Qwen3VLMoeConfig, Any]:
    config = Qwen3VLMoeConfig(
        text_config={
            "hidden_size": hidden,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "moe_intermediate_size": 48,
            "num_experts": experts,
            "num_experts_per_tok": active,
            "num_hidden_layers": layers,
            "vocab_size": 64,
        },
        vision_config={
            "depth": layers,
            "hidden_size": 64,
            "intermediate_size": 112,
            "num_heads": 4,
            "patch_size": 8,
            "out_hidden_size": hidden,
            "deepstack_visual_indexes": [],
            "num_position_embeddings": 64,
        },
    )
    model = Qwen3VLMoeForConditionalGeneration(config).to(torch.bfloat16).train()
    model.set_experts_implementation("grouped_mm")
    return config, model


@pytest.mark.parametrize(("experts", "active", "hidden"), [(16, 4, 64), (8, 2, 64), (16, 8, 128)])
def test_what_a_decoder_layer_keeps_is_what_autograd_saves(experts: int, active: int, hidden: int) -> None:
    tokens, kept = 96, []
    for layers in (1, 2):
        config, model = small(layers, experts, active, hidden)
        given = torch.randn(1, tokens, hidden, dtype=torch.bfloat16, requires_grad=True)
        mask = torch.zeros(1, 1, tokens, tokens, dtype=torch.bfloat16)
        places = torch.arange(tokens).expand(3, 1, tokens)

        def run(model: Any = model, given: Any = given, mask: Any = mask, places: Any = places) -> None:
            language = model.model.language_model
            language(inputs_embeds=given, attention_mask=mask, position_ids=places, use_cache=False)

        kept.append(kept_bytes(run, model))
    assert (kept[1] - kept[0]) / tokens == pytest.approx(text_layer_bytes(config.text_config, 16), rel=0.01)


def test_what_a_layer_of_the_vision_tower_keeps_is_what_autograd_saves() -> None:
    grid, kept = torch.tensor([[2, 8, 12]]), []
    patches = int(grid.prod())
    for layers in (1, 2):
        config, model = small(layers, 4, 2, 64)
        given = torch.randn(patches, 3 * 2 * 64, dtype=torch.bfloat16, requires_grad=True)
        kept.append(kept_bytes(lambda m=model, g=given: m.model.visual(g, grid_thw=grid), model))  # type: ignore[misc]
    assert (kept[1] - kept[0]) / patches == pytest.approx(vision_layer_bytes(config.vision_config), rel=0.01)


def said(*options: str) -> Any:
    return CliRunner().invoke(app, ["phase-one", "--plan", *options])


@pytest.mark.parametrize("options", [(), ("--nodes", "4", "--gpus-per-node", "8", "--gpu-memory", "80")], ids=str)
def test_the_table_lines_up_at_80_columns(options: tuple[str, ...]) -> None:
    result = said(*options)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line.split()[-1] for line in lines if line.startswith("at its worst")] == ["fits"]
    assert max(map(len, lines)) <= 80
    amounts = [line for line in lines if line.startswith("  ") and not line.startswith("   ")]
    assert len(amounts) == 14
    assert len({line.index(".") for line in (row[:40] for row in amounts)}) == 1


def test_an_impossible_topology_is_refused_before_anything_starts() -> None:
    result = said("--nodes", "1", "--gpus-per-node", "1", "--gpu-memory", "80")
    assert "does not fit" in result.output
    assert isinstance(result.exception, UserError)
    assert "what fits: 2 x 8 GPUs of 80 GB" in str(result.exception)


def test_a_policy_s_own_configuration_is_planned_with(base: Path) -> None:
    given = ("--policy", str(base), "--nodes", "1", "--gpus-per-node", "2", "--gpu-memory", "4")
    result = said("--profile", "miniature", *given)
    assert result.exit_code == 0, result.exception
    assert "all 0.00 B parameters" in " ".join(result.output.split())


def test_a_profile_without_accelerators_needs_to_be_told_of_them() -> None:
    with pytest.raises(UserError, match="--gpus-per-node"):
        topology_of(load_profile("miniature").cluster, None, None, None)
    assert topology_of(PAPER.cluster, None, None, None) == H200
    assert topology_of(PAPER.cluster, 4, None, 80.0) == FOUR_NODES


def test_what_is_no_policy_s_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="not the configuration of a qwen3_vl_moe model"):
        read_config(tmp_path / "config.json")
