"""The nightly recurring run: there once, as it should be, and found by its name.

Kubeflow has no update of a recurring run, names need not be unique, one without a version always takes the newest, and enabling
a paused one runs every night that it missed. So what differs is replaced: the new one is created, then all older ones of the
name are deleted. Whoever races or is killed in between, the newest stays and the next call removes the rest.
"""

# mypy: disable-error-code="import-untyped"

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import kfp_server_api

from pipelines.client import Kubeflow
from pipelines.parameters import Package
from taskmem.errors import UserError

CONCURRENCY = "1"  # a 64-bit number travels as text
FIELDS = (("second", 0, 59), ("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 6))
_PART = re.compile(r"(\*|\?|(\d{1,2})(?:-(\d{1,2}))?)(?:/([1-9]\d?))?")
_NAMES = {
    "month": ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"],
    "weekday": ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
}
Change = Literal["unchanged", "created", "replaced"]


@dataclass(frozen=True)
class Pinned:
    """A pipeline's version by ids, so that no newer one is run in its place, and its specification."""

    pipeline: str
    version: str
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Wanted:
    """How the recurring run is to be."""

    name: str
    cron: str
    parameters: Mapping[str, Any]
    pinned: Pinned
    experiment: str
    service_account: str | None = None


@dataclass(frozen=True)
class Ensured:
    """What was done: the recurring run's id, why it was replaced, how many others were removed, and whether it is paused."""

    schedule: str
    change: Change
    drift: tuple[str, ...]
    removed: int
    paused: bool


def check_cron(cron: str) -> str:
    """`cron` with single spaces; UserError unless it has Kubeflow's six fields, each in its range."""
    fields = cron.split()
    if len(fields) == 5:
        raise UserError(
            f"--cron '{cron}': five fields, as a CronJob of Kubernetes has; Kubeflow wants six, seconds first: '0 {cron.strip()}'"
        )
    if len(fields) != len(FIELDS):
        raise UserError(f"--cron '{cron}': {len(fields)} fields; give six: {', '.join(name for name, *_ in FIELDS)}")
    for text, (name, least, most) in zip(fields, FIELDS, strict=True):
        if not all(_in_range(part, name, least, most) for part in text.split(",")):
            raise UserError(
                f"--cron '{cron}': {name} '{text}': not *, a number from {least} to {most}, a range or a list"
            )
    return " ".join(fields)


def _in_range(part: str, name: str, least: int, most: int) -> bool:
    for number, word in enumerate(_NAMES.get(name, ())):
        part = re.sub(rf"\b{word}\b", str(number + least), part, flags=re.IGNORECASE)
    found = _PART.fullmatch(part)
    if found is None:
        return False
    bounds = [int(bound) for bound in found.group(2, 3) if bound]
    return bounds == sorted(bounds) and all(least <= bound <= most for bound in bounds)


def pin(kubeflow: Kubeflow, package: Package) -> Pinned:
    """Register the pipeline and this version of it, if they are not there yet."""
    pipeline = kubeflow.pipeline(package.name) or kubeflow.create_pipeline(package.name)
    known = kubeflow.version(pipeline, package.version)
    version = known.pipeline_version_id if known else kubeflow.upload_version(pipeline, package.version, package.path)
    return Pinned(pipeline, version, package.spec)


def registered(kubeflow: Kubeflow, name: str) -> Pinned:
    """The version PIPELINE@VERSION; UserError if there is none, or `name` is no such name."""
    pipeline_name, _, version_name = name.partition("@")
    if not pipeline_name or not version_name:
        raise UserError(
            f"{name}: neither a file nor PIPELINE@VERSION; give a file that `taskmem compile` wrote, or such a name"
        )
    pipeline = kubeflow.pipeline(pipeline_name)
    version = kubeflow.version(pipeline, version_name) if pipeline else None
    if pipeline is None or version is None:
        what = (
            f"pipeline {pipeline_name}" if pipeline is None else f"version {version_name} of pipeline {pipeline_name}"
        )
        raise UserError(
            f"{kubeflow.where.host}: has no {what}; see the name and --namespace, or give the compiled file"
        )
    return Pinned(pipeline, version.pipeline_version_id, version.pipeline_spec or {})


def ensure(kubeflow: Kubeflow, wanted: Wanted, resume: bool = False) -> Ensured:
    """Leave one recurring run of the name, as `wanted`; one that somebody has paused stays so unless `resume`.

    UserError if somebody else wants it otherwise at the same time.
    """
    found = kubeflow.schedules(wanted.name)
    newest = found[-1] if found else None
    paused = newest is not None and is_paused(newest) and not resume
    drift = differences(newest, wanted) if newest else ()
    if newest is not None and is_paused(newest) and resume:
        drift = (*drift, "paused")
    change: Change = "unchanged"
    if newest is None or drift:
        kubeflow.create_schedule(_schedule(wanted, paused))
        change = "replaced" if newest else "created"
        found = kubeflow.schedules(wanted.name)
    for older in found[:-1]:
        kubeflow.delete_schedule(wanted.name, older.recurring_run_id)
    if not found:
        raise UserError(f"schedule {wanted.name}: is created, but not listed; see --namespace, and run it again")
    if differences(found[-1], wanted):
        raise UserError(
            f"schedule {wanted.name}: somebody else has set it otherwise meanwhile; agree on one and run it again"
        )
    return Ensured(found[-1].recurring_run_id, change, drift, len(found) - 1, is_paused(found[-1]))


def is_paused(schedule: Any) -> bool:
    """Whether a recurring run starts nothing."""
    return bool(schedule.status == "DISABLED" or schedule.mode == "DISABLE")


def differences(schedule: Any, wanted: Wanted) -> tuple[str, ...]:
    """In what a recurring run is not as wanted."""
    trigger, reference, given = schedule.trigger, schedule.pipeline_version_reference, schedule.runtime_config
    cron = trigger.cron_schedule.cron if trigger and trigger.cron_schedule else None
    ids = (reference.pipeline_id, reference.pipeline_version_id) if reference else (None, None)
    found = {
        "cron": cron == wanted.cron,
        "pipeline version": ids == (wanted.pinned.pipeline, wanted.pinned.version),
        "parameters": _plain((given.parameters if given else None) or {}) == _plain(wanted.parameters),
        "concurrency": str(schedule.max_concurrency) == CONCURRENCY,
        "catch-up": schedule.no_catchup is True,
        "experiment": schedule.experiment_id == wanted.experiment,
        "service account": wanted.service_account in (None, schedule.service_account),
    }
    return tuple(name for name, same in found.items() if not same)


def _schedule(wanted: Wanted, paused: bool) -> Any:
    mode = kfp_server_api.RecurringRunMode
    return kfp_server_api.V2beta1RecurringRun(
        display_name=wanted.name,
        experiment_id=wanted.experiment,
        pipeline_version_reference=kfp_server_api.V2beta1PipelineVersionReference(
            pipeline_id=wanted.pinned.pipeline, pipeline_version_id=wanted.pinned.version
        ),
        runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=dict(wanted.parameters)),
        trigger=kfp_server_api.V2beta1Trigger(cron_schedule=kfp_server_api.V2beta1CronSchedule(cron=wanted.cron)),
        mode=mode.DISABLE if paused else mode.ENABLE,
        max_concurrency=CONCURRENCY,
        no_catchup=True,
        service_account=wanted.service_account,
    )


def _plain(value: Any) -> Any:
    """A parameter as it comes back from the server, where every number is a float."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    # or True would be the same as 1.0
    return (type(value).__name__, value)
