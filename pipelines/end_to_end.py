"""The whole loop on the embedded world: base, Phase One, deployment, Phase Two with its controls, evaluation, report.

taskmem demo                 runs it with Kubeflow's local runner
taskmem compile              writes its IR
"""

from typing import Any, List, NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Markdown, Model
from kfp.dsl.base_component import BaseComponent

from components.base import named
from components.deployment.component import deployment
from components.feedback_collection.component import feedback_collection
from components.phase_one_gspo.component import phase_one_gspo
from components.streaming_eval.component import choose_tasks, results_report, streaming_eval
from components.video_segmentation.component import video_segmentation
from components.world_render.component import world_render
from pipelines.parts import Placement, adapt_shard, importer, judged_candidates, record
from taskmem.world.splits import SPLITS


class Arms(NamedTuple):
    """What all adapted arms made."""

    feedback: List[Dataset]
    preferences: List[Dataset]
    adapters: List[Model]
    verdicts: List[Dataset]
    outcomes: List[Dataset]
    evaluations: List[Dataset]


class Demo(NamedTuple):
    """What a person opens."""

    results: Dataset
    report: HTML
    table: Markdown
    record: Dataset


def _arms(put: Placement) -> BaseComponent:
    """All adapted arms, two at a time: collect, adapt, evaluate on the held-out streams."""
    adapt = adapt_shard(put, own_store=True)
    collect, evaluate = named(feedback_collection, "collect-arm"), named(streaming_eval, "evaluate-arm")

    @dsl.pipeline(name="arms", description="Every adapted arm.")
    def arms(
        shards: List[dict],
        events: Input[Dataset],
        rollouts: Input[Dataset],
        judgements: Input[Dataset],
        segments: Input[Dataset],
        policy: Input[Model],
        champion: Input[Dataset],
        gate_segments: Input[Dataset],
        gate_questions: Input[Dataset],
        held_out: Input[Dataset],
        questions: Input[Dataset],
        store: str,
        profile: str,
        seed: int,
    ) -> Arms:
        with dsl.ParallelFor(shards, name="arm", parallelism=2) as shard:
            collected = collect(shard=shard, events=events, parts="", store="", profile=profile)
            put(collected, "feedback_collection", "collect")
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
            asked = {"segments": held_out, "questions": questions, **put.truth(questions)}
            steered = {"policy": policy, "adapters": done.outputs["adapters"]}
            evaluated = evaluate(shard=shard, **asked, **steered, profile=profile, seed=seed)
            put(evaluated, "streaming_eval", "evaluate")
        return Arms(
            feedback=dsl.Collected(collected.outputs["feedback"]),
            preferences=dsl.Collected(done.outputs["preferences"]),
            adapters=dsl.Collected(done.outputs["adapters"]),
            verdicts=dsl.Collected(done.outputs["verdicts"]),
            outcomes=dsl.Collected(done.outputs["outcomes"]),
            evaluations=dsl.Collected(evaluated.outputs["evaluation"]),
        )

    return arms


class _Demo:
    """The tasks of the demonstration, in the order they are told; call its methods inside of a pipeline's body."""

    def __init__(
        self, put: Placement, arms: BaseComponent, base: Any, where: dict[str, Any], profile: Any, seed: Any
    ) -> None:
        self._put = put
        self._arms = arms
        self._base = importer(base, Model)
        self._where = where
        self._profile = profile
        self._shared = {"profile": profile, "seed": seed}
        self._world = put(world_render(**self._shared), "video_segmentation", "world")
        self._film = {split: self._segments(split) for split in SPLITS}
        learned = self._phase_one()
        self._policy, self._training = learned.outputs["policy"], learned.outputs["training"]

    def _segments(self, split: str) -> Any:
        cut = video_segmentation(videos=self._world.outputs[split], folder="videos", profile=self._profile)
        return self._put(cut, "video_segmentation", f"segments {split}").outputs["segments"]

    def _phase_one(self) -> dsl.PipelineTask:
        learned = phase_one_gspo(
            segments=self._film["phase_one"],
            base=self._base,
            development=self._film["development"],
            questions=self._world.outputs["development"],
            **self._put.truth(self._world.outputs["phase_one"]),
            job=self._put.job("phase_one_gspo"),
            **self._shared,
        )
        return self._put(learned, "phase_one_gspo")

    def _on(self, split: str) -> dict[str, Any]:
        source = self._world.outputs[split]
        return {"segments": self._film[split], "questions": source, **self._put.truth(source)}

    def _evaluate(self, arm: Any, name: str, split: str, policy: Any, **more: Any) -> Any:
        task = streaming_eval(shard=arm, policy=policy, **self._on(split), **more, **self._shared)
        return self._put(task, "streaming_eval", name).outputs["evaluation"]

    def run(self) -> Demo:
        """All that comes after Phase One."""
        champion = self._evaluate({"name": "development"}, "development", "development", self._policy)
        chosen = self._put(choose_tasks(evaluation=champion), "feedback_collection", "choose the task")
        deployed = deployment(policy=self._policy, **self._on("deployment"), **self._shared)
        events = self._put(deployed, "deployment").outputs["events"]
        prompted = chosen.outputs["prompted"]
        collected = feedback_collection(shard=prompted, events=events, parts="", store="", profile=self._profile)
        feedback = self._put(collected, "feedback_collection").outputs["feedback"]
        references = {
            "base_arm": self._evaluate({"name": "base"}, "evaluate base", "held_out", self._base),
            "prompted_arm": self._evaluate(prompted, "evaluate task_prompt", "held_out", self._base, feedback=feedback),
            "policy_arm": self._evaluate({"name": "phase_one"}, "evaluate phase_one", "held_out", self._policy),
        }
        return self._adapt(champion, chosen, events, feedback, references)

    def _adapt(
        self, champion: Any, chosen: dsl.PipelineTask, events: Any, feedback: Any, references: dict[str, Any]
    ) -> Demo:
        film, world = self._film, self._world.outputs
        rollouts, judgements = judged_candidates(
            self._put, film["deployment"], self._policy, world["deployment"], "", **self._shared
        )
        adapted = self._arms(
            shards=chosen.outputs["adapted"],
            events=events,
            rollouts=rollouts,
            judgements=judgements,
            segments=film["deployment"],
            policy=self._policy,
            champion=champion,
            gate_segments=film["development"],
            gate_questions=world["development"],
            held_out=film["held_out"],
            questions=world["held_out"],
            store=self._where["store"],
            **self._shared,
        )
        shown = results_report(
            base=self._base,
            **references,
            adapted_arms=adapted.outputs["evaluations"],
            adapters=adapted.outputs["adapters"],
            verdicts=adapted.outputs["verdicts"],
            training=self._training,
            feedback=feedback,
            task=chosen.outputs["task"],
            **self._on("held_out"),
            **self._shared,
        )
        self._put(shown, "feedback_collection", "report")
        recorded = record(
            self._put,
            adapted,
            self._where,
            shards=chosen.outputs["adapted"],
            segments=film["deployment"],
            events=events,
            policy=self._policy,
            rollouts=rollouts,
            judgements=judgements,
            gate_segments=film["development"],
            gate_questions=world["development"],
            champion=champion,
            **self._shared,
        )
        made = {name: shown.outputs[name] for name in ("results", "report", "table")}
        return Demo(**made, record=recorded.outputs["record"])


def end_to_end(put: Placement) -> BaseComponent:
    """The pipeline, with every task placed; it needs a profile with a world."""
    arms = _arms(put)

    @dsl.pipeline(name="taskmem-end-to-end", description="The whole loop on the embedded world.")
    def pipeline(base: str, store: str, profile: str, seed: int = 0, lineage: str = "", remote: str = "") -> Demo:
        """Run the loop.

        Args:
            base: URI of the base policy's checkpoint.
            store: URL of the object store that holds adapters and champions.
            profile: the profile as JSON.
            seed: seed of every draw.
            lineage: URL of the git repository that the run becomes a commit of; without one there is lineage.json only.
            remote: s3://bucket/prefix or folder that DVC keeps the commit's data in; needed with `lineage`.
        """
        where = {"run": "", "store": store, "lineage": lineage, "remote": remote}
        return _Demo(put, arms, base, where, profile, seed).run()

    return pipeline
