"""Every pipeline as IR YAML, the same bytes each time."""

from collections.abc import Callable
from pathlib import Path

from kfp import compiler
from kfp.dsl.base_component import BaseComponent

from components.images import Images
from pipelines.adaptation import adaptation
from pipelines.end_to_end import end_to_end
from pipelines.parts import Placement
from pipelines.phase_one import phase_one
from taskmem.config import Profile
from taskmem.files import atomic_write, canonical_json

PIPELINES: dict[str, Callable[[Placement], BaseComponent]] = {
    "phase_one": phase_one,
    "adaptation": adaptation,
    "end_to_end": end_to_end,
}


def travelling(profile: Profile) -> str:
    """A profile as stages take it, one line of JSON; where they run is decided before."""
    return canonical_json(profile.model_copy(update={"cluster": None}).model_dump(mode="json"))


def compile_all(profile: Profile, images: Images, out: Path) -> list[Path]:
    """Write every pipeline that makes sense with the profile, and remove others'; end_to_end needs a world."""
    written = []
    for name in PIPELINES:
        if name == "end_to_end" and profile.world is None:
            (out / f"{name}.yaml").unlink(missing_ok=True)
        else:
            written.append(compile_one(name, profile, images, out))
    return written


def compile_one(name: str, profile: Profile, images: Images, out: Path) -> Path:
    """Write `out`/<name>.yaml for the pipeline `name`, with `profile` as the default of its parameter; the path."""
    path, partial = out / f"{name}.yaml", out / f".{name}.partial.yaml"
    out.mkdir(parents=True, exist_ok=True)
    pipeline = PIPELINES[name](Placement(profile, images))
    compiler.Compiler().compile(pipeline, str(partial), pipeline_parameters={"profile": travelling(profile)})
    atomic_write(path, partial.read_bytes())
    partial.unlink()
    return path
