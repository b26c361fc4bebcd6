"""Entries of the stages that make, deploy and evaluate a policy."""

# ruff: noqa: PLC0415 - an entry imports its stage when it runs, so that an image needs only its own extra

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskmem.cluster import JobSettings
from taskmem.config import parse_profile
from taskmem.entry.common import Numbers, entry, image, numbers, opened, questions_of
from taskmem.errors import UserError
from taskmem.progress import progress_lines
from taskmem.records import read_json


@entry
def world_render(profile: str, seed: int, splits: Mapping[str, str]) -> None:
    """Render the embedded world: each split's videos, truth and questions into the folder named for it."""
    from taskmem.world.splits import render_split

    settings = parse_profile(profile)
    if settings.world is None:
        raise UserError(f"profile {settings.name}: has no world to render; use --profile miniature")
    tell = progress_lines()
    for number, (split, folder) in enumerate(splits.items()):
        render_split(Path(folder), split, settings.world, seed)
        tell(number + 1, len(splits))


@entry
def video_segmentation(videos: str, folder: str, profile: str, segments: str) -> Numbers:
    """Cut the videos in the subfolder `folder` of `videos` ("" for all of it)."""
    from taskmem.stages.segmentation import segmentation

    summary = segmentation(Path(videos) / folder, parse_profile(profile), Path(segments), progress_lines())
    return numbers(vars(summary))


@entry
def phase_one_gspo(
    segments: str,
    base: str,
    development: str,
    questions: str,
    world: str | None,
    profile: str,
    seed: int,
    policy: str,
    training: str,
    job: str,
) -> Numbers:
    """Train the base policy; its checkpoint goes to `policy`, the curves to `training`.

    `job` is a `taskmem.cluster.JobSettings` as JSON where the training is on other nodes, else empty.
    """
    settings = parse_profile(profile)
    out = Path(training)
    paths = (Path(segments), Path(base), Path(development), questions_of(questions))
    if job:
        from taskmem.stages.nodes import phase_one_on_nodes

        truth = Path(world) if world else None
        phase_one_on_nodes(*paths, truth, settings, seed, out, JobSettings.model_validate_json(job), os.environ)
    else:
        from taskmem.stages.train_policy import phase_one

        with opened(settings, world, segments, training) as ends:
            phase_one(*paths, ends, settings, seed, out, progress_lines())
    shutil.move(out / "policy", policy)
    validated = read_json(out / "validation.json")
    return {"picked_step": validated["picked"], "development_accuracy": validated["scores"][str(validated["picked"])]}


@entry
def rollout_cache(segments: str, policy: str, store: str, profile: str, seed: int, rollouts: str) -> None:
    """Sample the candidates of every context that the store (a URL, "" for none) does not hold yet."""
    from taskmem.stages.candidates import rollout_cache as stage
    from taskmem.store import open_store

    cache = open_store(store) if store else None
    stage(Path(segments), Path(policy), parse_profile(profile), seed, Path(rollouts), progress_lines(), cache)


@entry
def judge_scoring(rollouts: str, segments: str, world: str | None, profile: str, judgements: str) -> Numbers:
    """Judge every candidate."""
    from taskmem.stages.common import SUMMARY
    from taskmem.stages.judging import judge_scoring as stage

    settings = parse_profile(profile)
    with opened(settings, world, segments, judgements) as ends:
        stage(Path(rollouts), Path(segments), ends, settings, Path(judgements), progress_lines())
    return numbers(read_json(Path(judgements) / SUMMARY))


@entry
def deployment(
    policy: str,
    segments: str,
    questions: str,
    world: str | None,
    profile: str,
    seed: int,
    memories: str,
    events: str,
) -> Numbers:
    """Run the agent over the deployment's streams; `events` becomes the folder of feedback logs, one per environment."""
    from taskmem.stages.common import EVENTS, SUMMARY
    from taskmem.stages.deploy import deployment as stage

    settings = parse_profile(profile)
    asked, out = questions_of(questions), Path(memories)
    with opened(settings, world, segments, memories) as ends:
        stage(Path(segments), Path(policy), asked, ends, settings, seed, out, progress_lines(), image=image())
    shutil.move(out / EVENTS, events)
    return numbers(read_json(out / SUMMARY))


@entry
def streaming_eval(
    shard: Mapping[str, Any],
    segments: str,
    questions: str,
    policy: str,
    adapters: str | None,
    feedback: str | None,
    world: str | None,
    profile: str,
    seed: int,
    evaluation: str,
) -> Numbers:
    """Evaluate one arm: the policy, steered by the shard's only adapter or prompted with its environment's questions."""
    from taskmem.stages.common import SUMMARY
    from taskmem.stages.evaluate import recent_task_prompt
    from taskmem.stages.evaluate import streaming_eval as stage
    from taskmem.stages.shard import Shard, ready

    settings = parse_profile(profile)
    parsed = Shard.parse(shard)
    spec = parsed.only
    if spec is None and (adapters or feedback):
        raise UserError(f"shard {parsed.name}: names no environment whose adapter or questions to use")
    adapter = ready(Path(adapters), spec) if adapters and spec else None
    task = recent_task_prompt(ready(Path(feedback), spec), spec.environment, settings) if feedback and spec else None
    asked, out = questions_of(questions), Path(evaluation)
    with opened(settings, world, segments, evaluation) as ends:
        stage(Path(segments), asked, Path(policy), ends, settings, seed, out, adapter, task, progress_lines())
    summary = read_json(out / SUMMARY)
    return numbers({**summary["overall"], **summary})


@entry
def choose_tasks(evaluation: str) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """The deployment's task, the shard of the prompted arm, and one for each adapted arm."""
    from taskmem.loop import tasks
    from taskmem.stages.common import SUMMARY

    task, other = tasks.choose_tasks(read_json(Path(evaluation) / SUMMARY)["by_type"])
    return task, tasks.prompted_shard(task), tasks.adapted_shards(task, other)


@entry
def results_report(
    base: str,
    arms: Mapping[str, str],
    adapters: Sequence[str],
    verdicts: Sequence[str],
    training: str,
    segments: str,
    questions: str,
    feedback: str,
    world: str | None,
    task: str,
    profile: str,
    seed: int,
    results: str,
    report: str,
    table: str,
) -> Numbers:
    """Put the arms side by side: results.json, the HTML page, a Markdown table. Returns what people watch."""
    from taskmem.loop.report import ReportPaths, write_run

    settings = parse_profile(profile)
    paths = ReportPaths(
        base=Path(base),
        arms={arm: Path(folder) for arm, folder in arms.items()},
        adapters=[Path(folder) for folder in adapters],
        verdicts=[Path(folder) for folder in verdicts],
        training=Path(training),
        segments=Path(segments),
        questions=questions_of(questions),
        feedback=Path(feedback),
    )
    written = (Path(results), Path(report), Path(table))
    with opened(settings, world, segments, results) as ends:
        return write_run(paths, task, ends, settings, seed, *written)
