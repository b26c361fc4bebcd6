"""Saved as one fp32 vector, loaded to the bit, and anything else is refused."""

import copy
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import HIDDEN
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from taskmem.steer import SteerConfig, load_adapter, read_adapter, steer_vector

VL_KEY = "base_model.model.model.language_model.layers.1.steer_vector"


def logits(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=tokens).logits
    return result


def steered(base: PreTrainedModel, layer: int = 1, name: str = "default") -> PeftModel:
    model = get_peft_model(copy.deepcopy(base), SteerConfig(layer=layer), adapter_name=name)
    steer_vector(model, name).data.normal_(generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def saved(base: PreTrainedModel, tmp_path: Path) -> Path:
    steered(base).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "adapter_model.safetensors")


def reconfigure(folder: Path, **changes: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_the_file_is_exactly_one_fp32_vector_named_by_its_layer(base: PreTrainedModel, tmp_path: Path) -> None:
    model = steered(base)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert list(tensors) == [VL_KEY]
    assert tensors[VL_KEY].dtype == torch.float32
    assert tensors[VL_KEY].shape == (HIDDEN,)
    assert torch.equal(tensors[VL_KEY], steer_vector(model))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["layer"]) == ("STEER", 1)
    assert not (tmp_path / "adapter_model.bin").exists()


def test_a_bf16_model_saves_fp32(base: PreTrainedModel, tmp_path: Path) -> None:
    model = steered(base)
    vector = steer_vector(model).detach().clone()
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    assert torch.equal(load_file(tmp_path / "adapter_model.safetensors")[VL_KEY], vector)


def test_the_same_vector_gives_the_same_bytes(base: PreTrainedModel, saved: Path, tmp_path: Path) -> None:
    steered(base).save_pretrained(tmp_path / "again")
    PeftModel.from_pretrained(copy.deepcopy(base), saved).save_pretrained(tmp_path / "reloaded")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        first = (saved / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == first
        assert (tmp_path / "reloaded" / name).read_bytes() == first


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_reloaded_equals_saved_to_the_bit(
    any_base: PreTrainedModel, tokens: torch.Tensor, tmp_path: Path, low_cpu_mem_usage: bool
) -> None:
    model = steered(any_base)
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(any_base, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(steer_vector(reloaded), steer_vector(model))
    assert not steer_vector(reloaded).requires_grad
    assert torch.equal(logits(reloaded, tokens), logits(model, tokens))


def test_a_saved_zero_adapter_reloads_as_the_base(base: PreTrainedModel, tokens: torch.Tensor, tmp_path: Path) -> None:
    get_peft_model(copy.deepcopy(base), SteerConfig(layer=1)).save_pretrained(tmp_path)
    before = logits(base, tokens)
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path), tokens), before)


def test_the_vector_is_loaded_onto_the_device_of_its_layer(base: PreTrainedModel, saved: Path) -> None:
    model = PeftModel.from_pretrained(base.to("meta"), saved, low_cpu_mem_usage=True, torch_device="cpu")
    assert steer_vector(model).is_meta
    assert steer_vector(model).dtype == torch.float32


def test_it_can_be_loaded_for_further_training(base: PreTrainedModel, saved: Path, tokens: torch.Tensor) -> None:
    model = PeftModel.from_pretrained(base, saved, is_trainable=True)
    model(input_ids=tokens, labels=tokens).loss.backward()
    gradient = steer_vector(model).grad
    assert gradient is not None
    assert gradient.norm() > 0


def test_named_adapters_are_saved_apart_and_loaded_together(
    base: PreTrainedModel, tokens: torch.Tensor, tmp_path: Path
) -> None:
    model = steered(base, name="kitchen")
    model.add_adapter("office", SteerConfig(layer=2))
    steer_vector(model, "office").data.fill_(0.25)
    model.save_pretrained(tmp_path)
    both = PeftModel.from_pretrained(base, tmp_path / "kitchen", adapter_name="kitchen")
    both.load_adapter(tmp_path / "office", "office")
    for name in ("kitchen", "office"):
        assert len(load_file(tmp_path / name / "adapter_model.safetensors")) == 1
        both.set_adapter(name)
        model.set_adapter(name)
        assert torch.equal(logits(both, tokens), logits(model, tokens))


def test_the_vector_alone_travels_as_a_state_dict(base: PreTrainedModel) -> None:
    model, other = steered(base), get_peft_model(copy.deepcopy(base), SteerConfig(layer=1))
    assert list(get_peft_model_state_dict(model)) == [VL_KEY]
    assert f"{VL_KEY}.default" in model.state_dict()
    set_peft_model_state_dict(other, get_peft_model_state_dict(model))
    assert torch.equal(steer_vector(other), steer_vector(model))


def test_read_adapter_gives_layer_and_vector_without_a_model(base: PreTrainedModel, saved: Path) -> None:
    layer, vector = read_adapter(saved)
    assert layer == 1
    assert torch.equal(vector, steer_vector(steered(base)))


def test_load_adapter_adds_an_inactive_adapter_once(base: PreTrainedModel, saved: Path, tokens: torch.Tensor) -> None:
    expected = logits(steered(base), tokens)
    model = get_peft_model(base, SteerConfig(layer=0), adapter_name="other")
    before = logits(model, tokens)
    load_adapter(model, saved, "env7@v3")
    assert torch.equal(logits(model, tokens), before)
    model.set_adapter("env7@v3")
    assert torch.equal(logits(model, tokens), expected)
    with pytest.raises(ValueError, match="already in this model"):
        load_adapter(model, saved, "env7@v3")


class Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.file),)


def only_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(folder / "exploded")))


def pickle_of_a_good_vector(folder: Path) -> None:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def vector_with(position: int, value: float) -> torch.Tensor:
    vector = torch.ones(HIDDEN)
    vector[position] = value
    return vector


def layer_nine(folder: Path) -> None:
    reconfigure(folder, layer=9)
    rewrite(folder, {VL_KEY.replace(".1.", ".9."): torch.ones(HIDDEN)})


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "hostile pickle": (only_pickle, "is a pickle and is not read"),
    "harmless pickle": (pickle_of_a_good_vector, "is a pickle and is not read"),
    "no weights": (lambda d: (d / "adapter_model.safetensors").unlink(), "adapter_model.safetensors: no such file"),
    "not safetensors": (lambda d: (d / "adapter_model.safetensors").write_bytes(b"x" * 99), "not a safetensors file"),
    "empty": (lambda d: rewrite(d, {}), "0 tensors"),
    "two tensors": (lambda d: rewrite(d, {VL_KEY: torch.ones(HIDDEN), "more": torch.ones(1)}), "2 tensors"),
    "nan": (lambda d: rewrite(d, {VL_KEY: vector_with(3, float("nan"))}), "NaN or infinity"),
    "infinity": (lambda d: rewrite(d, {VL_KEY: vector_with(-1, float("-inf"))}), "NaN or infinity"),
    "too long": (
        lambda d: rewrite(d, {VL_KEY: torch.ones(HIDDEN + 1)}),
        "has 65 values, the model's hidden size is 64",
    ),
    "two dimensions": (lambda d: rewrite(d, {VL_KEY: torch.ones(1, HIDDEN)}), r"shape \(1, 64\)"),
    "bf16": (lambda d: rewrite(d, {VL_KEY: torch.ones(HIDDEN).bfloat16()}), "bfloat16"),
    "another layer's vector": (lambda d: reconfigure(d, layer=2), "adapter_config.json says layer 2"),
    "layer as text": (lambda d: reconfigure(d, layer="1"), "index of a decoder layer"),
    "layer outside": (
        layer_nine,
        "decoder layers 0 to 2",
    ),
    "path of another model": (
        lambda d: rewrite(d, {"base_model.model.model.layers.1.steer_vector": torch.ones(HIDDEN)}),
        "not exactly the vector of layer 1",
    ),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_adapter_is_refused_on_every_way_in(
    base: PreTrainedModel, saved: Path, tokens: torch.Tensor, damage: Callable[[Path], object], message: str
) -> None:
    damage(saved)
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(copy.deepcopy(base), saved)
    model = get_peft_model(base, SteerConfig(layer=0), adapter_name="other")
    before = logits(model, tokens)
    with pytest.raises(ValueError, match=message):
        model.load_adapter(saved, "refused by peft")
    with pytest.raises(ValueError, match=message):
        load_adapter(model, saved, "refused by us")
    assert torch.equal(logits(model, tokens), before)
    assert "refused by us" not in model.peft_config
    assert not (saved / "exploded").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "adapter_config.json").unlink(), "no such file; give the folder"),
        (lambda d: (d / "adapter_config.json").write_text("{"), "not valid JSON"),
        (lambda d: (d / "adapter_config.json").write_text("[]"), "not a steer adapter"),
        (lambda d: reconfigure(d, peft_type="LORA"), "not a steer adapter"),
    ],
)
def test_a_folder_that_is_no_steer_adapter_is_refused(
    saved: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(saved)
    with pytest.raises(ValueError, match=message):
        read_adapter(saved)


def test_a_broken_state_dict_changes_nothing(base: PreTrainedModel) -> None:
    model = steered(base)
    before = steer_vector(model).detach().clone()
    for vector in (torch.ones(HIDDEN - 1), vector_with(0, float("inf")), torch.ones(HIDDEN).half()):
        with pytest.raises(ValueError, match="steer vector"):
            set_peft_model_state_dict(model, {VL_KEY: vector})
    for tensors in ({}, {VL_KEY.replace(".1.", ".2."): torch.ones(HIDDEN)}):
        with pytest.raises(ValueError, match="not exactly the vector of layer 1"):
            set_peft_model_state_dict(model, tensors)
    assert torch.equal(steer_vector(model), before)


def test_saving_as_a_pickle_or_a_broken_vector_is_refused(base: PreTrainedModel, tmp_path: Path) -> None:
    model = steered(base)
    with pytest.raises(ValueError, match="is a pickle and is not read"):
        model.save_pretrained(tmp_path / "pickle", safe_serialization=False)
    steer_vector(model).data[5] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity"):
        model.save_pretrained(tmp_path / "nan")


def test_a_configuration_can_be_saved_without_weights(tmp_path: Path) -> None:
    SteerConfig(layer=2).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["layer"] == 2
