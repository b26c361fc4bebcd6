"""The gate for a shard of environments: each challenger is evaluated and held against its champion."""

from dataclasses import dataclass
from pathlib import Path

from taskmem.backends import Backends
from taskmem.config import Profile
from taskmem.files import sha256_tree
from taskmem.lineage.outcome import Outcome
from taskmem.progress import Progress, silent
from taskmem.records import write_json
from taskmem.registry import champion, fetch
from taskmem.stages.gate import gate
from taskmem.stages.shard import EnvironmentSpec, Shard, SkipError, ready, run_shard
from taskmem.store import Store, open_store

HELD = "held.json"


@dataclass(frozen=True)
class GateInputs:
    """Folders: `evaluation` is the policy's without adapter, on the same `segments` and `questions` (a file)."""

    adapters: Path
    policy: Path
    evaluation: Path
    segments: Path
    questions: Path
    feedback: Path


def gate_shard(
    shard: Shard,
    inputs: GateInputs,
    store: str,
    backends: Backends,
    profile: Profile,
    seed: int,
    out: Path,
    progress: Progress = silent,
) -> list[Outcome]:
    """Write `out`/<name>/verdict.json for each environment, and held.json: the policy's digest, and the champion's
    pointer that was held against.

    A champion that was trained on another policy does not count: its environment runs on the policy without adapter.
    """
    registry = open_store(store)

    def work(spec: EnvironmentSpec, settings: Profile, folder: Path) -> None:
        if spec.control:
            raise SkipError("a control is never promoted")
        challenger = ready(inputs.adapters, spec)
        _evaluate(challenger, inputs, backends, settings, seed, folder / "challenger")
        present = _champion(registry, spec.environment, inputs, backends, settings, seed, folder)
        arms = (present, folder / "challenger", inputs.segments, inputs.questions, ready(inputs.feedback, spec))
        gate(*arms, spec.environment, backends, settings, seed, folder)

    return run_shard("gate", shard, profile, inputs.adapters, out, work, progress)


def _champion(
    registry: Store,
    environment: str,
    inputs: GateInputs,
    backends: Backends,
    profile: Profile,
    seed: int,
    folder: Path,
) -> Path:
    """The evaluation of what the environment runs on now."""
    pointer, policy = champion(registry, environment), sha256_tree(inputs.policy)
    write_json(folder / HELD, {"policy": policy, "champion": pointer.model_dump(mode="json") if pointer else None})
    if pointer is None or pointer.policy != policy:
        return inputs.evaluation
    fetch(registry, environment, pointer.version, folder / "adapter")
    _evaluate(folder / "adapter", inputs, backends, profile, seed, folder / "champion")
    return folder / "champion"


def _evaluate(adapter: Path, inputs: GateInputs, backends: Backends, profile: Profile, seed: int, out: Path) -> None:
    # a shard of controls alone needs no torch
    from taskmem.stages.evaluate import streaming_eval  # noqa: PLC0415

    streaming_eval(inputs.segments, inputs.questions, inputs.policy, backends, profile, seed, out, adapter)
