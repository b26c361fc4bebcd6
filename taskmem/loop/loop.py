"""The loop on the embedded world: base, Phase One, deployment, Phase Two with its controls, and the held-out evaluation."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from taskmem.backends import Backends, backends_for
from taskmem.config import Profile, WorldSettings
from taskmem.errors import UserError
from taskmem.files import sha256_tree
from taskmem.loop.results import ARMS, loop_results
from taskmem.loop.runner import Display, Done, Runner, Work
from taskmem.loop.tasks import ADAPTER, OTHER, OWN, RANDOM, choose_tasks
from taskmem.phase_two.frozen import FrozenPolicy
from taskmem.progress import Progress
from taskmem.records import Refusal, read_json, read_records, write_json
from taskmem.stages import adapt, candidates, collect, deploy, evaluate, judging, mining, segmentation, train_policy
from taskmem.stages.common import EVENTS, QUESTIONS, SUMMARY
from taskmem.store.locks import acquire, release
from taskmem.world.splits import SPLITS, render_split


@dataclass(frozen=True)
class _Learning:
    """What Phase Two works from: pi_0's candidates on the deployment's streams, judged, and the people's questions."""

    feedback: Done
    rollouts: Done
    judgements: Done


class Loop:
    """One run of the loop below `out`.

    `videos`, if given, is a folder of further videos that join the deployment's streams.
    """

    def __init__(
        self, out: Path, base: Path, profile: Profile, seed: int, display: Display, videos: Path | None = None
    ) -> None:
        if profile.world is None:
            raise UserError(f"profile {profile.name}: the loop runs on the embedded world; use --profile miniature")
        for name in ("config.json", "model.safetensors", "tokenizer.json", "processor_config.json"):
            if not (base / name).is_file():
                raise UserError(f"{base}: no policy checkpoint ({name} is missing); give a folder that pretrain wrote")
        if videos is not None and not videos.is_dir():
            raise UserError(f"{videos}: no folder; give --videos a folder of videos")
        self.out = out
        self._base, self._base_digest = base, sha256_tree(base)
        self._profile, self._world_settings = profile, profile.world
        self._seed = seed
        self._videos = videos
        self._runner = Runner(out, display)

    def run(self) -> dict[str, Any]:
        """Run every stage that is not done; writes `out`/results.json and returns its content.

        UserError if another run is writing to `out`.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        try:
            lock = acquire(self.out / ".lock", wait=False)
        except BlockingIOError:
            raise UserError(f"{self.out}: another run is writing there; wait for it or give another --out") from None
        try:
            return self._run()
        finally:
            release(lock)

    def _run(self) -> dict[str, Any]:
        (self.out / "results.json").unlink(missing_ok=True)
        worlds = {split: self._render(split, self._world_settings) for split in SPLITS}
        film = {split: self._segment(split, worlds[split]) for split in SPLITS}
        pi_0 = self._phase_one(worlds, film)
        task, other = self._choose(worlds["development"], film["development"], pi_0)
        learning = self._deploy(worlds["deployment"], film["deployment"], pi_0)
        adapters = self._adapt(film["deployment"], pi_0, learning, task, other)
        arms = self._arms(worlds["held_out"], film["held_out"], pi_0, adapters, learning, task)
        seconds = self._runner.seconds
        results = loop_results(arms, task, self._base_digest, self._profile, self._seed, seconds)
        write_json(self.out / "results.json", results)
        return results

    def refusals(self) -> list[Refusal]:
        """The videos that were refused or cut, of all splits."""
        return [r for split in SPLITS for r in read_records(self.out / "segments" / split / "refused.jsonl", Refusal)]

    @cached_property
    def _backends(self) -> Backends:
        return backends_for(self._profile, self.out / "world")

    def _stage(
        self, name: str, work: Work, inputs: Mapping[str, Done | str], settings: Mapping[str, Any] | None = None
    ) -> Done:
        shared = {"profile": self._profile.model_dump(mode="json"), "seed": self._seed}
        return self._runner(name, work, inputs, {**shared, **(settings or {})})

    def _render(self, split: str, world: WorldSettings) -> Done:
        # further videos join the deployment's streams, as a user's would
        added = self._videos if split == "deployment" else None

        def work(out: Path, progress: Progress) -> None:
            # what a killed attempt copied would look like a clash of names
            shutil.rmtree(out / "videos", ignore_errors=True)
            render_split(out, split, world, self._seed, progress)
            for path in sorted(added.rglob("*")) if added else ():
                target = out / "videos" / path.relative_to(added or path)
                if path.is_dir():
                    target.mkdir(exist_ok=True)
                elif target.exists():
                    raise UserError(f"{path}: named like a rendered stream; rename it")
                else:
                    shutil.copyfile(path, target)

        return self._stage(f"world/{split}", work, {"added": sha256_tree(added) if added else "none"})

    def _segment(self, split: str, world: Done) -> Done:
        def work(out: Path, progress: Progress) -> None:
            segmentation.segmentation(world.folder / "videos", self._profile, out, progress)

        return self._stage(f"segments/{split}", work, {"world": world})

    def _phase_one(self, worlds: Mapping[str, Done], film: Mapping[str, Done]) -> Done:
        questions = worlds["development"].folder / QUESTIONS

        def work(out: Path, progress: Progress) -> None:
            train_policy.phase_one(
                film["phase_one"].folder,
                self._base,
                film["development"].folder,
                questions,
                self._backends,
                self._profile,
                self._seed,
                out,
                progress,
            )

        splits = ("phase_one", "development")
        worlds_used = {f"world_{split}": worlds[split] for split in splits}
        film_used = {f"segments_{split}": film[split] for split in splits}
        return self._stage("phase_one", work, {"base": self._base_digest, **worlds_used, **film_used})

    def _choose(self, world: Done, film: Done, pi_0: Done) -> tuple[str, str]:
        """The deployment's task and the control's, chosen on the development split."""
        done = self._evaluate("development", world, film, _policy(pi_0), {"policy": pi_0})
        return choose_tasks(read_json(done.folder / SUMMARY)["by_type"])

    def _deploy(self, world: Done, film: Done, pi_0: Done) -> _Learning:
        profile, seed, policy = self._profile, self._seed, _policy(pi_0)

        def deployed(out: Path, progress: Progress) -> None:
            questions = world.folder / QUESTIONS
            deploy.deployment(film.folder, policy, questions, self._backends, profile, seed, out, progress)

        def collected(out: Path, progress: Progress) -> None:
            collect.feedback_collection(deployment.folder / EVENTS, None, profile, out)

        def cached(out: Path, progress: Progress) -> None:
            candidates.rollout_cache(film.folder, policy, profile, seed, out, progress)

        def judged(out: Path, progress: Progress) -> None:
            judging.judge_scoring(rollouts.folder, film.folder, self._backends, profile, out, progress)

        deployment = self._stage("deployment", deployed, {"policy": pi_0, "segments": film, "world": world})
        feedback = self._stage("feedback", collected, {"deployment": deployment})
        rollouts = self._stage("rollouts", cached, {"policy": pi_0, "segments": film})
        judgements = self._stage("judgements", judged, {"rollouts": rollouts, "segments": film, "world": world})
        return _Learning(feedback, rollouts, judgements)

    def _adapt(self, film: Done, pi_0: Done, learning: _Learning, task: str, other: str) -> dict[str, Done]:
        """The adapter of the deployment's task and those of the two controls."""
        pairs = {OWN: self._mine(OWN, film, learning, task), OTHER: self._mine(OTHER, film, learning, other)}
        pairs[RANDOM] = self._draw(learning, pairs[OWN])
        return {arm: self._train(arm, film, pi_0, learning, mined) for arm, mined in pairs.items()}

    def _mine(self, arm: str, film: Done, learning: _Learning, environment: str) -> Done:
        def work(out: Path, progress: Progress) -> None:
            mining.preference_mining(
                learning.rollouts.folder,
                learning.judgements.folder,
                film.folder,
                learning.feedback.folder,
                environment,
                self._backends.judges.helpfulness,
                self._profile,
                self._seed,
                out,
            )

        return self._stage(f"preferences/{arm}", work, vars(learning), {"environment": environment})

    def _draw(self, learning: _Learning, like: Done) -> Done:
        def work(out: Path, progress: Progress) -> None:
            mining.random_mining(
                learning.rollouts.folder, learning.judgements.folder, like.folder, self._profile, self._seed, out
            )

        return self._stage(f"preferences/{RANDOM}", work, {**vars(learning), "like": like})

    def _train(self, arm: str, film: Done, pi_0: Done, learning: _Learning, pairs: Done) -> Done:
        rollouts = learning.rollouts

        def work(out: Path, progress: Progress) -> None:
            adapt.phase_two(
                pairs.folder,
                rollouts.folder,
                film.folder,
                FrozenPolicy(_policy(pi_0)),
                ADAPTER,
                self._profile,
                self._seed,
                out,
                progress,
            )

        return self._stage(f"adapters/{arm}", work, {"preferences": pairs, "rollouts": rollouts, "policy": pi_0})

    def _arms(
        self, world: Done, film: Done, pi_0: Done, adapters: Mapping[str, Done], learning: _Learning, task: str
    ) -> dict[str, Path]:
        prompt = evaluate.recent_task_prompt(learning.feedback.folder, task, self._profile)
        done = {
            "base": self._evaluate("arms/base", world, film, self._base, {"policy": self._base_digest}),
            "task_prompt": self._evaluate(
                "arms/task_prompt", world, film, self._base, {"policy": self._base_digest}, task=prompt
            ),
            "phase_one": self._evaluate("arms/phase_one", world, film, _policy(pi_0), {"policy": pi_0}),
        }
        for arm, adapter in adapters.items():
            inputs = {"policy": pi_0, "adapter": adapter}
            folder = adapter.folder / ADAPTER
            done[arm] = self._evaluate(f"arms/{arm}", world, film, _policy(pi_0), inputs, adapter=folder)
        return {arm: done[arm].folder for arm in ARMS}

    def _evaluate(
        self,
        name: str,
        world: Done,
        film: Done,
        policy: Path,
        inputs: Mapping[str, Done | str],
        adapter: Path | None = None,
        task: str | None = None,
    ) -> Done:
        def work(out: Path, progress: Progress) -> None:
            questions = world.folder / QUESTIONS
            evaluate.streaming_eval(
                film.folder, questions, policy, self._backends, self._profile, self._seed, out, adapter, task, progress
            )

        return self._stage(name, work, {"world": world, "segments": film, **inputs}, {"task_prompt": task})


def _policy(pi_0: Done) -> Path:
    return pi_0.folder / "policy"
