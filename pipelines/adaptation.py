"""The nightly run: every environment with enough new feedback gets a challenger, and a champion if it wins.

    taskmem compile              writes its IR; `shards` is a list of {"name", "environments": [{"environment", "settings"}]}

One environment's failure never stops the others: it ends in the outcomes with its reason. The candidates of a context
are sampled once and kept in the store. However the night ends, its exit handler tells Prometheus. The pipeline has no outputs,
for kfp lets none out of what an exit handler watches over: record and summary are the task lineage_record's.
"""

from typing import Any, List, NamedTuple

from kfp import dsl
from kfp.dsl import Dataset, Input, Model
from kfp.dsl.base_component import BaseComponent

from components.feedback_collection.component import feedback_collection
from components.notify.component import notify
from components.streaming_eval.component import streaming_eval
from pipelines.parts import Placement, adapt_shard, importer, judged_candidates, record


class Night(NamedTuple):
    """What the shards made, one artifact each."""

    feedback: List[Dataset]
    preferences: List[Dataset]
    adapters: List[Model]
    verdicts: List[Dataset]
    outcomes: List[Dataset]


def _fan_out(put: Placement) -> BaseComponent:
    """All shards: collect, then adapt."""
    adapt = adapt_shard(put)
    events_kind: Any = Input[Dataset] if put.from_logs else str

    @dsl.pipeline(name="shards", description="Every shard of environments.")
    def shards_pipeline(
        shards: List[dict],
        events: events_kind,
        rollouts: Input[Dataset],
        judgements: Input[Dataset],
        segments: Input[Dataset],
        policy: Input[Model],
        champion: Input[Dataset],
        gate_segments: Input[Dataset],
        gate_questions: Input[Dataset],
        store: str,
        profile: str,
        seed: int,
    ) -> Night:
        with dsl.ParallelFor(shards, name="shard", parallelism=8) as shard:
            source = {"events": events, "parts": ""} if put.from_logs else {"parts": events}
            collected = feedback_collection(shard=shard, store=store, profile=profile, **source)
            # the watermark lies in the store, where no cache sees it
            put(collected, "feedback_collection", "collect", cached=False)
            done = adapt(
                shard=shard,
                feedback=collected.outputs["feedback"],
                rollouts=rollouts,
                judgements=judgements,
                segments=segments,
                policy=policy,
                champion=champion,
                gate_segments=gate_segments,
                gate_questions=gate_questions,
                store=store,
                profile=profile,
                seed=seed,
            )
        return Night(
            feedback=dsl.Collected(collected.outputs["feedback"]),
            preferences=dsl.Collected(done.outputs["preferences"]),
            adapters=dsl.Collected(done.outputs["adapters"]),
            verdicts=dsl.Collected(done.outputs["verdicts"]),
            outcomes=dsl.Collected(done.outputs["outcomes"]),
        )

    return shards_pipeline


def adaptation(put: Placement) -> BaseComponent:
    """The pipeline, with every task placed."""
    fan_out = _fan_out(put)

    @dsl.pipeline(name="taskmem-adaptation", description="Nightly: feedback to promoted adapters.")
    def pipeline(
        shards: List[dict],
        events: str,
        segments: str,
        policy: str,
        gate_segments: str,
        gate_questions: str,
        store: str,
        profile: str,
        seed: int = 0,
        world: str = "",
        lineage: str = "",
        remote: str = "",
        pushgateway: str = "",
    ) -> None:
        """Adapt every environment of `shards`.

        Args:
            shards: environments by shard, each shard one job.
            events: URI of a folder of feedback logs, <environment>.jsonl; where the profile's feedback comes in parts, URL of
                the object store that the agents ship it to.
            segments: URI of the deployment's segments, as video_segmentation wrote them.
            policy: URI of the Phase One policy.
            gate_segments: URI of the segments that challenger and champion are compared on.
            gate_questions: URI of a folder with the questions.jsonl about those.
            store: URL of the object store that holds candidates, adapters and champions.
            profile: the profile as JSON.
            seed: seed of every draw.
            world: URI of the deployment's split of the embedded world, for a profile that has one.
            lineage: URL of the git repository that every run becomes a commit of; without one there is lineage.json only.
            remote: s3://bucket/prefix or folder that DVC keeps the data of those commits in; needed with `lineage`.
            pushgateway: URL of the Prometheus Pushgateway that is told the night's outcome; without one nobody is.
        """
        film, held_out, asked = (importer(uri, Dataset) for uri in (segments, gate_segments, gate_questions))
        logs = {"events": importer(events, Dataset)} if put.from_logs else {}
        pi_0 = importer(policy, Model)
        shared = {"profile": profile, "seed": seed}
        truth = importer(world, Dataset) if put.profile.world else None
        run = dsl.PIPELINE_JOB_ID_PLACEHOLDER
        told = notify(run=run, shards=shards, store=store, pushgateway=pushgateway, profile=profile)
        # what it takes and tells lies outside of what a cache knows
        put(told, "notify", cached=False)
        with dsl.ExitHandler(told, name="night"):
            rollouts, judgements = judged_candidates(put, film, pi_0, truth, store, **shared)
            arm = {"shard": {"name": "policy"}, "segments": held_out, "questions": asked, **put.truth(asked)}
            champion = put(streaming_eval(**arm, policy=pi_0, **shared), "streaming_eval", "evaluate policy")
            night = fan_out(
                shards=shards,
                **(logs or {"events": events}),
                rollouts=rollouts,
                judgements=judgements,
                segments=film,
                policy=pi_0,
                champion=champion.outputs["evaluation"],
                gate_segments=held_out,
                gate_questions=asked,
                store=store,
                **shared,
            )
            made = {"segments": film, **logs, "policy": pi_0, "rollouts": rollouts, "judgements": judgements}
            gate = {"gate_segments": held_out, "gate_questions": asked, "champion": champion.outputs["evaluation"]}
            where = {"run": run, "store": store, "lineage": lineage, "remote": remote}
            record(put, night, where, shards=shards, **made, **gate, **shared)

    return pipeline
