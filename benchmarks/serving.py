"""What do steer adapters cost a vLLM server?

    make bench-serving          about three minutes on one core

One engine with the shipped miniature in float32 on a CPU, steer adapters on, prefix caching off. Two sides by turns, seven times:
16 requests with 16 different adapters in one batch, and the same 16 requests with none. Each reads a context of real segments and
writes 96 tokens. Throughput is tokens written a second, by the clock and by CPU time; the clock's is the ratio's, unless others
were busy on the machine, which `load` shows. Bytes are those of an adapter's folder, saved by PEFT, and at hidden size 2,048 its
weights file written the same way.
"""

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import typer
from peft import get_peft_model
from rich.console import Console
from safetensors.torch import load_file, save_file

from benchmarks.results import write_result
from taskmem.cli import shipped_base
from taskmem.config import Profile, WorldSettings, load_profile
from taskmem.policy.export import export_policy
from taskmem.policy.renderer import render
from taskmem.policy.stream import by_stream, window_context
from taskmem.policy.transformers_policy import load_checkpoint, policy_digest, policy_reference
from taskmem.stages.common import footage
from taskmem.stages.segmentation import segmentation
from taskmem.steer import SteerConfig, steer_vector
from taskmem.vllm_plugin.check import ENGINE
from taskmem.vllm_plugin.greedy import as_video
from taskmem.world.splits import render_split

ADAPTERS, LENGTH, ROUNDS = 16, 96, 7
HIDDEN_30B = 2048
WANTED = {"mixed_16_over_none": 0.97}
LARGEST = 64 * 1024
console = Console(width=140)


def save_adapters(base: Path, digest: str, folder: Path) -> list[Path]:
    """16 adapters of the base with random vectors of norm 3."""
    model, _ = load_checkpoint(base, torch.float32)
    steered = get_peft_model(model, SteerConfig(layer=1))
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
    return {"miniature": sum(files.values()), "30b": others + (scratch / "large.safetensors").stat().st_size}


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


def alternate(policy: Path, prompts: Sequence[Any], adapters: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Seven rounds of both sides on one engine; tokens a second of each."""
    os.environ.update(ENGINE)
    import vllm  # noqa: PLC0415 - reads the environment when it is imported
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
        additional_config={"steer_layer": 1, "steer_max_norm": 8.0},
    )
    requests = [LoRARequest(f"env{i}@v1", i + 1, str(path)) for i, path in enumerate(adapters)]
    for request in requests:
        engine.llm_engine.add_lora(request)
    chosen: Mapping[str, Any] = {"none": None, f"mixed_{ADAPTERS}": requests}
    sampling = vllm.SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True)
    sides: dict[str, dict[str, Any]] = {name: {"clock": [], "cpu": []} for name in chosen}
    for number in range(ROUNDS + 1):
        for name in chosen if number % 2 else reversed(list(chosen)):
            clock, cpu = time.perf_counter(), time.process_time()
            engine.generate(prompts, sampling, lora_request=chosen[name], use_tqdm=False)
            if number:  # the first round warms up
                sides[name]["clock"].append(len(prompts) * LENGTH / (time.perf_counter() - clock))
                sides[name]["cpu"].append(len(prompts) * LENGTH / (time.process_time() - cpu))
    return sides


def main(out: Path | None = None) -> None:
    """Measure, print and write benchmarks/results/serving.json."""
    base, profile = shipped_base(), load_profile("miniature")
    digest = policy_digest(base)
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = out or Path(scratch)
        export_policy(base, digest, folder / "policy", None)
        adapters = save_adapters(base, digest, folder / "adapters")
        size = adapter_bytes(adapters[0], folder)
        sides = alternate(folder / "policy", prompts_of(base, profile, folder / "world"), adapters)
    mixed = f"mixed_{ADAPTERS}"
    results = {
        name: {f"tokens_per_{kind}_second": median(values) for kind, values in side.items()}
        | {f"all_{kind}": values for kind, values in side.items()}
        for name, side in sides.items()
    }
    results[mixed] |= {f"bytes_per_adapter_{name}": value for name, value in size.items()}
    # both sides of a round ran side by side in time, so the rounds' own ratios are compared
    ratios = {
        f"{mixed}_over_none": median(a / b for a, b in zip(sides[mixed]["clock"], sides["none"]["clock"], strict=True)),
        f"{mixed}_over_none_cpu": median(a / b for a, b in zip(sides[mixed]["cpu"], sides["none"]["cpu"], strict=True)),
    }
    settings = {
        "adapters": ADAPTERS,
        "requests": ADAPTERS,
        "tokens": LENGTH,
        "rounds": ROUNDS,
        "load": [before, os.getloadavg()[0]],
    }
    path = write_result("serving", settings, results, ratios)
    console.print(f"{path}: bytes per adapter {size}, wanted <= {LARGEST}", highlight=False)
    for name, value in ratios.items():
        wanted = f" (wanted >= {WANTED[name]})" if name in WANTED else ""
        console.print(f"{name} {value:.3f}{wanted}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
