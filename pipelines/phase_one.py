"""Before deployment: videos to a policy that knows how to memorize, with its quality report and a first deployment.

taskmem compile              writes its IR
"""

from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import Dataset, Model
from kfp.dsl.base_component import BaseComponent

from components.deployment.component import deployment
from components.phase_one_gspo.component import phase_one_gspo
from components.streaming_eval.component import streaming_eval
from components.video_segmentation.component import video_segmentation
from pipelines.parts import Placement, importer, judged_candidates


class PhaseOne(NamedTuple):
    """The policy, and what is known of it."""

    policy: Model
    judgements: Dataset
    events: Dataset
    evaluation: Dataset


def phase_one(put: Placement) -> BaseComponent:
    """The pipeline, with every task placed."""

    def cut(split: str, videos: Any, profile: Any) -> Any:
        task = video_segmentation(videos=videos, folder="videos", profile=profile)
        return put(task, "video_segmentation", f"segments {split}").outputs["segments"]

    @dsl.pipeline(name="taskmem-phase-one", description="Videos to a policy that knows how to memorize.")
    def pipeline(
        train: str, development: str, deployed: str, held_out: str, base: str, profile: str, seed: int = 0
    ) -> PhaseOne:
        """Train, judge, deploy and evaluate pi_0.

        Args:
            train: URI of a split to learn from: a folder with videos/.
            development: URI of a split with videos/ and questions.jsonl, by which the checkpoint is picked.
            deployed: URI of such a split that the agent watches; its questions become feedback.
            held_out: URI of such a split that nothing else sees, for the evaluation.
            base: URI of the base policy's checkpoint.
            profile: the profile as JSON.
            seed: seed of every draw.
        """
        splits = {"train": train, "development": development, "deployed": deployed, "held_out": held_out}
        source = {name: importer(uri, Dataset) for name, uri in splits.items()}
        film = {name: cut(name, source[name], profile) for name in splits}
        shared = {"profile": profile, "seed": seed}
        learned = phase_one_gspo(
            segments=film["train"],
            base=importer(base, Model),
            development=film["development"],
            questions=source["development"],
            **put.truth(source["train"]),
            job=put.job("phase_one_gspo"),
            **shared,
        )
        policy = put(learned, "phase_one_gspo").outputs["policy"]
        _, judgements = judged_candidates(put, film["development"], policy, source["development"], "", **shared)
        here = {"segments": film["deployed"], "questions": source["deployed"], **put.truth(source["deployed"])}
        agent = put(deployment(policy=policy, **here, **shared), "deployment")
        there = {"segments": film["held_out"], "questions": source["held_out"], **put.truth(source["held_out"])}
        measured = streaming_eval(shard={"name": "phase_one"}, policy=policy, **there, **shared)
        put(measured, "streaming_eval")
        return PhaseOne(
            policy=policy,
            judgements=judgements,
            events=agent.outputs["events"],
            evaluation=measured.outputs["evaluation"],
        )

    return pipeline
