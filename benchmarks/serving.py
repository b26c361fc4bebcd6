"""What do steer adapters cost a vLLM server?

    make bench-serving          about three minutes on one core

vLLM in float32 on a CPU, as `taskmem serve policy` sets it up, prefix caching off. Four sides by turns, seven times: 16 requests
with 16 different adapters in one batch, and the same 16 requests with none, written greedily; and with none sampled by vLLM from
seeds, and by the shared draw. Each reads a context of real segments and writes 96 tokens, on a random model of 24 layers (34 M
parameters) and on the shipped miniature (0.9 M), where a step is so short that choosing adapters shows.
Throughput is tokens written a second, by the clock and by CPU time, which others on the machine disturb less (see `load`); a
ratio is the median of the rounds'. Sides that write about as many different tokens pass about as many experts. Bytes are those
of an adapter's folder, and of one with a vector of the 30B model's size.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from peft import get_peft_model
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from benchmarks.results import write_result
from taskmem.cli import shipped_base
from taskmem.config import Profile, WorldSettings, load_profile
from taskmem.policy.completion import ROWS_ARGUMENT, SEED_ARGUMENT
from taskmem.policy.export import export_policy
from taskmem.policy.renderer import render
from taskmem.policy.stream import by_stream, window_context
from taskmem.policy.transformers_policy import load_checkpoint, policy_digest, policy_reference
from taskmem.records import read_json, write_json
from taskmem.stages.common import footage
from taskmem.stages.segmentation import segmentation
from taskmem.steer import SteerConfig, steer_vector
from taskmem.vllm_plugin.check import ENGINE
from taskmem.vllm_plugin.greedy import as_video
from taskmem.world.splits import render_split

ADAPTERS, LENGTH, ROUNDS = 16, 96, 7
MIXED, NONE, SAMPLED, DRAWN = f"mixed_{ADAPTERS}", "none", "sampled", "drawn"
DEEP, MINIATURE = "24_layers", "miniature"
LAYERS = {DEEP: 11, MINIATURE: 1}  # after which each is steered
HIDDEN_30B = 2048
WANTED = {"mixed_16_over_none": 0.97}
LARGEST = 64 * 1024
console = Console(width=140)


def deep_policy(folder: Path) -> Path:
    """A random policy of 24 layers, with the shipped one's processor."""
    model, processor = load_checkpoint(shipped_base(), torch.float32)
    config = model.config.to_dict()
    text = config["text_config"] | {"num_hidden_layers": 24, "hidden_size": 256, "num_attention_heads": 8}
    text |= {"num_key_value_heads": 4, "moe_intermediate_size": 192, "num_local_experts": 8}
    # smaller weights write the same three tokens over and over, through few experts, until an adapter adds variety
    text |= {"initializer_range": 0.1}
    sized = Qwen3VLMoeConfig(
        **{**config, "text_config": text, "vision_config": config["vision_config"] | {"out_hidden_size": 256}}
    )
    torch.manual_seed(0)
    Qwen3VLMoeForConditionalGeneration(sized).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_adapters(base: Path, digest: str, layer: int, folder: Path) -> list[Path]:
    """16 adapters of the base with random vectors of norm 3."""
    model, _ = load_checkpoint(base, torch.float32)
    steered = get_peft_model(model, SteerConfig(layer=layer))
    steered.peft_config["default"].base_model_name_or_path = policy_reference(digest)
    draw = torch.Generator().manual_seed(0)
    for number in range(ADAPTERS):
        vector = steer_vector(steered)
        drawn = torch.randn(vector.shape, generator=draw)
        with torch.no_grad():
            vector.copy_(drawn / drawn.norm() * 3)
        steered.save_pretrained(folder / str(number), save_embedding_layers=False)
    return [folder / str(number) for number in range(ADAPTERS)]


def adapter_bytes(folder: Path, scratch: Path) -> dict[str, int]:
    """Bytes of an adapter's folder as it is, and with a vector of the 30B model's size in it."""
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    (key,) = load_file(folder / "adapter_model.safetensors")
    save_file({key: torch.zeros(HIDDEN_30B)}, scratch / "large.safetensors", {"format": "pt"})
    others = sum(size for name, size in files.items() if name != "adapter_model.safetensors")
    return {"here": sum(files.values()), "30b": others + (scratch / "large.safetensors").stat().st_size}


def prompts_of(base: Path, profile: Profile, folder: Path) -> list[dict[str, Any]]:
    """16 contexts of rendered streams, as vLLM takes them."""
    sizes = WorldSettings(stream_segments=4, phase_one=1, deployment=4, development=1, held_out=1)
    render_split(folder, "deployment", sizes, seed=0)
    segmentation(folder / "videos", profile, folder / "segments")
    film = footage(folder / "segments", profile)
    _, processor = load_checkpoint(base, torch.float32)
    prompts = []
    for stream in by_stream(film.segments).values():
        for position in range(len(stream)):
            context = window_context(stream, {}, position, profile.policy.window)
            messages = render(context, profile.policy)
            text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            videos = [as_video(film.frames_of(s), s.fps) for s in context.segments]
            prompts.append({"prompt": text, "multi_modal_data": {"video": videos}})
    return prompts


def alternate(policy: Path, layer: int, prompts: Sequence[Any], adapters: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Seven rounds of all sides on one engine: of each, tokens a second, and how many different tokens it wrote."""
    import vllm  # noqa: PLC0415 - a process of its own has it set up
    from vllm.lora.request import LoRARequest  # noqa: PLC0415

    engine = vllm.LLM(
        model=str(policy),
        dtype="float32",
        max_model_len=1024,
        max_num_seqs=ADAPTERS,
        enforce_eager=True,
        enable_prefix_caching=False,
        limit_mm_per_prompt={"image": 0, "video": 3},
        distributed_executor_backend="uni",
        enable_lora=True,
        lora_target_modules=["steer"],
        max_lora_rank=1,
        max_loras=ADAPTERS,
        additional_config={"steer_layer": layer, "steer_max_norm": 8.0},
        logits_processors=["taskmem.vllm_plugin.draw:SharedDraw"],
    )
    requests = [LoRARequest(f"env{i}@v1", i + 1, str(path)) for i, path in enumerate(adapters)]
    for request in requests:
        engine.llm_engine.add_lora(request)
    whole = {"max_tokens": LENGTH, "ignore_eos": True}
    warm = {**whole, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
    draws = [{SEED_ARGUMENT: seed, ROWS_ARGUMENT: 1} for seed in range(len(prompts))]
    chosen: Mapping[str, Any] = {
        NONE: (None, vllm.SamplingParams(temperature=0, **whole)),
        MIXED: (requests, vllm.SamplingParams(temperature=0, **whole)),
        SAMPLED: (None, [vllm.SamplingParams(**warm, seed=seed) for seed in range(len(prompts))]),
        DRAWN: (None, [vllm.SamplingParams(**warm, seed=0, extra_args=draw) for draw in draws]),
    }
    sides: dict[str, dict[str, Any]] = {name: {"clock": [], "cpu": [], "distinct_tokens": 0} for name in chosen}
    for number in range(ROUNDS + 1):
        for name in chosen if number % 2 else reversed(list(chosen)):
            clock, cpu = time.perf_counter(), time.process_time()
            adapter, sampling = chosen[name]
            written = engine.generate(prompts, sampling, lora_request=adapter, use_tqdm=False)
            if number:  # the first round warms up
                sides[name]["clock"].append(len(prompts) * LENGTH / (time.perf_counter() - clock))
                sides[name]["cpu"].append(len(prompts) * LENGTH / (time.process_time() - cpu))
            sides[name]["distinct_tokens"] = len({token for one in written for token in one.outputs[0].token_ids})
    return sides


def measure(model: str, answer: Path) -> None:
    """One model's rounds, in a process of its own: vLLM has one engine a process."""
    profile = load_profile("miniature")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base = shipped_base() if model == MINIATURE else deep_policy(folder / "base")
        layer, digest = LAYERS[model], policy_digest(base)
        export_policy(base, digest, folder / "policy", None)
        adapters = save_adapters(base, digest, layer, folder / "adapters")
        size = adapter_bytes(adapters[0], folder)
        sides = alternate(folder / "policy", layer, prompts_of(base, profile, folder / "world"), adapters)
    write_json(answer, {"sides": sides, "bytes": size})


def summed_up(model: str, measured: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """The sides and ratios of a model for the result file; those of 24 layers have no suffix."""
    suffix = "" if model == DEEP else f"_{model}"
    sides = {
        f"{name}{suffix}": {f"tokens_per_{kind}_second": median(side[kind]) for kind in ("clock", "cpu")}
        | {f"all_{kind}": side[kind] for kind in ("clock", "cpu")}
        | {"distinct_tokens": side["distinct_tokens"]}
        for name, side in measured["sides"].items()
    }
    sides[f"{MIXED}{suffix}"] |= {f"bytes_per_adapter_{name}": value for name, value in measured["bytes"].items()}
    ratios = {
        f"{one}_over_{other}{suffix}{'' if kind == 'clock' else '_cpu'}": median(
            a / b for a, b in zip(measured["sides"][one][kind], measured["sides"][other][kind], strict=True)
        )
        for one, other in ((MIXED, NONE), (DRAWN, SAMPLED))
        for kind in ("clock", "cpu")
    }
    return sides, ratios


def main(
    model: Annotated[str | None, typer.Option(help="Measure this one alone, for --answer.")] = None,
    answer: Annotated[Path | None, typer.Option()] = None,
) -> None:
    """Measure, print and write benchmarks/results/serving.json."""
    if model is not None and answer is not None:
        measure(model, answer)
        return
    before = os.getloadavg()[0]
    sides: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in LAYERS:
            console.print(f"{name}, {ROUNDS} rounds", highlight=False)
            file = Path(scratch) / f"{name}.json"
            words = [sys.executable, "-m", "benchmarks.serving", "--model", name, "--answer", str(file)]
            subprocess.run(words, check=True, env={**os.environ, **ENGINE}, stderr=subprocess.DEVNULL)
            of_model = summed_up(name, read_json(file))
            sides |= of_model[0]
            ratios |= of_model[1]
    settings = {"adapters": ADAPTERS, "requests": ADAPTERS, "tokens": LENGTH, "rounds": ROUNDS}
    path = write_result("serving", {**settings, "load": [before, os.getloadavg()[0]]}, sides, ratios)
    size = sides[MIXED]["bytes_per_adapter_30b"]
    console.print(f"{path}: {size} bytes an adapter of the 30B model (wanted <= {LARGEST})", highlight=False)
    for name, value in ratios.items():
        wanted = f" (wanted >= {WANTED[name]})" if name in WANTED else ""
        console.print(f"{name} {value:.3f}{wanted}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
