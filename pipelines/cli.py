"""The console script: taskmem's commands, and the Kubeflow ones, which are mounted here so that taskmem itself needs no kfp."""

# ruff: noqa: PLC0415 - a command imports its stage when it runs, so that --help is quick

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands import COMMANDS
from taskmem.cli import MINIATURE, Out, ProfileName, Resume, Seed, app, console, run, shipped_base
from taskmem.commands.audit import audit_app
from taskmem.commands.collect import collect
from taskmem.commands.erase import erase
from taskmem.commands.export import export
from taskmem.commands.gate import gate
from taskmem.commands.phase_one import phase_one
from taskmem.commands.registry import registry_app
from taskmem.commands.results import results
from taskmem.commands.serve import serve_app
from taskmem.commands.token import token_app
from taskmem.config import load_profile
from taskmem.errors import UserError
from taskmem.files import atomic_write, canonical_json, sha256_bytes, sha256_tree
from taskmem.saying import say

RESULTS, REPORT = "results.json", "report.html"
SHOWN = (RESULTS, REPORT)
for command in (collect, gate, results, export, *COMMANDS):
    app.command()(command)
app.command("phase-one")(phase_one)
audit_app.command()(erase)
app.add_typer(registry_app, name="registry")
app.add_typer(audit_app, name="audit")
app.add_typer(serve_app, name="serve")
app.add_typer(token_app, name="token")

if TYPE_CHECKING:
    from components.images import Images
    from pipelines.local import Finished
    from pipelines.local.containers import Containers
    from taskmem.config import Profile
    from taskmem.lineage.outcome import Outcome


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    seed: Seed = 0,
    profile: ProfileName = MINIATURE,
    base: Annotated[Path | None, typer.Option("--base", help="Base policy; by default the shipped one.")] = None,
    resume: Resume = True,
    lineage: Annotated[
        str | None, typer.Option("--lineage", help="Git URL to record the run at; by default a repository below --out.")
    ] = None,
    remote: Annotated[
        str | None, typer.Option("--remote", help="s3://... or folder for its data; by default a folder below --out.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", help="Run every stage in its image of this JSON file, which `make images` writes."),
    ] = None,
) -> None:
    """The whole loop through Kubeflow's local runner: a table, results.json and report.html."""
    from components.images import load_images
    from pipelines.compiling import travelling
    from pipelines.end_to_end import end_to_end
    from pipelines.local import run_pipeline
    from pipelines.parts import Placement
    from taskmem.loop.display import StageDisplay

    settings = load_profile(profile)
    if settings.world is None:
        raise UserError(f"profile {settings.name}: the demo runs on the embedded world; use --profile miniature")
    given = (base or shipped_base()).resolve()
    if not (given / "config.json").is_file():
        raise UserError(f"{given}: no policy checkpoint (config.json is missing); give a folder that pretrain wrote")
    used, travels = load_images(images) if images else _here(), travelling(settings)
    # a champion of other code or settings would be another champion to beat
    key = sha256_bytes(canonical_json([used.train, travels, seed, sha256_tree(given)]))
    kept = out.resolve() / "store" / key[:16]
    places = {"lineage": lineage or str(kept / "lineage.git"), "remote": remote or str(kept / "data")}
    where = {"store": str(kept / "registry"), **_without_secrets(places)}
    arguments = {"base": str(given), "profile": travels, "seed": seed, **where}
    pipeline = end_to_end(Placement(settings, used, content_keyed=True))
    attempts = _containers(given, out, places, settings) if images else None
    for name in SHOWN:
        (out / name).unlink(missing_ok=True)
    finished = run_pipeline(pipeline, arguments, out, StageDisplay(console), resume=resume, attempts=attempts)
    for outcome in _show(finished, out):
        if outcome.status == "promoted":
            question = f"taskmem audit adapter {outcome.version} --store {where['store']} --lineage {where['lineage']}"
            say(question)


@app.command("compile")
def compile_pipelines(
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.", file_okay=False)] = Path("build"),
    profile: ProfileName = MINIATURE,
    images: Annotated[
        Path | None, typer.Option("--images", help='JSON file {"data": REFERENCE, "train": REFERENCE}, by digest.')
    ] = None,
) -> None:
    """Write the IR YAML of every pipeline, the same bytes each time."""
    from components.images import load_images
    from pipelines.compiling import compile_all

    used = load_images(images)
    for path in compile_all(load_profile(profile), used, out):
        say(path)
    if not used.pinned:
        console.print(
            "images are named by tag, and what a tag names may change: give --images with digests",
            style="yellow",
            soft_wrap=True,
        )


def _without_secrets(places: dict[str, str]) -> dict[str, str]:
    """URLs for a pipeline's parameters, which every log repeats; UserError for one with a user or password in it."""
    from taskmem.lineage.tools import without_userinfo

    for name, url in places.items():
        if url != without_userinfo(url):
            raise UserError(
                f"--{name} {without_userinfo(url)}: logs would repeat the credentials in it; give them to git or AWS instead"
            )
    return places


def _containers(base: Path, out: Path, places: dict[str, str], profile: "Profile") -> "Containers":
    """What runs stages in their images: folders given to the demo are seen there too, and the profile's secrets."""
    from pipelines.local.containers import Containers

    folders = [Path(place.removeprefix("file://")) for place in places.values()]
    outside = [folder for folder in folders if folder.is_absolute() and not folder.is_relative_to(out.resolve())]
    stages = profile.cluster.stages.values() if profile.cluster else ()
    secrets = [secret.variable for stage in stages for secret in stage.secrets]
    return Containers(reads=[base], writes=outside, secrets=secrets)


def _here() -> "Images":
    """This machine in place of an image, named by what would be inside of one: the code."""
    from components.images import Images
    from taskmem.loop.runner import code_digest

    reference = f"localhost/taskmem-python@sha256:{code_digest()}"
    return Images(data=reference, train=reference)


def _show(finished: "Finished", out: Path) -> "list[Outcome]":
    """Write and print what a demo found; returns what became of every adapter."""
    from taskmem.lineage.code import commit
    from taskmem.lineage.outcome import OUTCOMES, Outcome
    from taskmem.loop.results import differences_table, outcomes_table, results_table
    from taskmem.records import read_json, read_records, write_json

    made = {name: Path(artifact.path) for name, artifact in finished.outputs.items()}
    results: dict[str, Any] = {**read_json(made["results"] / RESULTS)}
    results["seconds"] = {name: round(seconds, 2) for name, seconds in finished.seconds.items()}
    results["commit"] = commit()
    write_json(out / RESULTS, results)
    atomic_write(out / REPORT, made["report"].read_bytes())
    console.print(results_table(results))
    console.print(differences_table(results))
    outcomes = read_records(made["record"] / OUTCOMES, Outcome)
    console.print(outcomes_table(outcomes))
    for name in SHOWN:
        say(out / name)
    return outcomes


def main() -> None:
    """Run the command line."""
    run(app)


if __name__ == "__main__":
    main()
