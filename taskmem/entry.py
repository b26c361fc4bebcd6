"""What a component calls: paths and JSON in, files and a few numbers out.

One function per component, so that a component's body is a line or two. Here paths become Paths and the profile's JSON becomes a
Profile; progress goes to the log as `::progress DONE/TOTAL`, which the local runner shows; a user's mistake ends the process with
one line and exit code 2.
"""

# ruff: noqa: PLC0415 - an entry imports its stage when it runs, so that an image needs only its own extra

import functools
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from taskmem.cluster import IMAGE, JobSettings
from taskmem.config import Profile, parse_profile
from taskmem.errors import UserError
from taskmem.progress import progress_lines
from taskmem.records import read_json, read_records

if TYPE_CHECKING:
    from taskmem.backends import Backends
    from taskmem.lineage.outcome import Outcome

P = ParamSpec("P")
R = TypeVar("R")
Numbers = dict[str, float]
TRUNK_CACHE = "TASKMEM_TRUNK_CACHE"
"""The variable that may name a folder for trunk states which outlives the task; by default they go with it."""


def entry(function: Callable[P, R]) -> Callable[P, R]:
    """Turns a user's mistake into one line and exit code 2."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            print(f"taskmem: {error}", flush=True)
            sys.exit(2)

    return guarded


def _backends(profile: Profile, world: str | None) -> "Backends":
    from taskmem.backends import backends_for

    return backends_for(profile, Path(world) if world else None)


def _questions(split: str) -> Path:
    from taskmem.stages.common import QUESTIONS

    return Path(split) / QUESTIONS


def _image() -> str:
    return os.environ.get(IMAGE, "unknown")


def _numbers(values: Mapping[str, Any]) -> Numbers:
    return {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}


def _counts(outcomes: "Sequence[Outcome]", stage: str | None = None) -> Numbers:
    """How many environments ended in each status, in `stage` if one is given: what failed before is not its failure."""
    from taskmem.lineage.outcome import counts

    return _numbers(counts([o for o in outcomes if stage in (None, o.stage)]))


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
    return _numbers(vars(summary))


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
    paths = (Path(segments), Path(base), Path(development), _questions(questions))
    if job:
        from taskmem.stages.nodes import phase_one_on_nodes

        truth = Path(world) if world else None
        phase_one_on_nodes(*paths, truth, settings, seed, out, JobSettings.model_validate_json(job), os.environ)
    else:
        from taskmem.stages.train_policy import phase_one

        phase_one(*paths, _backends(settings, world), settings, seed, out, progress_lines())
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
    stage(Path(rollouts), Path(segments), _backends(settings, world), settings, Path(judgements), progress_lines())
    return _numbers(read_json(Path(judgements) / SUMMARY))


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
    ends = _backends(settings, world)
    asked, out = _questions(questions), Path(memories)
    stage(Path(segments), Path(policy), asked, ends, settings, seed, out, progress_lines(), image=_image())
    shutil.move(out / EVENTS, events)
    return _numbers(read_json(out / SUMMARY))


@entry
def feedback_collection(
    shard: Mapping[str, Any], events: str | None, parts: str, store: str, profile: str, feedback: str
) -> Numbers:
    """Collect each environment's recent questions, if there are enough new ones, from a folder of logs or the store `parts`."""
    from taskmem.stages.nightly import collect_shard
    from taskmem.stages.shard import Shard

    ended = collect_shard(Shard.parse(shard), events or parts, store, parse_profile(profile), Path(feedback))
    return _counts(ended, "feedback_collection")


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
    from taskmem.backends import helpfulness_judge
    from taskmem.stages.nightly import Learning, mine_shard
    from taskmem.stages.shard import Shard

    settings = parse_profile(profile)
    learning = Learning(Path(feedback), Path(rollouts), Path(judgements), Path(segments))
    judge = helpfulness_judge(settings)
    outcomes = mine_shard(Shard.parse(shard), learning, judge, settings, seed, Path(preferences), progress_lines())
    return _counts(outcomes, "preference_mining")


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
    return _counts(outcomes, "phase_two_dpo")


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
    ends = _backends(settings, world)
    parsed = Shard.parse(shard)
    spec = parsed.only
    if spec is None and (adapters or feedback):
        raise UserError(f"shard {parsed.name}: names no environment whose adapter or questions to use")
    adapter = ready(Path(adapters), spec) if adapters and spec else None
    task = recent_task_prompt(ready(Path(feedback), spec), spec.environment, settings) if feedback and spec else None
    asked, out = _questions(questions), Path(evaluation)
    stage(Path(segments), asked, Path(policy), ends, settings, seed, out, adapter, task, progress_lines())
    summary = read_json(out / SUMMARY)
    return _numbers({**summary["overall"], **summary})


@entry
def choose_tasks(evaluation: str) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """The deployment's task, the shard of the prompted arm, and one for each adapted arm."""
    from taskmem.loop import tasks
    from taskmem.stages.common import SUMMARY

    task, other = tasks.choose_tasks(read_json(Path(evaluation) / SUMMARY)["by_type"])
    return task, tasks.prompted_shard(task), tasks.adapted_shards(task, other)


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
        questions=_questions(questions),
        feedback=Path(feedback),
    )
    ends = _backends(settings, world)
    outcomes = gate_shard(Shard.parse(shard), paths, store, ends, settings, seed, Path(verdicts), progress_lines())
    return _counts(outcomes, "gate")


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
    ended = promote_shard(Shard.parse(shard), *paths, store, settings, _image(), seed, Path(outcomes))
    return _counts(ended, "promotion")


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
        questions=_questions(questions),
        feedback=Path(feedback),
    )
    written = (Path(results), Path(report), Path(table))
    return write_run(paths, task, _backends(settings, world), settings, seed, *written)


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
    told = (parse_profile(profile), _image(), seed, Places(store, lineage, remote, run), Path(record), Path(summary))
    record_stage(artifacts, ended, specs, *told, log)
    return _counts(ended)


@entry
def notify(
    state: str, run: str, shards: Sequence[Mapping[str, Any]], store: str, pushgateway: str, profile: str
) -> Numbers:
    """Tell the Pushgateway at the URL `pushgateway`, "" for none, what became of the run `run`, which ended as `state`."""
    from taskmem.stages.notify import notify as stage

    return _numbers(stage(state, run, shards, store, pushgateway, parse_profile(profile)))
