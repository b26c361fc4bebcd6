"""vLLM with steer adapters writes what transformers and PEFT write, whoever else is in the batch."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from plugin_parts import REFUSED, SIZE, AdapterPress, drawn, with_vector
from reference_parts import Reference

if TYPE_CHECKING:
    from serving_parts import Engine

pytestmark = pytest.mark.serving

VECTORS: dict[str | None, torch.Tensor] = {None: torch.zeros(SIZE)} | {
    f"env{i}@v3": drawn(i, norm) for i, norm in enumerate((1, 3, 5, 7))
}
Replies = dict[tuple[int, str | None], Any]


@pytest.fixture(scope="module")
def steered(engine: "Engine", press: AdapterPress, tmp_path_factory: pytest.TempPathFactory) -> "Engine":
    folder = tmp_path_factory.mktemp("steered")
    for name, vector in VECTORS.items():
        if name is not None:
            engine.load(name, press.save(folder / name, vector))
    return engine


@pytest.fixture(scope="module")
def alone(steered: "Engine", reference: Reference) -> Replies:
    """Each context's reply with each adapter and with none, one request at a time."""
    return {
        (number, name): steered.write([(ask.prompt, name)])[0]
        for number, ask in enumerate(reference.asks)
        for name in VECTORS
    }


def test_each_reply_equals_transformers_and_peft(alone: Replies, reference: Reference) -> None:
    furthest = 0.0
    for (number, name), reply in alone.items():
        tokens, logps = reference.write(reference.asks[number], VECTORS[name])
        assert reply.tokens == tokens, (number, name)
        furthest = max(furthest, *(abs(a - b) for a, b in zip(reply.logps, logps, strict=True)))
    assert furthest < 1e-5


def test_prompts_hold_each_step_s_marks_inside_the_clip_s(steered: "Engine", reference: Reference) -> None:
    # as transformers 5.10 and later write a clip: <start> time <start> step <end> time <start> step <end> <end>
    start, end, picture = 3, 4, 6
    for ask in reference.asks:
        read = steered.read(ask.prompt)
        assert tuple(read) == ask.ids
        depths, depth = set(), 0
        for token in read:
            depth += (token == start) - (token == end)
            if token == picture:
                depths.add(depth)
        assert (depths, depth) == ({2}, 0)


def test_large_vectors_change_what_is_written(alone: Replies, reference: Reference) -> None:
    for name in list(VECTORS)[3:]:
        assert any(alone[number, name] != alone[number, None] for number in range(len(reference.asks)))


def test_one_mixed_batch_equals_single_runs(steered: "Engine", alone: Replies, reference: Reference) -> None:
    # the same context with all adapters side by side, so that neighbours share cached prefixes wherever they may
    mixed = steered.write([(reference.asks[number].prompt, name) for number, name in alone])
    assert dict(zip(alone, mixed, strict=True)) == alone


def test_the_prefix_cache_is_keyed_by_adapter(steered: "Engine", alone: Replies, reference: Reference) -> None:
    # every prompt was read with every adapter before: all that may be taken from the cache is
    again = {
        (number, name): steered.write([(reference.asks[number].prompt, name)])[0]
        for number, name in reversed(list(alone))
    }
    assert again == alone


def test_more_adapters_than_places_all_write_their_own(
    steered: "Engine", reference: Reference, many: Callable[[str, int], dict[str, Path]]
) -> None:
    # 4 slots and 8 places in memory: what is asked for again was dropped meanwhile, and its folder is gone
    folders = many("more", 12)
    prompt = reference.asks[2].prompt
    for name, folder in folders.items():
        steered.load(name, folder)
    single = {name: steered.write([(prompt, name)])[0] for name in folders}
    for folder in folders.values():
        (folder / "adapter_model.safetensors").unlink()
    assert dict(zip(folders, steered.write([(prompt, name) for name in folders]), strict=True)) == single
    assert len({reply.logps for reply in single.values()}) == len(single)


@pytest.mark.parametrize("what", REFUSED)
def test_after_a_refusal_the_engine_goes_on(
    what: str, steered: "Engine", alone: Replies, reference: Reference, saved: Path
) -> None:
    spoil, reason = REFUSED[what]
    with pytest.raises(ValueError, match=reason):
        steered.load("spoilt@v1", spoil(saved))
    assert steered.write([(reference.asks[0].prompt, "env2@v3")]) == [alone[0, "env2@v3"]]


def test_names_and_numbers_keep_their_meaning(steered: "Engine", saved: Path) -> None:
    steered.load("kept@v1", saved, number=700)
    with pytest.raises(ValueError, match="never replaced in place"):
        steered.load("kept@v1", saved, number=700, in_place=True)
    with pytest.raises(ValueError, match="number 700 belongs to kept@v1"):
        steered.load("thief@v1", saved, number=700)
    with_vector(saved, drawn(5))
    with pytest.raises(ValueError, match="another vector before"):
        steered.load("kept@v1", saved, number=701)


def test_the_experts_are_vllm_s_ordinary_ones(steered: "Engine") -> None:
    modules = steered.runner.lora_manager._adapter_manager.modules
    assert list(modules) == ["language_model.model.layers.1.steer"]
    layers = steered.runner.model.language_model.model.layers
    assert {layer.mlp.experts.moe_config.is_lora_enabled for layer in layers} == {False}
