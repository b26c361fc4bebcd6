"""A policy as a vLLM server reads it: experts in the hub's layout, and a file that names the policy it came from.

transformers keeps expert matrices as [E, out, in] and saves them so; the hub's Qwen3-VL-MoE files and vLLM have [E, in, out].
Neither notices the other's where a matrix is square, so the layout is told from both matrices of a layer together.
"""

import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from taskmem.errors import UserError
from taskmem.files import fsync_directory, replace_directory, sha256_file
from taskmem.policy.exported import EXPORT, Checked, Export
from taskmem.records import one_line, read_json, write_json

CONFIG, PROCESSOR = "config.json", "processor_config.json"
GATE_UP, DOWN = ".mlp.experts.gate_up_proj", ".mlp.experts.down_proj"
NORMALISATION = ("do_normalize", "do_rescale", "image_mean", "image_std", "rescale_factor")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")

Layout = Literal["transformers", "hub"]


Check = Callable[[Path], Checked]


def experts_layout(shapes: Mapping[str, tuple[int, ...]], hidden: int, intermediate: int, where: str) -> Layout:
    """How a checkpoint stores its expert matrices, told from the shapes of all its tensors by name.

    `hidden` and `intermediate` are the sizes of the text model and of one expert. UserError naming `where` if there are no
    fused experts, or the layers do not agree on one layout.
    """
    layers = sorted(key.removesuffix(GATE_UP) for key in shapes if key.endswith(GATE_UP))
    expected: dict[Layout, tuple[tuple[int, int], tuple[int, int]]] = {
        "transformers": ((2 * intermediate, hidden), (hidden, intermediate)),
        "hub": ((hidden, 2 * intermediate), (intermediate, hidden)),
    }
    found = {layer: (shapes[layer + GATE_UP][1:], shapes.get(layer + DOWN, ())[1:]) for layer in layers}
    for layout, wanted in expected.items():
        if layers and all(shape == wanted for shape in found.values()):
            return layout
    first = f", first {layers[0]} with {found[layers[0]]}" if layers else ""
    raise UserError(
        f"{where}: {len(layers)} layers of fused experts that are neither all [E, out, in] nor all [E, in, out]{first}; "
        "give a policy that phase-one or transformers 5 saved"
    )


def to_hub(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as the hub stores it: an expert matrix [E, out, in] transposed to [E, in, out], any other as it is."""
    return tensor.transpose(1, 2).contiguous() if name.endswith((GATE_UP, DOWN)) else tensor


def complete(config: dict[str, Any]) -> dict[str, Any]:
    """config.json with what transformers leaves out and vLLM asks for: that the chosen experts' weights add up to one."""
    # transformers 5 always normalises them, and so has no setting to save
    return {**config, "text_config": {**config["text_config"], "norm_topk_prob": True}}


def normalise_alike(processor: dict[str, Any]) -> dict[str, Any]:
    """processor_config.json with images normalised as videos are.

    vLLM has one normalisation, the image processor's, and takes it for videos too; a policy is shown nothing but videos.
    """
    image, video = processor.get("image_processor"), processor.get("video_processor")
    if not isinstance(image, dict) or not isinstance(video, dict):
        return processor
    return {**processor, "image_processor": {**image, **{name: video[name] for name in NORMALISATION if name in video}}}


def export_policy(policy: Path, digest: str, out: Path, check: Check | None) -> Export:
    """Write the checkpoint folder `policy`, whose digest is `digest`, to `out` as vLLM serves it; what export.json says.

    `check` is given the finished folder before it takes the place of `out`; whatever it raises leaves `out` as it was. None
    skips it, and export.json says so. Weights are converted file by file, one in memory at a time. UserError if `policy` is
    no checkpoint of fused experts, holds pickled weights, or `out` is something else than an earlier export.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / EXPORT).is_file())):
        raise UserError(f"{out}: exists and is no exported policy; remove it yourself or give another --out")
    if policy.resolve() == out.resolve() or policy.resolve() in out.resolve().parents:
        raise UserError(f"{out}: lies in the policy's own folder, whose digest it would change; give another --out")
    files = _files(policy)
    text = _text_config(policy)
    sizes = _size(text, "hidden_size", policy), _size(text, "moe_intermediate_size", policy)
    weights = [f for f in files if f.suffix == ".safetensors"]
    layout = experts_layout(_shapes(weights), *sizes, where=str(policy))
    if layout == "hub" and sizes[0] in (sizes[1], 2 * sizes[1]):
        raise UserError(
            f"{policy}: a square expert matrix in the hub's layout, which transformers reads without transposing it; "
            "give the policy as transformers saves it"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    try:
        written = _write(policy, files, unfinished, transpose=layout == "transformers")
        export = Export(
            policy=digest,
            layers=_size(text, "num_hidden_layers", policy),
            hidden_size=sizes[0],
            transposed=written,
            files={p.relative_to(unfinished).as_posix(): sha256_file(p) for p in _files(unfinished)},
            checked=check(unfinished) if check else None,
        )
        write_json(unfinished / EXPORT, export.model_dump(mode="json"))
        fsync_directory(unfinished)
        replace_directory(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return export


def _files(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if pickled := [p for p in files if p.suffix in PICKLES]:
        raise UserError(f"{pickled[0]}: pickled weights are not exported; keep the policy as safetensors only")
    return files


def _text_config(policy: Path) -> Mapping[str, Any]:
    path = policy / CONFIG
    if not path.is_file():
        raise UserError(
            f"{policy}: no policy checkpoint (config.json is missing); give the folder that phase-one wrote"
        )
    config = read_json(path)
    text = config.get("text_config") if isinstance(config, dict) else None
    if not isinstance(text, dict) or config.get("model_type") != "qwen3_vl_moe":
        raise UserError(f"{path}: not the configuration of a qwen3_vl_moe; give another policy")
    return text


def _size(text: Mapping[str, Any], key: str, policy: Path) -> int:
    value = text.get(key)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{policy / CONFIG}: text_config.{key} is {value!r}, not a size; copy the checkpoint again")
    return value


def _shapes(weights: list[Path]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weights:
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
        except SafetensorError as error:
            raise UserError(f"{path}: not a safetensors file ({one_line(str(error))}); copy the policy again") from None
    return shapes


def _write(policy: Path, files: list[Path], out: Path, transpose: bool) -> int:
    """Copy all files, weights with their experts transposed and the settings mended for vLLM; how many matrices were."""
    transposed = 0
    for path in files:
        target = out / path.relative_to(policy)
        target.parent.mkdir(parents=True, exist_ok=True)
        mend = {policy / CONFIG: complete, policy / PROCESSOR: normalise_alike}.get(path)
        if mend is not None:
            write_json(target, mend(read_json(path)))
            continue
        if path.suffix != ".safetensors" or not transpose:
            shutil.copyfile(path, target)
            continue
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            metadata = file.metadata()
        save_file({name: to_hub(name, tensor) for name, tensor in tensors.items()}, target, metadata)
        transposed += sum(name.endswith((GATE_UP, DOWN)) for name in tensors)
    return transposed
