"""`taskmem schedule`: one nightly run of the name, as wanted, whatever was there and whoever else ensures it."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from cluster_parts import PARAMETERS, Cluster
from kfp_stub import Document, Fault

from pipelines.client import Kubeflow, connection
from pipelines.parameters import read_package, read_parameters
from pipelines.schedule import Wanted, check_cron, ensure, pin
from taskmem.errors import UserError

CREATE, DELETE = "recurring_run_service_create_recurring_run", "recurring_run_service_delete_recurring_run"
CRON = "0 0 2 * * *"


def wanted(cluster: Cluster, kubeflow: Kubeflow, **changes: Any) -> Wanted:
    package = read_package(cluster.ir)
    given = read_parameters(cluster.parameters(), package.spec, package.name)
    fields = {"name": "nightly", "cron": CRON, "parameters": given, "pinned": pin(kubeflow, package)}
    return Wanted(**{**fields, "experiment": kubeflow.experiment("taskmem", create=True), **changes})


def client(cluster: Cluster) -> Kubeflow:
    return Kubeflow(connection(cluster.url, cluster.token, None, None, 10.0))


def only(cluster: Cluster) -> Document:
    (schedule,) = cluster.stub.schedules()
    return schedule


def test_it_is_created_with_six_fields_no_catch_up_one_at_a_time_and_the_version_pinned(cluster: Cluster) -> None:
    said = cluster.schedule()
    assert (said.code, said.error) == (0, "")
    made = only(cluster)
    assert said.out == f"nightly: created, '{CRON}', {made['recurring_run_id']}\n"
    (version,) = cluster.stub.kinds["pipeline_versions"].values()
    (pipeline,) = cluster.stub.kinds["pipelines"].values()
    assert pipeline["name"] == "taskmem-adaptation"
    assert version["name"].startswith("taskmem-adaptation-")
    assert made["pipeline_version_reference"] == {
        "pipeline_id": pipeline["pipeline_id"],
        "pipeline_version_id": version["pipeline_version_id"],
    }
    assert "pipeline_spec" not in made
    assert made["trigger"] == {"cron_schedule": {"cron": CRON}}
    assert (made["max_concurrency"], made["no_catchup"], made["mode"]) == ("1", True, "ENABLE")
    assert made["runtime_config"] == {"parameters": PARAMETERS}


def test_ensured_again_nothing_is_written(cluster: Cluster) -> None:
    cluster.schedule()
    before = only(cluster)
    cluster.stub.asked.clear()
    said = cluster.schedule()
    assert (said.code, said.out) == (0, f"nightly: unchanged, '{CRON}', {before['recurring_run_id']}\n")
    assert only(cluster) == before
    assert [name for name in cluster.stub.asked if "_list_" not in name] == []


DRIFTS: dict[str, Callable[[Document], Any]] = {
    "cron": lambda made: made["trigger"]["cron_schedule"].update(cron="0 0 3 * * *"),
    "parameters": lambda made: made["runtime_config"]["parameters"].update(seed=4),
    "pipeline version": lambda made: made["pipeline_version_reference"].update(pipeline_version_id="newest"),
    "concurrency": lambda made: made.update(max_concurrency="10"),
    "catch-up": lambda made: made.pop("no_catchup"),
    "experiment": lambda made: made.update(experiment_id="another"),
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_what_has_drifted_is_replaced_and_said(cluster: Cluster, drift: str) -> None:
    cluster.schedule()
    before = only(cluster)
    DRIFTS[drift](before)
    said = cluster.schedule()
    after = only(cluster)
    assert said.out == f"nightly: replaced ({drift}), '{CRON}', {after['recurring_run_id']}\n"
    assert after["recurring_run_id"] != before["recurring_run_id"]
    assert cluster.schedule().out.startswith("nightly: unchanged")


def test_another_parameter_another_time_and_another_pipeline_are_drift(cluster: Cluster) -> None:
    cluster.schedule()
    assert cluster.schedule(seed=4).out.startswith("nightly: replaced (parameters), ")
    assert cluster.schedule("--cron", "0 30 1 * * MON-FRI", seed=4).out.startswith("nightly: replaced (cron), ")
    text = cluster.ir.read_text()
    cluster.ir = cluster.folder / "other.yaml"
    cluster.ir.write_text(text.replace("cpuLimit: 1.0", "cpuLimit: 2.0"))
    assert cluster.schedule("--cron", "0 30 1 * * MON-FRI", seed=4).out.startswith(
        "nightly: replaced (pipeline version)"
    )
    assert len(cluster.stub.kinds["pipeline_versions"]) == 2
    assert len(cluster.stub.kinds["pipelines"]) == 1


def test_others_of_the_name_are_removed_and_other_names_are_left(cluster: Cluster) -> None:
    for name in ("nightly", "weekly"):
        cluster.schedule("--name", name)
    made = next(s for s in cluster.stub.schedules() if s["display_name"] == "nightly")
    for number in range(3):
        copied = {**made, "recurring_run_id": f"copy-{number}", "created_at": f"2026-02-0{number + 1}T00:00:00Z"}
        cluster.stub.kinds["recurring_runs"][f"copy-{number}"] = copied
    assert "nightly: 3 others of the name removed\n" in cluster.schedule().out
    left = {s["display_name"]: s["recurring_run_id"] for s in cluster.stub.schedules()}
    assert sorted(left) == ["nightly", "weekly"]
    assert left["nightly"] == made["recurring_run_id"]


def test_a_paused_one_stays_paused_even_if_replaced_until_it_is_resumed(cluster: Cluster) -> None:
    cluster.schedule()
    only(cluster).update(mode="DISABLE", status="DISABLED")
    said = cluster.schedule()
    assert said.out.startswith("nightly: unchanged")
    assert said.out.endswith("nightly: is paused, and stays so; --resume starts it again\n")
    assert cluster.schedule(seed=4).out.startswith("nightly: replaced (parameters)")
    assert only(cluster)["status"] == "DISABLED"
    # enabling it would make up for the nights that it missed; a new one has missed none
    resumed = cluster.schedule("--resume", seed=4)
    assert resumed.out.startswith("nightly: replaced (paused)")
    assert only(cluster)["status"] == "ENABLED"
    assert "paused" not in cluster.schedule("--resume", seed=4).out


@pytest.mark.parametrize("in_a_second", [1, 100])
def test_of_two_who_ensure_at_the_same_time_one_schedule_is_left(cluster: Cluster, in_a_second: int) -> None:
    cluster.stub.in_a_second = in_a_second
    kubeflow = client(cluster)
    same = wanted(cluster, kubeflow)
    both = threading.Barrier(2, timeout=20)

    def wait(operation: str) -> None:
        if operation == CREATE:
            both.wait()

    cluster.stub.before = wait
    done: list[str] = []

    def one() -> None:
        done.append(ensure(client(cluster), same).schedule)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cluster.stub.asked.count(CREATE) == 2
    assert only(cluster)["recurring_run_id"] in done


@pytest.mark.parametrize("in_a_second", [1, 3, 100])
def test_of_eight_who_ensure_what_they_please_one_is_left_and_it_is_what_somebody_wanted(
    cluster: Cluster, in_a_second: int
) -> None:
    cluster.stub.in_a_second = in_a_second
    kubeflow = client(cluster)
    ways = [wanted(cluster, kubeflow, cron=f"0 {minute} 2 * * *") for minute in range(8)]
    lost: list[str] = []

    def one(way: Wanted) -> None:
        try:
            ensure(client(cluster), way)
        except UserError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=one, args=(way,)) for way in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert only(cluster)["trigger"]["cron_schedule"]["cron"] in {way.cron for way in ways}
    assert all("somebody else has set it otherwise meanwhile" in line for line in lost)


def test_killed_between_creating_and_deleting_the_next_one_clears_up(cluster: Cluster) -> None:
    cluster.schedule()
    cluster.stub.fault = lambda name: Fault(500) if name == DELETE else None
    assert cluster.schedule(seed=4).code == 2
    assert len(cluster.stub.schedules()) == 2
    cluster.stub.fault = lambda _: None
    assert cluster.schedule(seed=4).code == 0
    assert only(cluster)["runtime_config"]["parameters"]["seed"] == 4


def test_a_version_that_is_registered_is_scheduled_by_its_name(cluster: Cluster) -> None:
    cluster.schedule()
    before = only(cluster)
    (version,) = cluster.stub.kinds["pipeline_versions"].values()
    words = ("schedule", f"taskmem-adaptation@{version['name']}", "--params", cluster.parameters())
    assert cluster.taskmem(*words).out == f"nightly: unchanged, '{CRON}', {before['recurring_run_id']}\n"
    said = cluster.taskmem("schedule", "taskmem-adaptation@v9", "--params", cluster.parameters())
    assert (said.code, said.out) == (2, "")
    assert "has no version v9 of pipeline taskmem-adaptation; see the name" in said.error


@pytest.mark.parametrize(
    ("cron", "said"),
    [
        ("0 2 * * *", "five fields, as a CronJob of Kubernetes has; Kubeflow wants six, seconds first: '0 0 2 * * *'"),
        ("@daily", "--cron '@daily': 1 fields; give six: second, minute, hour, day, month, weekday"),
        ("0 0 25 * * *", "--cron '0 0 25 * * *': hour '25': not *, a number from 0 to 23, a range or a list"),
        ("0 0 2 0 * *", "--cron '0 0 2 0 * *': day '0': not *, a number from 1 to 31"),
        ("0 30-10 2 * * *", "minute '30-10': not *"),
        ("0 0 2 * * TODAY", "weekday 'TODAY': not *"),
    ],
)  # fmt: skip
def test_a_cron_expression_that_kubeflow_would_misread_is_one_line_and_nobody_is_asked(
    cluster: Cluster, cron: str, said: str
) -> None:
    ended = cluster.schedule("--cron", cron)
    assert (ended.code, ended.out, ended.error.count("\n")) == (2, "", 1)
    assert said in ended.error
    assert cluster.stub.asked == []


@pytest.mark.parametrize("cron", [CRON, "*/10 0 2 * * ?", "0 0,30 1-5 1 JAN-MAR MON,WED", " 0  0 2 1/2 * 0 "])
def test_kubeflow_s_own_are_taken(cron: str) -> None:
    assert check_cron(cron) == " ".join(cron.split())
