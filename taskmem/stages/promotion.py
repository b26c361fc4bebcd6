"""Promotion: a challenger that passed the gate becomes its environment's champion."""

import getpass
import os
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from taskmem.config import Profile
from taskmem.erasure import tombstones
from taskmem.errors import UserError
from taskmem.evaluation.gate import Verdict
from taskmem.feedback import read_collection, rests_on_erased
from taskmem.files import canonical_json, sha256_bytes, sha256_file, sha256_tree
from taskmem.lineage.code import commit
from taskmem.lineage.outcome import Outcome
from taskmem.records import Comparison, Judge, Question, one_line, read_json, read_records
from taskmem.registry import (
    Manifest,
    Pointer,
    Provenance,
    WatermarkMovedError,
    advance,
    challenge,
    champion,
    current_policy,
    eligible,
    promote,
    publish,
    read_manifest,
    watermark,
)
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

    `image` names the image that trained them; the log says who ran this, and when. Then the environment's watermark moves past
    the feedback that was used. Killed and run again it ends in the same state. An environment fails where another policy than
    this run's is served by now: its feedback is kept for a run with that one.
    """
    registry, by = open_store(store), f"taskmem adaptation, as {operator()}"

    def work(spec: EnvironmentSpec, settings: Profile, folder: Path) -> Outcome:
        del settings
        document = (ready(verdicts, spec) / VERDICT).read_bytes()
        verdict = Verdict.model_validate_json(document)
        held = _held(ready(verdicts, spec) / HELD, verdict, spec, ready(adapters, spec))
        _check_policy(registry, held)
        _check_watermark(registry, spec.environment, ready(feedback, spec))
        _check_erased(registry, spec.environment, ready(feedback, spec))
        provenance = _provenance(ready(preferences, spec), ready(feedback, spec), spec, held, image, seed)
        version = _publish(registry, spec, ready(adapters, spec), provenance)
        challenge(registry, spec.environment, version)
        status, reason = "kept", "; ".join(verdict.reasons)
        if verdict.promote:
            promote(registry, spec.environment, version, held.champion, document, by, datetime.now(UTC))
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


def promote_by_hand(
    registry: Store, environment: str, version: str, verdict: Path, by: str, time: datetime, reason: str | None
) -> Pointer:
    """Make a version the champion on the gate's verdict in the file `verdict`, beside which held.json lies.

    A version that is champion already stays it. UserError for a verdict that does not say promote, or is about another
    environment, another adapter or another champion, unless there is a `reason`, which is recorded then; and as `promote`.
    """
    now, manifest = champion(registry, environment), read_manifest(registry, environment, version)
    if now is not None and now.version == version:
        return now
    try:
        document = verdict.read_bytes()
    except OSError as error:
        raise UserError(f"{verdict}: cannot be read ({error.strerror}); give the verdict.json of a gate") from None
    against = "; ".join(_objections(document, verdict.with_name(HELD), manifest, now))
    if against and reason is None:
        raise UserError(f"{verdict}: {against}; give a verdict that fits {manifest.name}, or a --reason to do without")
    return promote(registry, environment, version, now, document, by, time, reason)


def operator() -> str:
    """The login name of whoever runs this, or the number of a user who has none."""
    try:
        return one_line(getpass.getuser())[:100] or f"user {os.getuid()}"
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def _objections(document: bytes, held_at: Path, manifest: Manifest, now: Pointer | None) -> list[str]:
    """What speaks against promoting a version on a verdict."""
    try:
        verdict = Verdict.model_validate_json(document)
    except ValidationError:
        return ["is no verdict of the gate"]
    against = [] if verdict.promote else ["does not say promote"]
    if verdict.environment != manifest.environment:
        against.append(f"is about environment {verdict.environment}")
    try:
        held = Held.model_validate_json(held_at.read_bytes())
    except (OSError, ValidationError):
        return [*against, f"without a {HELD} beside it that says what was held against what"]
    if held.environment != verdict.environment:
        against.append(f"its {HELD} is about environment {held.environment}")
    if (held.policy, held.files) != manifest.content:
        against.append("is about another adapter")
    if held.champion != now:
        before, there = ((pointer and pointer.version) or "none" for pointer in (held.champion, now))
        against.append(f"was held against {before}, and the champion has moved since, it is {there}")
    return against


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


def _check_policy(registry: Store, held: Held) -> None:
    current = current_policy(registry)
    if current is not None and not eligible(held.policy, current):
        raise UserError(
            f"environment {held.environment}: adapted to the policy {held.policy[:12]}, but {current.policy[:12]} is served "
            "now; run the night with that one"
        )


def _check_watermark(registry: Store, environment: str, feedback: Path) -> None:
    """UserError if another run has used the environment's feedback since it was collected here."""
    present = watermark(registry, environment)
    if present not in (_since(feedback), _used(feedback)):
        raise WatermarkMovedError(environment, present)


def _check_erased(registry: Store, environment: str, feedback: Path) -> None:
    """UserError if a stream or source was erased whose questions were collected before that."""
    if rests_on_erased(read_collection(feedback), tombstones(registry)):
        raise UserError(
            f"environment {environment}: rests on a stream or source that was erased meanwhile; the next run adapts it anew"
        )


def _advance(registry: Store, environment: str, feedback: Path) -> None:
    advance(registry, environment, _used(feedback), _since(feedback))


def _since(feedback: Path) -> dict[str, int | str] | None:
    since: dict[str, int | str] | None = read_json(feedback / SINCE)
    return since


def _used(feedback: Path) -> dict[str, int | str]:
    used: dict[str, int | str] = read_collection(feedback).watermark.model_dump(mode="json")
    return used
