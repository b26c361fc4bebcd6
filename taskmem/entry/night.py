"""Entries of the stages that adapt environments, each for a shard of them."""

# ruff: noqa: PLC0415 - an entry imports its stage when it runs, so that an image needs only its own extra

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskmem.config import parse_profile
from taskmem.entry.common import Numbers, counts, entry, image, numbers, opened, questions_of
from taskmem.progress import progress_lines
from taskmem.records import read_records

TRUNK_CACHE = "TASKMEM_TRUNK_CACHE"
"""The variable that may name a folder for trunk states which outlives the task; by default they go with it."""


@entry
def feedback_collection(
    shard: Mapping[str, Any], events: str | None, parts: str, store: str, profile: str, feedback: str
) -> Numbers:
    """Collect each environment's recent questions, if there are enough new ones, from a folder of logs or the store `parts`."""
    from taskmem.stages.nightly import collect_shard
    from taskmem.stages.shard import Shard

    ended = collect_shard(Shard.parse(shard), events or parts, store, parse_profile(profile), Path(feedback))
    return counts(ended, "feedback_collection")


@entry
def preference_mining(
    shard: Mapping[str, Any],
    feedback: str,
    rollouts: str,
    judgements: str,
    segments: str,
    profile: str,
    seed: int,
    preferences: str,
) -> Numbers:
    """Mine each environment's preference pairs."""
    from taskmem.backends import helpfulness_judge, opened_remote
    from taskmem.stages.nightly import Learning, mine_shard
    from taskmem.stages.shard import Shard

    settings = parse_profile(profile)
    learning = Learning(Path(feedback), Path(rollouts), Path(judgements), Path(segments))
    with opened_remote(settings, Path(segments), Path(preferences)) as remote:
        judge = helpfulness_judge(settings, remote)
        outcomes = mine_shard(Shard.parse(shard), learning, judge, settings, seed, Path(preferences), progress_lines())
    return counts(outcomes, "preference_mining")


@entry
def phase_two_dpo(
    shard: Mapping[str, Any],
    preferences: str,
    rollouts: str,
    segments: str,
    policy: str,
    profile: str,
    seed: int,
    adapters: str,
) -> Numbers:
    """Train each environment's adapter; what is computed of a context once serves all of them."""
    from taskmem.stages.nightly import train_shard
    from taskmem.stages.shard import Shard

    paths = (Path(preferences), Path(rollouts), Path(segments), Path(policy))
    settings = parse_profile(profile)
    cache = Path(os.environ[TRUNK_CACHE]) if os.environ.get(TRUNK_CACHE) else None
    outcomes = train_shard(Shard.parse(shard), *paths, settings, seed, Path(adapters), progress_lines(), cache)
    return counts(outcomes, "phase_two_dpo")


@entry
def gate(
    shard: Mapping[str, Any],
    adapters: str,
    policy: str,
    evaluation: str,
    segments: str,
    questions: str,
    feedback: str,
    store: str,
    world: str | None,
    profile: str,
    seed: int,
    verdicts: str,
) -> Numbers:
    """Hold each environment's challenger against its champion; `evaluation` is the policy's without adapter."""
    from taskmem.stages.gating import GateInputs, gate_shard
    from taskmem.stages.shard import Shard

    settings = parse_profile(profile)
    paths = GateInputs(
        adapters=Path(adapters),
        policy=Path(policy),
        evaluation=Path(evaluation),
        segments=Path(segments),
        questions=questions_of(questions),
        feedback=Path(feedback),
    )
    with opened(settings, world, segments, verdicts) as ends:
        outcomes = gate_shard(Shard.parse(shard), paths, store, ends, settings, seed, Path(verdicts), progress_lines())
    return counts(outcomes, "gate")


@entry
def promotion(
    shard: Mapping[str, Any],
    adapters: str,
    verdicts: str,
    preferences: str,
    feedback: str,
    store: str,
    profile: str,
    seed: int,
    outcomes: str,
) -> Numbers:
    """Publish each challenger and move the champion's pointer to those that passed the gate."""
    from taskmem.stages.promotion import promote_shard
    from taskmem.stages.shard import Shard

    paths = (Path(adapters), Path(verdicts), Path(preferences), Path(feedback))
    settings = parse_profile(profile)
    ended = promote_shard(Shard.parse(shard), *paths, store, settings, image(), seed, Path(outcomes))
    return counts(ended, "promotion")


@entry
def lineage_record(
    used: Mapping[str, Sequence[str]],
    events: str | None,
    outcomes: Sequence[str],
    shards: Sequence[Mapping[str, Any]],
    run: str,
    store: str,
    lineage: str,
    remote: str,
    profile: str,
    seed: int,
    record: str,
    summary: str,
) -> Numbers:
    """Write down what a run was made of and what became of every environment; record it in `lineage`, "" for nowhere."""
    from taskmem.lineage.outcome import OUTCOMES, Outcome
    from taskmem.lineage.stage import Places, record_stage
    from taskmem.stages.shard import Shard, log

    artifacts = {name: [Path(path) for path in paths] for name, paths in used.items()}
    artifacts |= {"events": [Path(events)]} if events else {}
    ended = [o for path in outcomes for o in read_records(Path(path) / OUTCOMES, Outcome)]
    specs = [spec for shard in shards for spec in Shard.parse(shard).environments]
    told = (parse_profile(profile), image(), seed, Places(store, lineage, remote, run), Path(record), Path(summary))
    record_stage(artifacts, ended, specs, *told, log)
    return counts(ended)


@entry
def notify(
    state: str, run: str, shards: Sequence[Mapping[str, Any]], store: str, pushgateway: str, profile: str
) -> Numbers:
    """Tell the Pushgateway at the URL `pushgateway`, "" for none, what became of the run `run`, which ended as `state`."""
    from taskmem.stages.notify import notify as stage

    return numbers(stage(state, run, shards, store, pushgateway, parse_profile(profile)))
