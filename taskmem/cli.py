"""The command line: one command per stage. Inputs first, `--out DIR` always.

A user's mistake ends with one line and exit code 2, an interruption with 130; both lose nothing that is done.
"""

# ruff: noqa: PLC0415 - a command imports its stage when it runs, so that --help is quick and an image needs only its own extra

import logging
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from typer.exceptions import Abort, TyperException

from taskmem.config import load_profile, profile_names
from taskmem.errors import UserError
from taskmem.records import one_line
from taskmem.saying import say
from taskmem.store.locks import acquire, release

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Memory for multimodal agents, learned from the tasks that really arrive.",
)
world_app = typer.Typer(no_args_is_help=True, help="The embedded world: rendered streams with known truth.")
app.add_typer(world_app, name="world")

Out = Annotated[Path, typer.Option("--out", help="Folder to write to.", file_okay=False)]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of every draw.")]
ProfileName = Annotated[
    str, typer.Option("--profile", help=f"One of {', '.join(profile_names())}, or the path of a YAML file.")
]
PolicyFolder = Annotated[Path, typer.Option("--policy", help="Folder of the policy checkpoint.")]
World = Annotated[
    Path | None, typer.Option("--world", help="Folder that `taskmem world render` wrote (profiles with a world).")
]
Resume = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Go on from what an interrupted run left in --out, or start anew.")
]
MINIATURE = "miniature"
INTERRUPTED = 130


def shipped_base() -> Path:
    """Folder of the base policy that comes with the embedded world."""
    return Path(str(resources.files("taskmem.world"))) / "base"


console = Console()


@app.command()
def loop(
    out: Out,
    seed: Seed = 0,
    profile: ProfileName = MINIATURE,
    base: Annotated[Path | None, typer.Option("--base", help="Base policy; by default the shipped one.")] = None,
    videos: Annotated[
        Path | None, typer.Option("--videos", help="Folder of further videos for the deployment.")
    ] = None,
    resume: Resume = True,
) -> None:
    """The whole loop in one process: base, Phase One, deployment, Phase Two, evaluation; writes results.json."""
    from taskmem.loop.display import StageDisplay
    from taskmem.loop.loop import Loop
    from taskmem.loop.results import differences_table, results_table

    run_loop = Loop(out, base or shipped_base(), load_profile(profile), seed, StageDisplay(console), videos)
    fresh(out, resume, ".stages")
    results = run_loop.run()
    for refusal in run_loop.refusals():
        say(f"  refused {refusal.file}: {refusal.reason}")
    console.print(results_table(results))
    console.print(differences_table(results))
    say(out / "results.json")


@app.command()
def segment(
    videos: Annotated[Path, typer.Argument(help="A folder of videos, or one video.")],
    out: Out,
    profile: ProfileName = MINIATURE,
) -> None:
    """Cut videos into segments: segments.jsonl, clips/<stream>/<index>.mp4, refused.jsonl."""
    from taskmem.stages.segmentation import segmentation

    with stage_progress("segment") as progress:
        summary = segmentation(videos, load_profile(profile), out, progress)
    counts = f"{summary.videos} videos, {summary.streams} streams, {summary.segments} segments"
    say(f"{counts}; {summary.refused} lines in {out / 'refused.jsonl'}")


@app.command()
def rollouts(
    segments: Annotated[Path, typer.Argument(help="Folder that `taskmem segment` wrote.")],
    policy: PolicyFolder,
    out: Out,
    profile: ProfileName = MINIATURE,
    seed: Seed = 0,
) -> None:
    """Sample N candidates per context from the frozen policy, once."""
    from taskmem.stages.candidates import rollout_cache

    with stage_progress("rollouts") as progress:
        rollout_cache(segments, policy, load_profile(profile), seed, out, progress)
    say(out)


@app.command()
def score(
    rollouts: Annotated[Path, typer.Argument(help="Folder that `taskmem rollouts` wrote.")],
    segments: Annotated[Path, typer.Option("--segments", help="Folder that `taskmem segment` wrote.")],
    out: Out,
    world: World = None,
    profile: ProfileName = MINIATURE,
) -> None:
    """Judge every candidate: judgements.jsonl and a summary."""
    from taskmem.backends import opened_backends
    from taskmem.stages.judging import judge_scoring

    settings = load_profile(profile)
    with stage_progress("score") as progress, opened_backends(settings, world, segments, out) as ends:
        summary = judge_scoring(rollouts, segments, ends, settings, out, progress)
    console.print("  ".join(f"{k} {v:.4g}" for k, v in summary.items()), highlight=False, soft_wrap=True)


@app.command()
def mine(
    judgements: Annotated[Path, typer.Argument(help="Folder that `taskmem score` wrote.")],
    rollouts: Annotated[Path, typer.Option("--rollouts", help="Folder that `taskmem rollouts` wrote.")],
    segments: Annotated[Path, typer.Option("--segments", help="Folder that `taskmem segment` wrote.")],
    questions: Annotated[Path, typer.Option("--questions", help="Folder that `taskmem collect` wrote.")],
    environment: Annotated[str, typer.Option("--environment", help="Whose questions to mine with.")],
    out: Out,
    profile: ProfileName = MINIATURE,
    seed: Seed = 0,
) -> None:
    """Compare candidates under an environment's recent questions and select preference pairs."""
    from taskmem.backends import helpfulness_judge, opened_remote
    from taskmem.stages.mining import preference_mining

    settings = load_profile(profile)
    with opened_remote(settings, segments, out) as remote:
        judge = helpfulness_judge(settings, remote)
        preference_mining(rollouts, judgements, segments, questions, environment, judge, settings, seed, out)
    say(out)


@app.command("phase-two")
def phase_two(
    preferences: Annotated[Path, typer.Argument(help="Folder that `taskmem mine` wrote, or one of such folders.")],
    policy: PolicyFolder,
    rollouts: Annotated[Path, typer.Option("--rollouts", help="Folder that `taskmem rollouts` wrote.")],
    segments: Annotated[Path, typer.Option("--segments", help="Folder that `taskmem segment` wrote.")],
    out: Out,
    name: Annotated[str, typer.Option("--name", help="Name of the adapter, its folder below --out.")] = "adapter",
    environments: Annotated[
        str | None, typer.Option("--environments", help="As in a,b,c: train --out/a from PREFERENCES/a, and so on.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Folder for trunk states; runs on the same policy may share it.")
    ] = None,
    profile: ProfileName = MINIATURE,
    seed: Seed = 0,
) -> None:
    """Train one steer adapter with DPO, the policy frozen, or one for each of --environments.

    What goes wrong in one never stops the others: --out/outcomes.jsonl says what became of each. Exit code 0 if one is ready.
    """
    from taskmem.phase_two.frozen import FrozenPolicy
    from taskmem.stages import adapt

    paths, settings = (rollouts, segments), load_profile(profile)
    if environments is None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_@-]*", name):
            raise UserError(f"--name {name}: letters, digits, '_', '@' and '-' only, a letter or digit first")
        with stage_progress("phase-two") as progress:
            adapt.phase_two(
                preferences, *paths, FrozenPolicy(policy), name, settings, seed, out, progress, cache, _note
            )
        say(out / name)
        return
    from taskmem.loop.results import outcomes_table

    names = environments.split(",")
    with stage_progress("phase-two") as progress:
        done = adapt.phase_two_of_each(preferences, *paths, policy, names, settings, seed, out, progress, cache, _note)
    console.print(outcomes_table(done, "adapters"))
    say(out / "outcomes.jsonl")
    if not any(outcome.status == "ready" for outcome in done):
        raise UserError(f"{out}: no environment is ready; mend what the table says and run again")


def _note(line: str) -> None:
    say(f"  {line}")


@app.command()
def evaluate(
    segments: Annotated[Path, typer.Argument(help="Folder that `taskmem segment` wrote.")],
    policy: PolicyFolder,
    questions: Annotated[Path, typer.Option("--questions", help="questions.jsonl about these streams.")],
    out: Out,
    adapter: Annotated[Path | None, typer.Option("--adapter", help="Folder of a steer adapter.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="A task prompt.")] = None,
    world: World = None,
    profile: ProfileName = MINIATURE,
    seed: Seed = 0,
) -> None:
    """Evaluate one arm: stream, remember, answer from memory alone, grade."""
    from taskmem.backends import opened_backends
    from taskmem.records import read_json
    from taskmem.stages.common import SUMMARY
    from taskmem.stages.evaluate import streaming_eval

    settings = load_profile(profile)
    with stage_progress("evaluate") as progress, opened_backends(settings, world, segments, out) as ends:
        streaming_eval(segments, questions, policy, ends, settings, seed, out, adapter, task, progress)
    overall = read_json(out / SUMMARY)["overall"]
    console.print("  ".join(f"{k} {overall[k]:.3f}" for k in ("accuracy", "coverage", "precision")), highlight=False)


@app.command()
def deploy(
    policy: Annotated[Path, typer.Argument(help="Folder of the policy checkpoint.")],
    segments: Annotated[Path, typer.Option("--segments", help="Folder that `taskmem segment` wrote.")],
    questions: Annotated[Path, typer.Option("--questions", help="questions.jsonl about these streams.")],
    out: Out,
    adapter: Annotated[
        str | None, typer.Option("--adapter", help="Folder of a steer adapter, or environment@version with --store.")
    ] = None,
    store: Annotated[str | None, typer.Option("--store", help="The object store that holds adapters.")] = None,
    world: World = None,
    profile: ProfileName = MINIATURE,
    seed: Seed = 0,
) -> None:
    """Run the agent over streams: memories, answers to the first questions, one feedback log per environment."""
    from taskmem.backends import opened_backends
    from taskmem.records import read_json
    from taskmem.stages.common import SUMMARY
    from taskmem.stages.deploy import deployment

    settings = load_profile(profile)
    steered = _adapter(adapter, store, out)
    with stage_progress("deploy") as progress, opened_backends(settings, world, segments, out) as ends:
        deployment(segments, policy, questions, ends, settings, seed, out, progress, steered)
    console.print("  ".join(f"{k} {v:g}" for k, v in read_json(out / SUMMARY).items()), highlight=False)


def _adapter(given: str | None, store: str | None, out: Path) -> Path | None:
    """The folder of an adapter that is named by its path, or as environment@version of a store."""
    from taskmem.registry import fetch
    from taskmem.store import open_store

    if given is None:
        return None
    if store is None:
        return Path(given)
    environment, _, version = given.partition("@")
    fetch(open_store(store, read_only=True), environment, version, out / given)
    return out / given


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished `taskmem loop`.")],
    out: Annotated[Path, typer.Option("--out", help="HTML file to write.", dir_okay=False)] = Path("report.html"),
    profile: ProfileName = MINIATURE,
) -> None:
    """The page that people read: results, curves, and what each arm remembered."""
    from taskmem.loop.report import loop_report

    loop_report(run, load_profile(profile), out)
    say(out)


@world_app.command("render")
def world_render(out: Out, profile: ProfileName = MINIATURE, seed: Seed = 0) -> None:
    """Render every split: videos, truth and questions below --out/<split>."""
    from taskmem.world.splits import SPLITS, render_split

    settings = load_profile(profile)
    if settings.world is None:
        raise UserError(f"profile {profile}: has no world to render; use --profile miniature")
    for split in SPLITS:
        with stage_progress(f"render {split}") as progress:
            render_split(out / split, split, settings.world, seed, progress)
    say(out)


@world_app.command("pretrain")
def world_pretrain(out: Out, profile: ProfileName = MINIATURE, seed: Seed = 0) -> None:
    """Train a base policy from scratch by the recipe of the shipped one (about eight minutes on one core)."""
    from taskmem.world.pretrain import Pretraining, Recipe

    with stage_progress("pretrain") as progress:
        pretraining = Pretraining(Recipe(), load_profile(profile).policy, seed, progress)
        precision = pretraining.run()
        pretraining.save(out, precision)
    console.print("  ".join(f"{kind} {value:.3f}" for kind, value in precision.items()), highlight=False)
    say(out)


def fresh(out: Path, resume: bool, sign: str) -> None:
    """Remove the results of an earlier run, known by the `sign` it left, where the user wants to start anew."""
    if resume or not out.exists():
        return
    if any(out.iterdir()) and not (out / sign).exists():
        raise UserError(
            f"{out}: not a folder of an earlier run ({sign} is missing); remove it yourself or give another --out"
        )
    try:
        release(acquire(out / ".lock", wait=False))
    except BlockingIOError:
        raise UserError(f"{out}: another run is writing there; wait for it or give another --out") from None
    shutil.rmtree(out)


def stage_progress(name: str) -> "AbstractContextManager[Callable[[int, int], None]]":
    """The bar of a stage, and the callback that moves it."""
    from taskmem.loop.display import StageDisplay

    return StageDisplay(console).stage(name)


def run(application: typer.Typer) -> None:
    """Run `application`, turning a user's mistake into one line and exit code 2, an interruption into one and 130."""
    # it says on every import that it found no GPU
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator" not in record.getMessage())
    try:
        code = application(standalone_mode=False) or 0
        if code == INTERRUPTED:
            _say("interrupted; the same command goes on from here")
        sys.exit(code)
    except UserError as error:
        _say(str(error))
    except Abort:
        _say("no answer to the question; answer it in a terminal, or say --yes where the command has it")
    except TyperException as error:
        # a group without a command has shown its help
        if message := one_line(error.format_message().rstrip(".")):
            _say(f"{message}; see --help")
    except OSError as error:
        _say(f"{error.filename or 'the system'}: {error.strerror or error}; check the path and try again")
    sys.exit(2)


def _say(text: str) -> None:
    Console(stderr=True, soft_wrap=True).print(f"taskmem: {text}", style="red", markup=False, highlight=False)
