"""What a run was made of and what became of it."""

from typing import List

from kfp.dsl import Dataset, Input, Markdown, Metrics, Model, Output

from components.base import component


@component
def lineage_record(
    segments: Input[Dataset],
    gate_segments: Input[Dataset],
    gate_questions: Input[Dataset],
    champion: Input[Dataset],
    policy: Input[Model],
    rollouts: Input[Dataset],
    judgements: Input[Dataset],
    feedback: Input[List[Dataset]],
    preferences: Input[List[Dataset]],
    adapters: Input[List[Model]],
    verdicts: Input[List[Dataset]],
    outcomes: Input[List[Dataset]],
    shards: list,
    run: str,
    store: str,
    lineage: str,
    remote: str,
    profile: str,
    seed: int,
    record: Output[Dataset],
    summary: Output[Markdown],
    metrics: Output[Metrics],
    events: Input[Dataset] = None,
) -> None:
    """Write lineage.json (the digest of every artifact, the commit, the settings) and outcomes.jsonl of all environments.

    `events` are the logs that feedback was collected from; where it came in parts, what was read of them lies with it.
    Then record the run in the git repository `lineage`, its data in DVC's `remote`; "" for neither. A run that is there already
    changes nothing. Credentials of both come from the environment, never from a parameter. The numbers of the run `run` are left
    in the store for its exit handler, see the component `notify`; "" for a run that has none.
    """
    from taskmem.entry import lineage_record as stage

    gate = {"gate_segments": gate_segments, "gate_questions": gate_questions, "champion": champion}
    shared = {"segments": segments, "policy": policy, **gate, "rollouts": rollouts, "judgements": judgements}
    sharded = {"feedback": feedback, "preferences": preferences, "adapters": adapters, "verdicts": verdicts}
    used = {name: [artifact.path] for name, artifact in shared.items()}
    used |= {name: [artifact.path for artifact in artifacts] for name, artifacts in sharded.items()}
    logs, where = events.path if events else None, (run, store, lineage, remote)
    numbers = stage(used, logs, [o.path for o in outcomes], shards, *where, profile, seed, record.path, summary.path)
    for name, value in numbers.items():
        metrics.log_metric(name, value)
