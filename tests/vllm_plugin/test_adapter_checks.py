"""What belongs at an engine's site is taken as PEFT saved it; anything else is refused with the reason."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from plugin_parts import BOUND, REFUSED, AdapterPress, drawn, with_vector

from taskmem.vllm_plugin.adapters import Adapters, Site, check_adapter, site_settings

NAME, OTHER = "kitchen@v1", "garage@v1"


def test_an_adapter_is_taken_as_peft_saved_it(saved: Path, site: Site) -> None:
    assert torch.equal(check_adapter(saved, site), drawn(0))


def test_a_norm_up_to_the_bound_is_taken(saved: Path, site: Site) -> None:
    assert check_adapter(with_vector(saved, drawn(1, BOUND - 1e-5)), site).norm() < BOUND


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_belong_there_is_refused_with_the_reason(what: str, saved: Path, site: Site) -> None:
    spoil, reason = REFUSED[what]
    with pytest.raises(ValueError) as refusal:
        check_adapter(spoil(saved), site)
    assert reason in str(refusal.value)
    assert str(saved) in str(refusal.value)


@pytest.mark.parametrize("name", ["kitchen", "kitchen@3", "kitchen@v0", "@v1", "a b@v1", "../x@v1", "kitchen@v1\n"])
def test_a_name_is_an_environment_and_a_version(name: str, saved: Path, site: Site) -> None:
    with pytest.raises(ValueError, match="environment@version"):
        Adapters(site).load(name, 1, saved, in_place=False)


def test_loading_in_place_is_refused(saved: Path, site: Site) -> None:
    with pytest.raises(ValueError, match="never replaced in place"):
        Adapters(site).load(NAME, 1, saved, in_place=True)


def test_a_name_never_gets_another_vector(saved: Path, site: Site) -> None:
    adapters = Adapters(site)
    adapters.load(NAME, 1, saved, in_place=False)
    with_vector(saved, drawn(2))
    with pytest.raises(ValueError, match="another vector before"):
        adapters.load(NAME, 2, saved, in_place=False)
    assert torch.equal(adapters.load(OTHER, 3, saved, in_place=False), drawn(2))


def test_a_refused_name_is_free_for_the_right_vector(press: AdapterPress, saved: Path, site: Site) -> None:
    adapters = Adapters(site)
    with pytest.raises(ValueError, match="norm"):
        adapters.load(NAME, 1, with_vector(saved, drawn(2, 100)), in_place=False)
    press.save(saved, drawn(2))
    assert torch.equal(adapters.load(NAME, 2, saved, in_place=False), drawn(2))


def test_a_number_belongs_to_one_name(saved: Path, site: Site) -> None:
    adapters = Adapters(site)
    adapters.load(NAME, 1, saved, in_place=False)
    for ask in (adapters.check_number, lambda name, number: adapters.load(name, number, saved, in_place=False)):
        with pytest.raises(ValueError, match=f"number 1 belongs to {NAME}"):
            ask(OTHER, 1)


def test_what_was_accepted_needs_its_folder_no_more(saved: Path, site: Site) -> None:
    adapters = Adapters(site)
    adapters.load(NAME, 1, saved, in_place=False)
    shutil.rmtree(saved)
    assert torch.equal(adapters.load(NAME, 1, saved, in_place=False), drawn(0))


@pytest.mark.parametrize(
    ("additional", "missing"),
    [
        (None, "steer_layer"),
        ({}, "steer_layer"),
        ({"steer_layer": 1}, "steer_max_norm"),
        ({"steer_layer": True, "steer_max_norm": 3}, "steer_layer"),
        ({"steer_layer": -1, "steer_max_norm": 3}, "steer_layer"),
        ({"steer_layer": 1, "steer_max_norm": 0}, "steer_max_norm"),
        ({"steer_layer": 1, "steer_max_norm": float("inf")}, "steer_max_norm"),
    ],
)
def test_an_engine_needs_a_layer_and_a_bound(additional: object, missing: str) -> None:
    with pytest.raises(ValueError, match=f"--additional-config: {missing}"):
        site_settings(additional)


def test_settings_of_others_are_left_alone() -> None:
    assert site_settings({"steer_layer": 22, "steer_max_norm": 3, "other": 1}) == (22, 3.0)


def test_the_entry_point_loads_without_vllm_and_torch() -> None:
    code = (
        "import sys, taskmem.vllm_plugin as p; assert p.register; print({'vllm', 'torch', 'peft'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
