"""`taskmem submit | schedule | runs | logs`: the pipelines on a cluster."""

# ruff: noqa: PLC0415 - a command imports what it needs when it runs, so that --help is quick

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from taskmem.cli import console
from taskmem.errors import UserError
from taskmem.saying import say

PIPED = 160  # columns of a table that goes to no terminal
_COMPACT: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False, "show_edge": False}

if TYPE_CHECKING:
    from pipelines.client import Kubeflow
    from pipelines.schedule import Ensured, Wanted

EXPERIMENT, NIGHTLY, EVERY_NIGHT = "taskmem", "nightly", "0 0 2 * * *"
ENDPOINT, TOKEN_PATH = "KF_PIPELINES_ENDPOINT", "KF_PIPELINES_SA_TOKEN_PATH"

PipelineName = Annotated[
    str,
    typer.Argument(metavar="PIPELINE", help="A file that `taskmem compile` wrote, or PIPELINE@VERSION on the server."),
]
Host = Annotated[str | None, typer.Option("--host", envvar=ENDPOINT, help="URL of Kubeflow Pipelines' API server.")]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", envvar=TOKEN_PATH, help="File with the bearer token; it is never shown.")
]
Ca = Annotated[Path | None, typer.Option("--ca", help="PEM file of the CA that the server's certificate is of.")]
Namespace = Annotated[str | None, typer.Option("--namespace", help="Your namespace, where Kubeflow has many users.")]
Seconds = Annotated[float, typer.Option("--seconds", min=0.1, max=3600, help="How long an answer may take.")]
Experiment = Annotated[str, typer.Option("--experiment", help="Kubeflow's name for a group of runs.")]
Params = Annotated[
    Path | None,
    typer.Option("--params", help="JSON file with the pipeline's parameters, {NAME: VALUE}.", dir_okay=False),
]
ServiceAccount = Annotated[
    str | None, typer.Option("--service-account", help="Kubernetes service account of the run's pods.")
]


def submit(
    pipeline: PipelineName,
    params: Params = None,
    name: Annotated[str | None, typer.Option("--name", help="The run's name; by default pipeline and time.")] = None,
    experiment: Experiment = EXPERIMENT,
    service_account: ServiceAccount = None,
    host: Host = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    namespace: Namespace = None,
    seconds: Seconds = 30.0,
) -> None:
    """Start one run of a pipeline; prints its id."""
    import kfp_server_api as api  # type: ignore[import-untyped]

    from pipelines.parameters import read_package, read_parameters
    from pipelines.schedule import registered

    file = _file(pipeline)
    package = read_package(file) if file else None
    given = read_parameters(params, package.spec, package.name) if package else {}
    kubeflow = _kubeflow(host, token_file, ca, namespace, seconds)
    pinned = None if package else registered(kubeflow, pipeline)
    if pinned:
        given = read_parameters(params, pinned.spec, pipeline)
    reference = pinned and api.V2beta1PipelineVersionReference(
        pipeline_id=pinned.pipeline, pipeline_version_id=pinned.version
    )
    called = name or f"{package.name if package else pipeline} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    run = api.V2beta1Run(
        display_name=called,
        experiment_id=kubeflow.experiment(experiment, create=True),
        pipeline_spec=package.spec if package else None,
        pipeline_version_reference=reference,
        runtime_config=api.V2beta1RuntimeConfig(parameters=given),
        service_account=service_account,
    )
    started = kubeflow.submit(run)
    say(f"{called}: {started.run_id}")


def schedule(
    pipeline: PipelineName,
    cron: Annotated[
        str, typer.Option("--cron", help="Six fields, seconds first, in UTC unless your Kubeflow says otherwise.")
    ] = EVERY_NIGHT,
    params: Params = None,
    name: Annotated[str, typer.Option("--name", help="The recurring run's name, by which it is found.")] = NIGHTLY,
    experiment: Experiment = EXPERIMENT,
    service_account: ServiceAccount = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Start one again that is paused; the nights it missed are not made up for.")
    ] = False,
    gitops: Annotated[
        Path | None,
        typer.Option(
            "--gitops", help="Ask nobody: write Kubernetes manifests to this folder instead.", file_okay=False
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="With --gitops: JSON file with the images, as for compile.")
    ] = None,
    job_account: Annotated[
        str, typer.Option("--job-service-account", help="With --gitops: the Job's own service account.")
    ] = "taskmem-schedule",
    host: Host = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    namespace: Namespace = None,
    seconds: Seconds = 30.0,
) -> None:
    """Leave one recurring run of the name: created, as it is, or replaced where it differs. May be run any number of times.

    The version of the pipeline is pinned, no night is made up for, and no two run at once. A paused one stays paused.
    """
    from pipelines.parameters import read_package, read_parameters
    from pipelines.schedule import Wanted, check_cron, ensure, pin, registered

    when, file = check_cron(cron), _file(pipeline)
    package = read_package(file) if file else None
    given = read_parameters(params, package.spec, package.name) if package else {}
    if gitops:
        if package is None:
            raise UserError(f"{pipeline}: --gitops needs a file that `taskmem compile` wrote")
        from components.images import load_images
        from pipelines.gitops import Job, write_manifests

        if not namespace or not host:
            raise UserError("--gitops: needs --namespace and --host, the API server's address as the Job sees it")
        options = ["--cron", when, "--experiment", experiment, "--namespace", namespace]
        options += ["--service-account", service_account] if service_account else []
        job = Job(namespace, load_images(images).data, job_account, host)
        for path in write_manifests(package, job, name, options, given, gitops):
            say(path)
        return
    kubeflow = _kubeflow(host, token_file, ca, namespace, seconds)
    pinned = pin(kubeflow, package) if package else registered(kubeflow, pipeline)
    given = given if package else read_parameters(params, pinned.spec, pipeline)
    group = kubeflow.experiment(experiment, create=True)
    wanted = Wanted(name, when, given, pinned, group, service_account)
    _say_ensured(wanted, ensure(kubeflow, wanted, resume))


def runs(
    experiment: Annotated[str | None, typer.Option("--experiment", help="Only of this one.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many, the newest first.")] = 20,
    host: Host = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    namespace: Namespace = None,
    seconds: Seconds = 30.0,
) -> None:
    """The newest runs and what became of them."""
    kubeflow = _kubeflow(host, token_file, ca, namespace, seconds)
    group = kubeflow.experiment(experiment, create=False) if experiment else None
    table = Table(**_COMPACT)
    table.add_column("run", overflow="fold")
    table.add_column("name", overflow="fold", min_width=12)
    for column in ("state", "created", "took"):
        table.add_column(column, no_wrap=True)
    for run in kubeflow.runs(group, limit):
        name = _text(run.display_name)
        table.add_row(_text(run.run_id), name, _text(run.state), _time(run.created_at), _took(run))
    _print(table)


def logs(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, as `taskmem runs` shows it.")],
    task: Annotated[
        str | None, typer.Argument(metavar="TASK", help="One task, as the list without this shows it.")
    ] = None,
    host: Host = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    namespace: Namespace = None,
    seconds: Seconds = 30.0,
) -> None:
    """The tasks of a run with their errors; with TASK what its pods wrote."""
    kubeflow = _kubeflow(host, token_file, ca, namespace, seconds)
    found = kubeflow.run(run)
    tasks = list((found.run_details.task_details if found.run_details else None) or ())
    if task is None:
        table = Table(**_COMPACT)
        for column in ("task", "state", "error"):
            table.add_column(column, no_wrap=column == "state", overflow="fold")
        for one in tasks:
            table.add_row(_text(one.display_name), _text(one.state), _text(_error(one)))
        _print(table)
        return
    chosen = [one for one in tasks if one.display_name == task]
    if not chosen:
        raise UserError(f"run {run}: has no task {task}; `taskmem logs {run}` lists them")
    pods = list(dict.fromkeys(pod for one in chosen for pod in _pods(one)))
    if not pods:
        raise UserError(f"run {run}: task {task} has had no pod yet; its state is {chosen[0].state}")
    for pod in pods:
        say(f"--- {pod}")
        for line in kubeflow.log(run, pod):
            say(line)


COMMANDS = (submit, schedule, runs, logs)


def _print(table: Table) -> None:
    # no terminal: another program reads it, and wants whole ids
    (console if console.is_terminal else Console(width=PIPED)).print(table)


def _kubeflow(
    host: str | None, token_file: Path | None, ca: Path | None, namespace: str | None, seconds: float
) -> "Kubeflow":
    from pipelines.client import Kubeflow, connection

    return Kubeflow(connection(host, token_file, ca, namespace, seconds))


def _file(pipeline: str) -> Path | None:
    """The argument as a file, None for PIPELINE@VERSION."""
    path = Path(pipeline)
    return None if "@" in pipeline and not path.exists() else path


def _say_ensured(wanted: "Wanted", done: "Ensured") -> None:
    why = f" ({', '.join(done.drift)})" if done.drift else ""
    say(f"{wanted.name}: {done.change}{why}, '{wanted.cron}', {done.schedule}")
    if done.removed > (done.change == "replaced"):
        say(f"{wanted.name}: {done.removed} others of the name removed")
    if done.paused:
        say(f"{wanted.name}: is paused, and stays so; --resume starts it again")


def _text(value: Any) -> Text:
    from taskmem.records import one_line

    return Text(one_line(str(value)) if value is not None else "")


def _time(value: datetime | None) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S}" if value else ""


def _took(run: Any) -> str:
    if not (run.created_at and run.finished_at) or run.finished_at < run.created_at:
        return ""
    return str(run.finished_at - run.created_at).split(".")[0]


def _error(task: Any) -> str:
    return (task.error.message or json.dumps(task.error.code)) if task.error else ""


def _pods(task: Any) -> list[str]:
    names = [task.pod_name, *(child.pod_name for child in task.child_tasks or ())]
    return [name for name in names if name]
