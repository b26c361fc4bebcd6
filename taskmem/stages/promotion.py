"""Promotion: a challenger that passed the gate becomes its environment's champion."""

from pathlib import Path

from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.evaluation.gate import Verdict
from taskmem.feedback import read_collection
from taskmem.files import canonical_json, sha256_bytes, sha256_file, sha256_tree
from taskmem.lineage.code import commit
from taskmem.lineage.outcome import Outcome
from taskmem.records import Comparison, Judge, Question, read_json, read_records
from taskmem.registry import Provenance, WatermarkMovedError, advance, champion, promote, publish, watermark
from taskmem.stages.common import COMPARISONS, PREFERENCES
from taskmem.stages.gate import VERDICT
from taskmem.stages.gating import HELD, Held
from taskmem.stages.nightly import SINCE
from taskmem.stages.shard import EnvironmentSpec, Shard, ready, run_shard
from taskmem.store import Store, open_store

STAGE = "promotion"


def promote_shard(
    shard: Shard,
    adapters: Path,
    verdicts: Path,
    preferences: Path,
    feedback: Path,
    store: str,
    profile: Profile,
    image: str,
    seed: int,
    out: Path,
) -> list[Outcome]:
    """Publish each challenger and, where its verdict says so, move the champion's pointer to it by compare-and-swap.

    `image` names the image that trained them. Then the environment's watermark moves past the feedback that was used. Killed
    and run again it ends in the same state.
    """
    registry = open_store(store)

    def work(spec: EnvironmentSpec, settings: Profile, folder: Path) -> Outcome:
        del settings
        document = (ready(verdicts, spec) / VERDICT).read_bytes()
        verdict = Verdict.model_validate_json(document)
        held = _held(ready(verdicts, spec) / HELD, verdict, spec, ready(adapters, spec))
        _check_watermark(registry, spec.environment, ready(feedback, spec))
        provenance = _provenance(ready(preferences, spec), ready(feedback, spec), spec, held, image, seed)
        version = _publish(registry, spec, ready(adapters, spec), provenance)
        status, reason = "kept", "; ".join(verdict.reasons)
        if verdict.promote:
            promote(registry, spec.environment, version, held.champion, document)
            status, reason = "promoted", _evidence(verdict)
        _advance(registry, spec.environment, ready(feedback, spec))
        now = champion(registry, spec.environment)
        return Outcome.model_validate(
            {
                "environment": spec.environment,
                "name": spec.name,
                "stage": STAGE,
                "status": status,
                "reason": reason,
                "version": now.name if now else None,
            }
        )

    return run_shard(STAGE, shard, profile, verdicts, out, work)


def _evidence(verdict: Verdict) -> str:
    test, gold = verdict.win_test, verdict.gold
    return (
        f"{test.wins} wins and {test.losses} losses in {test.streams} streams (p = {test.p_value:.4f}), "
        f"gold questions {gold.champion:.3f} -> {gold.challenger:.3f}"
    )


def _held(path: Path, verdict: Verdict, spec: EnvironmentSpec, adapter: Path) -> Held:
    """What the verdict is about; UserError if it is about another environment or other bytes than `adapter`."""
    held = Held.model_validate_json(canonical_json(read_json(path)))
    if held.challenger != sha256_tree(adapter) or {held.environment, verdict.environment} != {spec.environment}:
        raise UserError(f"{path}: the verdict is about another adapter than {adapter}; run the gate again")
    return held


def _publish(registry: Store, spec: EnvironmentSpec, adapter: Path, provenance: Provenance) -> str:
    # reading an adapter needs torch, which an environment that was skipped does not
    from taskmem.steer import read_adapter  # noqa: PLC0415

    return publish(registry, spec.environment, adapter, provenance, read_adapter).version


def _provenance(pairs: Path, feedback: Path, spec: EnvironmentSpec, held: Held, image: str, seed: int) -> Provenance:
    questions: tuple[Question, ...] = read_collection(feedback).questions[spec.environment]
    ids = [question.id for question in questions]
    return Provenance(
        parent=held.champion.version if held.champion else None,
        policy=held.policy,
        pairs=sha256_file(pairs / PREFERENCES),
        feedback=sha256_bytes(canonical_json(ids)),
        feedback_count=len(ids),
        judges=_judges(pairs / COMPARISONS),
        commit=commit(),
        image=image,
        seed=seed,
    )


def _judges(comparisons: Path) -> tuple[Judge, ...]:
    known = {
        comparison.judge.model_dump_json(): comparison.judge for comparison in read_records(comparisons, Comparison)
    }
    return tuple(known[key] for key in sorted(known))


def _check_watermark(registry: Store, environment: str, feedback: Path) -> None:
    """UserError if another run has used the environment's feedback since it was collected here."""
    present = watermark(registry, environment)
    if present not in (_since(feedback), _used(feedback)):
        raise WatermarkMovedError(environment, present)


def _advance(registry: Store, environment: str, feedback: Path) -> None:
    advance(registry, environment, _used(feedback), _since(feedback))


def _since(feedback: Path) -> dict[str, int | str] | None:
    since: dict[str, int | str] | None = read_json(feedback / SINCE)
    return since


def _used(feedback: Path) -> dict[str, int | str]:
    used: dict[str, int | str] = read_collection(feedback).watermark.model_dump(mode="json")
    return used
