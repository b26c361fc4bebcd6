"""Several named adapters in one model: added, switched, summed, disabled, deleted, unloaded."""

import copy
import subprocess
import sys

import pytest
import torch
from peft import PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from torch import nn
from transformers import PreTrainedModel

from taskmem.steer import SteerConfig, SteerLayer, SteerModel, steer_vector


def logits(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=tokens).logits
    return result


def with_two(base: PreTrainedModel, first_layer: int = 1, second_layer: int = 1) -> PeftModel:
    model = get_peft_model(base, SteerConfig(layer=first_layer), adapter_name="kitchen")
    model.add_adapter("office", SteerConfig(layer=second_layer))
    for seed, name in enumerate(("kitchen", "office")):
        steer_vector(model, name).data.normal_(generator=torch.Generator().manual_seed(seed))
    return model


def test_each_adapter_steers_as_if_it_were_alone(any_base: PreTrainedModel, tokens: torch.Tensor) -> None:
    alone = {}
    for seed, name in enumerate(("kitchen", "office")):
        single = get_peft_model(copy.deepcopy(any_base), SteerConfig(layer=1))
        steer_vector(single).data.normal_(generator=torch.Generator().manual_seed(seed))
        alone[name] = logits(single, tokens)
    model = with_two(any_base)
    for name in ("kitchen", "office", "kitchen"):
        model.set_adapter(name)
        assert torch.equal(logits(model, tokens), alone[name])
    assert not torch.equal(alone["kitchen"], alone["office"])


def test_only_the_active_adapter_is_trained(base: PreTrainedModel) -> None:
    model = with_two(base)
    assert [p for p in model.parameters() if p.requires_grad] == [steer_vector(model, "kitchen")]
    model.set_adapter("office")
    assert [p for p in model.parameters() if p.requires_grad] == [steer_vector(model, "office")]


def test_adapters_active_together_add_up(base: PreTrainedModel, tokens: torch.Tensor) -> None:
    model = with_two(base)
    model.base_model.set_adapter(["kitchen", "office"])
    together = logits(model, tokens)
    model.add_adapter("sum", SteerConfig(layer=1))
    steer_vector(model, "sum").data = (steer_vector(model, "kitchen") + steer_vector(model, "office")).detach()
    model.set_adapter("sum")
    assert torch.equal(logits(model, tokens), together)


def test_adapters_on_different_layers_work_alone_and_together(base: PreTrainedModel, tokens: torch.Tensor) -> None:
    reference = copy.deepcopy(base)
    model = with_two(base, 0, 2)

    def expected(*names: str) -> torch.Tensor:
        layers = reference.get_decoder().layers
        vectors = {name: steer_vector(model, name).detach() for name in names}
        hooks = [
            layers[{"kitchen": 0, "office": 2}[name]].register_forward_hook(
                lambda module, args, output, name=name: output + vectors[name]
            )
            for name in names
        ]
        result = logits(reference, tokens)
        for hook in hooks:
            hook.remove()
        return result

    assert torch.equal(logits(model, tokens), expected("kitchen"))
    model.set_adapter("office")
    assert torch.equal(logits(model, tokens), expected("office"))
    model.base_model.set_adapter(["office", "kitchen"])
    assert torch.equal(logits(model, tokens), expected("kitchen", "office"))


def test_disabled_and_unloaded_are_the_base_to_the_bit(any_base: PreTrainedModel, tokens: torch.Tensor) -> None:
    before, keys = logits(any_base, tokens), list(any_base.state_dict())
    model = with_two(any_base, 0, 2)
    steering = logits(model, tokens)
    with model.disable_adapter():
        assert torch.equal(logits(model, tokens), before)
    assert torch.equal(logits(model, tokens), steering)
    model.base_model.disable_adapter_layers()
    assert torch.equal(logits(model, tokens), before)
    model.base_model.enable_adapter_layers()
    assert torch.equal(logits(model, tokens), steering)
    bare = model.unload()
    assert torch.equal(logits(bare, tokens), before)
    assert list(bare.state_dict()) == keys
    assert not any(isinstance(module, SteerLayer) for module in bare.modules())


def test_an_unloaded_model_can_be_steered_anew(base: PreTrainedModel, tokens: torch.Tensor) -> None:
    before = logits(base, tokens)
    again = get_peft_model(with_two(base).unload(), SteerConfig(layer=2))
    assert torch.equal(logits(again, tokens), before)


def test_merging_is_refused_and_changes_nothing(base: PreTrainedModel, tokens: torch.Tensor) -> None:
    model = with_two(base)
    before = logits(model, tokens)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="a steer vector cannot be merged"):
            merge()
    model.unmerge_adapter()
    assert torch.equal(logits(model, tokens), before)


def test_deleting_an_idle_adapter_leaves_the_active_one(base: PreTrainedModel, tokens: torch.Tensor) -> None:
    model = with_two(base)
    before = logits(model, tokens)
    model.delete_adapter("office")
    assert list(model.peft_config) == ["kitchen"]
    assert torch.equal(logits(model, tokens), before)
    with pytest.raises(ValueError, match="'office': not in this model, which has kitchen"):
        steer_vector(model, "office")


def test_deleting_the_active_adapter_activates_the_same_other_on_every_layer(
    base: PreTrainedModel, tokens: torch.Tensor
) -> None:
    model = with_two(base, 0, 2)
    model.add_adapter("attic", SteerConfig(layer=0))
    steer_vector(model, "attic").data.fill_(0.5)
    model.set_adapter("attic")
    expected = logits(model, tokens)
    model.set_adapter("office")
    with pytest.warns(UserWarning, match="adapter office was active; attic is now"):
        model.delete_adapter("office")
    assert model.active_adapters == ["attic"]
    assert torch.equal(logits(model, tokens), expected)
    with model.disable_adapter():
        assert not torch.equal(logits(model, tokens), expected)


def test_deleting_the_last_adapter_gives_the_base(base: PreTrainedModel, tokens: torch.Tensor) -> None:
    before = logits(base, tokens)
    model = get_peft_model(base, SteerConfig(layer=1), adapter_name="kitchen")
    steer_vector(model, "kitchen").data.fill_(1.0)
    model.delete_adapter("kitchen")
    assert torch.equal(logits(model.base_model, tokens), before)
    with pytest.raises(ValueError, match="does not exist"):
        model.delete_adapter("kitchen")
    model.add_adapter("office", SteerConfig(layer=1))
    model.set_adapter("office")
    assert torch.equal(logits(model, tokens), before)


def test_an_unknown_adapter_cannot_be_activated(base: PreTrainedModel) -> None:
    model = with_two(base)
    with pytest.raises(ValueError, match="'garden': not in this model; choose from kitchen, office"):
        model.base_model.set_adapter(["kitchen", "garden"])
    assert model.active_adapters == ["kitchen"]


@pytest.mark.parametrize("name", ["env7.v3", "layers", "2", "steer_vector", ""])
def test_a_name_that_peft_would_confuse_with_a_module_is_refused(base: PreTrainedModel, name: str) -> None:
    model = with_two(base)
    with pytest.raises(ValueError, match="not the name of a module"):
        model.add_adapter(name, SteerConfig(layer=1))
    assert list(model.peft_config) == ["kitchen", "office"]
    model.add_adapter("env7@v3", SteerConfig(layer=1))


def test_a_refused_layer_leaves_the_other_adapters_alone(base: PreTrainedModel, tokens: torch.Tensor) -> None:
    model = with_two(base)
    before = logits(model, tokens)
    with pytest.raises(ValueError, match="decoder layers 0 to 2"):
        model.add_adapter("attic", SteerConfig(layer=9))
    assert list(model.peft_config) == ["kitchen", "office"]
    assert torch.equal(logits(model, tokens), before)


def test_the_method_is_a_member_of_pefts_own_enum() -> None:
    assert list(PeftType).count(PeftType.STEER) == 1
    assert PeftType("STEER") is PeftType["STEER"] is PeftType.STEER is copy.deepcopy(PeftType.STEER)
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.STEER] is SteerConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.STEER] is SteerModel


def test_importing_twice_is_harmless_but_another_method_of_the_name_is_not_taken_over() -> None:
    script = """
import sys
from peft import LoraConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

def import_afresh():
    for name in [name for name in sys.modules if name.startswith("taskmem")]:
        del sys.modules[name]
    import taskmem.steer

import_afresh()
first, members = PEFT_TYPE_TO_CONFIG_MAPPING["STEER"], list(PeftType)
import_afresh()
assert PEFT_TYPE_TO_CONFIG_MAPPING["STEER"] is first
assert list(PeftType) == members
PEFT_TYPE_TO_CONFIG_MAPPING["STEER"] = LoraConfig
import_afresh()
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("KeyError: \"There is already PEFT method called 'steer'")
