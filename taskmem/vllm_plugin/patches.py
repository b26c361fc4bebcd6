"""The places where vLLM is changed: it has no extension point for a LoRA layer of another kind, and one seed ends it on a CPU."""

import functools
from pathlib import Path
from typing import Any

import torch
import vllm
import vllm.lora.utils
from vllm.config import get_current_vllm_config_or_none
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from taskmem.policy.exported import read_export, verify_export
from taskmem.vllm_plugin.adapters import Adapters, Site, site_settings
from taskmem.vllm_plugin.site import TARGET, SteerSiteWithLoRA, install

WRITTEN_FOR = "0.32.0"


def apply() -> None:
    """Patch this process's vLLM, once; RuntimeError if it is another version. Engines without steer flags stay as they are."""
    found = vllm.__version__.partition("+")[0]
    if found != WRITTEN_FOR:
        raise RuntimeError(
            f"taskmem's plug-in was written for vLLM {WRITTEN_FOR}, this is {vllm.__version__}; install that, or set "
            "VLLM_PLUGINS to the plug-ins you want without it"
        )
    if SteerSiteWithLoRA in vllm.lora.utils._all_lora_classes:
        return
    vllm.lora.utils._all_lora_classes = (*vllm.lora.utils._all_lora_classes, SteerSiteWithLoRA)
    _install_site_before_the_manager(LRUCacheWorkerLoRAManager)
    _load_steer_adapters(LRUCacheWorkerLoRAManager)
    _apply_what_changed(LRUCacheWorkerLoRAManager)
    _keep_the_ordinary_experts(FusedMoEConfig)
    _step_back_without_an_offset(GPUModelRunner)


def wants_steer(lora_config: Any) -> bool:
    """Whether an engine serves steer adapters; ValueError if it wants others beside them or a rank they do not have."""
    targets = (lora_config.target_modules if lora_config is not None else None) or []
    if TARGET not in targets:
        return False
    if list(targets) != [TARGET] or lora_config.max_lora_rank != 1:
        raise ValueError("steer adapters go alone: --lora-target-modules steer --max-lora-rank 1")
    return True


def _site_of(vllm_config: Any) -> Site:
    """Where the engine is steered, from --additional-config and what `taskmem export` wrote into the model's folder."""
    layer, max_norm = site_settings(vllm_config.additional_config)
    # hashing takes a minute at 62 GB, so one worker does it for all
    read = verify_export if vllm_config.parallel_config.rank == 0 else read_export
    export = read(Path(vllm_config.model_config.model))
    return Site(layer, export.hidden_size, max_norm, export.policy)


def _install_site_before_the_manager(manager: Any) -> None:
    create = manager.create_lora_manager

    @functools.wraps(create)
    def create_lora_manager(self: Any, model: Any, vllm_config: Any) -> Any:
        if wants_steer(self.lora_config):
            self.steer_adapters = Adapters(_site_of(vllm_config))
            self.steer_name = install(model, self.steer_adapters.site.layer)
        return create(self, model, vllm_config)

    manager.create_lora_manager = create_lora_manager


def _load_steer_adapters(manager: Any) -> None:
    load, add = manager._load_adapter, manager.add_adapter

    @functools.wraps(load)
    def _load_adapter(self: Any, request: Any) -> Any:
        if not wants_steer(self.lora_config):
            return load(self, request)
        name, number = request.lora_name, request.lora_int_id
        vector = self.steer_adapters.load(name, number, Path(request.lora_path), request.load_inplace)
        weights = LoRALayerWeights(self.steer_name, 1, 1, torch.ones(1, 1), vector[:, None])
        return LoRAModel(number, 1, {self.steer_name: weights})

    @functools.wraps(add)
    def add_adapter(self: Any, request: Any) -> Any:
        if not wants_steer(self.lora_config):
            return add(self, request)
        self.steer_applied = None
        # an adapter that is in memory is taken by its number alone
        self.steer_adapters.check_number(request.lora_name, request.lora_int_id)
        manager = self._adapter_manager
        if not request.load_inplace and manager.get_adapter(request.lora_int_id) is not None:
            # vLLM's own way lists all that are in memory each time
            manager.activate_adapter(request.lora_int_id)
            return True
        return add(self, request)

    manager._load_adapter, manager.add_adapter = _load_adapter, add_adapter


def _apply_what_changed(manager: Any) -> None:
    apply_adapters = manager._apply_adapters

    @functools.wraps(apply_adapters)
    def _apply_adapters(self: Any, requests: Any) -> None:
        if not wants_steer(self.lora_config):
            apply_adapters(self, requests)
            return
        wanted = {(request.lora_int_id, request.lora_name) for request in requests if request}
        # a step's adapters are mostly those of the step before: they are in their places, and nothing was used since
        if getattr(self, "steer_applied", None) != (wanted, tuple(self._adapter_manager.lora_index_to_id)):
            apply_adapters(self, requests)
            self.steer_applied = wanted, tuple(self._adapter_manager.lora_index_to_id)

    manager._apply_adapters = _apply_adapters


def _keep_the_ordinary_experts(config: Any) -> None:
    prepare = config.__post_init__

    @functools.wraps(prepare)
    def __post_init__(self: Any) -> None:  # noqa: N807 - the dataclass's own
        current = get_current_vllm_config_or_none()
        # with LoRA on, vLLM takes expert kernels that a CPU lacks and that are others on a GPU; no expert is adapted here
        if current is not None and wants_steer(current.lora_config):
            self.is_lora_enabled = False
        prepare(self)

    config.__post_init__ = __post_init__


def _step_back_without_an_offset(runner: Any) -> None:
    """A request with a seed whose prompt is read in pieces draws for nothing after each but the last, and vLLM takes that back
    by the generator's offset. A CPU's generator has none, and the engine would end.
    """
    sample, sync = runner._sample, runner._bookkeeping_sync

    @functools.wraps(sample)
    def _sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators.items() if self.device.type == "cpu" else ()
        early = [(g, g.get_state()) for place, g in generators if self.discard_request_mask.np[place]]
        sampled = sample(self, *args, **kwargs)
        for generator, state in early:
            generator.set_state(state)
        return sampled

    @functools.wraps(sync)
    def _bookkeeping_sync(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        if self.device.type == "cpu":
            self.input_batch.generators = {}
        try:
            return sync(self, *args, **kwargs)
        finally:
            self.input_batch.generators = generators

    runner._sample, runner._bookkeeping_sync = _sample, _bookkeeping_sync
