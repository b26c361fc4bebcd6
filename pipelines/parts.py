"""What several pipelines are made of: stages on footage, and the adaptation of one shard of environments.

Every loop stands in a nested pipeline that takes what its body needs as parameters: kfp's local runner silently replaces an
upstream task's parameter by the loop's item. A nested pipeline takes at least one parameter, for the runner refuses one without.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import Dataset, Input, Model
from kfp.dsl.base_component import BaseComponent

from components.deployment.component import promotion
from components.images import Images
from components.judge_scoring.component import judge_scoring
from components.lineage_record.component import lineage_record
from components.phase_two_dpo.component import phase_two_dpo
from components.placement import place
from components.preference_mining.component import preference_mining
from components.rollout_cache.component import rollout_cache
from components.streaming_eval.component import gate
from taskmem.cluster import JobSettings, StageName
from taskmem.config import Profile
from taskmem.files import canonical_json


class Adapted(NamedTuple):
    """What one shard made, and what became of its environments."""

    preferences: Dataset
    adapters: Model
    verdicts: Dataset
    outcomes: Dataset


@dataclass(frozen=True)
class Placement:
    """Puts tasks where the profile wants them.

    `content_keyed` says that the runner's cache knows artifacts by their content, as the local runner's does. Kubeflow's knows
    them by name alone: there nothing is cached, lest tonight's feedback be answered with last night's.
    """

    profile: Profile
    images: Images
    content_keyed: bool = False

    def __call__(
        self, task: dsl.PipelineTask, stage: StageName, name: str | None = None, cached: bool = True
    ) -> dsl.PipelineTask:
        """`task` with its image and resources; see `components.placement.place`."""
        return place(task, stage, self.profile, self.images, name=name, cached=cached and self.content_keyed)

    @property
    def from_logs(self) -> bool:
        """Whether feedback comes as logs, which are an artifact; else in parts of a store, which is a URL."""
        return self.profile.cluster is None or self.profile.cluster.feedback == "logs"

    def job(self, stage: StageName) -> str:
        """The `job` argument of a stage that may run on nodes of its own; empty where it runs in its task."""
        cluster = self.profile.cluster
        if cluster is None or not cluster.on_nodes(stage):
            return ""
        asked = cluster.stages[stage]
        job = JobSettings(image=self.images.reference(asked.image), nodes=cluster.nodes, resources=asked)
        return canonical_json(job.model_dump(mode="json"))

    def truth(self, split: Any) -> dict[str, Any]:
        """The `world` argument of a judging stage: a rendered split, for a profile whose judges know the truth."""
        return {"world": split} if self.profile.world else {}


def adapt_shard(put: Placement, own_store: bool = False) -> BaseComponent:
    """The nested pipeline from collected feedback to promoted adapters, for one shard of environments.

    `own_store` says that nobody else moves the champions of the store, so that the gate's verdict may be kept.
    """

    @dsl.pipeline(name="adapt-shard", description="Mine, train, hold against the champion, promote.")
    def adapt(
        shard: dict,
        feedback: Input[Dataset],
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
    ) -> Adapted:
        shared = {"shard": shard, "profile": profile, "seed": seed}
        candidates = {"rollouts": rollouts, "segments": segments}
        pairs = preference_mining(**shared, **candidates, feedback=feedback, judgements=judgements)
        put(pairs, "preference_mining", "mine")
        trained = phase_two_dpo(**shared, **candidates, preferences=pairs.outputs["preferences"], policy=policy)
        put(trained, "phase_two_dpo", "adapt")
        judged = gate(
            **shared,
            adapters=trained.outputs["adapters"],
            policy=policy,
            evaluation=champion,
            segments=gate_segments,
            questions=gate_questions,
            feedback=feedback,
            store=store,
            **put.truth(gate_questions),
        )
        put(judged, "streaming_eval", "gate", cached=own_store)
        promoted = promotion(
            **shared,
            adapters=trained.outputs["adapters"],
            verdicts=judged.outputs["verdicts"],
            preferences=pairs.outputs["preferences"],
            feedback=feedback,
            store=store,
        )
        # the pointer lies outside of what a cache knows; done twice, it is as done once
        put(promoted, "deployment", "promote", cached=False)
        return Adapted(
            preferences=pairs.outputs["preferences"],
            adapters=trained.outputs["adapters"],
            verdicts=judged.outputs["verdicts"],
            outcomes=promoted.outputs["outcomes"],
        )

    return adapt


def importer(uri: str, kind: type) -> Any:
    """The artifact at a URI that is a parameter of the pipeline."""
    return dsl.importer(artifact_uri=uri, artifact_class=kind, reimport=False).output


def judged_candidates(
    put: Placement, segments: Any, policy: Any, world: Any, store: Any, profile: Any, seed: Any
) -> tuple[Any, Any]:
    """The candidates of every context, and what the judges say of them: artifacts of rollouts and judgements."""
    sampled = rollout_cache(segments=segments, policy=policy, store=store, profile=profile, seed=seed)
    rollouts = put(sampled, "rollout_cache").outputs["rollouts"]
    scored = judge_scoring(rollouts=rollouts, segments=segments, profile=profile, **put.truth(world))
    return rollouts, put(scored, "judge_scoring").outputs["judgements"]


def record(put: Placement, night: Any, where: Mapping[str, Any], **used: Any) -> dsl.PipelineTask:
    """The record of a run whose shards ended in the lists of `night`.

    `where` has the parameters run, store, lineage and remote; `used` the shards, the settings, and the artifacts that all shards
    used.
    """
    lists = {name: night.outputs[name] for name in ("feedback", "preferences", "adapters", "verdicts", "outcomes")}
    # the repository lies outside of what a cache knows; a run that it has already changes nothing
    return put(lineage_record(**used, **lists, **where), "lineage_record", cached=False)
