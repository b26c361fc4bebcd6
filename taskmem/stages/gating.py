"""The gate for a shard of environments: each challenger is evaluated and held against its champion."""

from dataclasses import dataclass
from pathlib import Path

from taskmem.backends import Backends
from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.files import atomic_write, sha256_tree
from taskmem.lineage.outcome import Outcome
from taskmem.progress import Progress, silent
from taskmem.records import Name, Record, Sha256, write_json
from taskmem.registry import Files, Manifest, Pointer, champion, fetch, read_manifest, read_verdict
from taskmem.stages.gate import VERDICT, gate
from taskmem.stages.shard import EnvironmentSpec, Shard, SkipError, ready, run_shard
from taskmem.store import Store, open_store

HELD = "held.json"


class Held(Record):
    """What a verdict is about: digests of policy and challenger, and the champion's pointer at that time.

    `challenger` is the digest of its whole folder, `files` has those of the files that are published of it.
    """

    environment: Name
    policy: Sha256
    challenger: Sha256
    files: Files
    champion: Pointer | None


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
    """Write `out`/<name>/verdict.json for each environment, and held.json: what was held against what.

    Where the champion was trained on another policy, or the environment was rolled back to no adapter, the challenger is held
    against the policy without adapter. A challenger that is champion already keeps the verdict that made it so. An environment
    fails if the judges left too many contexts unscored: its feedback is kept for another night.
    """
    registry, policy = open_store(store), sha256_tree(inputs.policy)

    def work(spec: EnvironmentSpec, settings: Profile, folder: Path) -> None:
        if spec.control:
            raise SkipError("a control is never promoted")
        challenger, feedback = ready(inputs.adapters, spec), ready(inputs.feedback, spec)
        # read once: promotion moves the very pointer that the challenger was held against
        now = champion(registry, spec.environment)
        digest, files = sha256_tree(challenger), Files.of(challenger)
        held = Held(environment=spec.environment, policy=policy, challenger=digest, files=files, champion=now)
        write_json(folder / HELD, held.model_dump(mode="json"))
        opponent = _opponent(registry, now, policy)
        if opponent is not None and opponent[0].files == files:
            atomic_write(folder / VERDICT, read_verdict(registry, spec.environment, opponent[1]))
            return
        _evaluate(challenger, inputs, backends, settings, seed, folder / "challenger")
        present = inputs.evaluation
        if opponent is not None:
            known = folder / opponent[0].name
            fetch(registry, spec.environment, opponent[0].version, known)
            present = folder / "champion"
            _evaluate(known, inputs, backends, settings, seed, present)
        arms = (present, folder / "challenger", inputs.segments, inputs.questions, feedback)
        verdict = gate(*arms, spec.environment, backends, settings, seed, folder)
        if not verdict.unscored.passed:
            raise UserError(f"{verdict.reasons[0]}; mend the judge and run the night again")

    return run_shard("gate", shard, profile, inputs.adapters, out, work, progress)


def _opponent(registry: Store, now: Pointer | None, policy: str) -> tuple[Manifest, str] | None:
    """The champion and the verdict that made it so; None where the policy without adapter is to be beaten."""
    if now is None or now.version is None or now.verdict is None or now.policy != policy:
        return None
    return read_manifest(registry, now.environment, now.version), now.verdict


def _evaluate(adapter: Path, inputs: GateInputs, backends: Backends, profile: Profile, seed: int, out: Path) -> None:
    # a shard of controls alone needs no torch
    from taskmem.stages.evaluate import streaming_eval  # noqa: PLC0415

    streaming_eval(inputs.segments, inputs.questions, inputs.policy, backends, profile, seed, out, adapter)
