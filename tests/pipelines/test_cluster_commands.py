"""`taskmem submit | runs | logs` against a server that checks every request, and what is said when something is in the way."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cluster_parts import PARAMETERS, Cluster, Said
from kfp_stub import TOKEN, Fault, refusal

GET_RUN, CREATE_RUN = "run_service_get_run", "run_service_create_run"
UNREADABLE = '{"runs": 7, "experiments": 7, "pipelines": 7, "run_details": {"task_details": 7}}'
COMMANDS: dict[str, Callable[[Cluster], Said]] = {
    "submit": lambda cluster: cluster.submit(),
    "schedule": lambda cluster: cluster.schedule(),
    "runs": lambda cluster: cluster.taskmem("runs"),
    "logs": lambda cluster: cluster.taskmem("logs", "some-run"),
}
each_command = pytest.mark.parametrize("command", COMMANDS)


def one_line(said: Said, *parts: str) -> None:
    """That a command ended with one line that has all the parts."""
    assert (said.code, said.out, said.error.count("\n")) == (2, "", 1), said
    assert said.error.startswith("taskmem: ")
    for part in parts:
        assert part in said.error


def test_a_file_is_submitted_whole_with_its_parameters(cluster: Cluster) -> None:
    said = cluster.submit("--name", "tonight", "--service-account", "runner")
    (run,) = cluster.stub.kinds["runs"].values()
    assert (said.code, said.out, said.error) == (0, f"tonight: {run['run_id']}\n", "")
    assert run["runtime_config"]["parameters"] == PARAMETERS
    assert run["service_account"] == "runner"
    assert run["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "taskmem-adaptation"
    assert (
        "exec-notify" in run["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    )
    (experiment,) = cluster.stub.kinds["experiments"].values()
    assert (experiment["display_name"], run["experiment_id"]) == ("taskmem", experiment["experiment_id"])


def test_submitted_again_the_experiment_is_the_same_and_a_name_is_made_up(cluster: Cluster) -> None:
    assert cluster.submit().out.startswith("taskmem-adaptation 20")
    cluster.submit()
    assert len(cluster.stub.kinds["experiments"]) == 1
    assert len(cluster.stub.kinds["runs"]) == 2


def test_a_registered_version_is_submitted_by_name_and_checked_against_its_own_parameters(cluster: Cluster) -> None:
    cluster.schedule()
    (version,) = cluster.stub.kinds["pipeline_versions"].values()
    name = f"taskmem-adaptation@{version['name']}"
    assert cluster.taskmem("submit", name, "--params", cluster.parameters()).code == 0
    (run,) = cluster.stub.kinds["runs"].values()
    assert run["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    assert "pipeline_spec" not in run
    one_line(cluster.taskmem("submit", name), "--params: events: missing; ")


def test_in_a_namespace_everything_is_asked_for_there(cluster: Cluster) -> None:
    assert cluster.submit("--namespace", "team").code == 0
    assert cluster.schedule("--namespace", "team").code == 0
    assert {e["namespace"] for e in cluster.stub.kinds["experiments"].values()} == {"team"}
    assert cluster.taskmem("runs", "--namespace", "team").code == 0


def test_an_unknown_pipeline_is_one_line(cluster: Cluster) -> None:
    one_line(cluster.taskmem("submit", "nobody@v1"), "has no pipeline nobody; see the name and --namespace")
    one_line(cluster.taskmem("submit", "missing.yaml"), "missing.yaml: cannot be read (No such file or directory)")
    one_line(cluster.taskmem("submit", "@v1"), "@v1: neither a file nor PIPELINE@VERSION")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stroe": "x"}, "parameters.json: stroe: no parameter of taskmem-adaptation; it has events, "),
        ({"seed": "3"}, "parameters.json: seed: is str; the pipeline takes NUMBER_INTEGER"),
        ({"seed": True}, "parameters.json: seed: is bool; the pipeline takes NUMBER_INTEGER"),
        ({"shards": {}}, "parameters.json: shards: is dict; the pipeline takes LIST"),
        (
            {"lineage": "https://ada:hunter2@git.test/x"},
            "parameters.json: lineage: https://git.test/x: every log would",
        ),
    ],
)
def test_a_parameter_that_the_pipeline_does_not_take_is_one_line_and_nobody_is_asked(
    cluster: Cluster, changes: dict[str, Any], said: str
) -> None:
    ended = cluster.schedule(**changes)
    one_line(ended, said)
    assert "hunter2" not in ended.error
    assert cluster.stub.asked == []


def test_a_missing_parameter_is_named(cluster: Cluster) -> None:
    one_line(cluster.taskmem("submit", cluster.ir), "--params: events: missing; taskmem-adaptation needs it")


@pytest.mark.parametrize("text", ["", "[", "a: 1", "\x00", "root: 1\npipelineInfo: {name: x}", "- 1"])
def test_what_is_no_compiled_pipeline_is_one_line(cluster: Cluster, text: str) -> None:
    file = cluster.folder / "ir.yaml"
    file.write_text(text)
    one_line(cluster.taskmem("submit", file), f"{file}: no ", "give a file that `taskmem compile` wrote")


def test_the_newest_runs_are_listed_over_all_pages(cluster: Cluster) -> None:
    for number in range(5):
        cluster.submit("--name", f"night {number}")
    last = list(cluster.stub.kinds["runs"].values())[-1]
    last |= {"state": "SUCCEEDED", "finished_at": last["created_at"].replace("T00:", "T02:")}
    said = cluster.taskmem("runs", "--limit", "4")
    rows = [line.split() for line in said.out.splitlines() if "night" in line]
    assert [" ".join(row[1:3]) for row in rows] == ["night 4", "night 3", "night 2", "night 1"]
    assert rows[0][0] == last["run_id"]
    assert rows[0][3:] == ["SUCCEEDED", *last["created_at"].rstrip("Z").split("T"), "2:00:00"]
    one_line(cluster.taskmem("runs", "--experiment", "none"), "has no experiment none; give --experiment")


def ended(cluster: Cluster) -> str:
    """A run with a task that failed, one that has had no pod, and a log."""
    cluster.submit()
    (run,) = cluster.stub.kinds["runs"].values()
    failed = {"display_name": "mine", "state": "FAILED", "error": {"code": 1, "message": "exit\x1b[31m status 2"}}
    done = {"display_name": "notify", "state": "SUCCEEDED", "pod_name": "pod-2"}
    waiting = {"display_name": "gate", "state": "PENDING"}
    tasks = [{**failed, "child_tasks": [{"task_id": "t", "pod_name": "pod-1"}, {"pod_name": "pod-3"}]}, done, waiting]
    run["run_details"] = {"task_details": tasks}
    cluster.stub.logs = {
        "pod-1": b"first\n\x1b[2Jsecond\tline\n\xff third",
        "pod-2": b"",
        "pod-3": b"x" * 200_000 + b"\n",
    }
    return str(run["run_id"])


def test_without_a_task_a_run_s_tasks_are_listed_with_their_errors(cluster: Cluster) -> None:
    said = cluster.taskmem("logs", ended(cluster)).out.splitlines()
    assert [line.split() for line in said if "FAILED" in line] == [["mine", "FAILED", r"exit\x1b[31m", "status", "2"]]
    assert [line.split() for line in said if "PENDING" in line] == [["gate", "PENDING"]]


def test_with_a_task_what_its_pods_wrote_is_shown_and_nothing_that_a_terminal_would_act_on(cluster: Cluster) -> None:
    run = ended(cluster)
    said = cluster.taskmem("logs", run, "mine")
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[:4] == ["--- pod-1", "first", r"\x1b[2Jsecond    line", "\ufffd third"]
    assert lines[4:] == ["--- pod-3", "x" * 200_000]
    assert cluster.taskmem("logs", run, "notify").out == "--- pod-2\n"


def test_a_task_that_is_not_there_or_has_not_begun_is_one_line(cluster: Cluster) -> None:
    run = ended(cluster)
    one_line(cluster.taskmem("logs", run, "mind"), f"run {run}: has no task mind; `taskmem logs {run}` lists them")
    one_line(cluster.taskmem("logs", run, "gate"), "task gate has had no pod yet; its state is PENDING")
    one_line(
        cluster.taskmem("logs", "no-such-run"), "run no-such-run: not there; see the name", "run no-such-run not found"
    )


@each_command
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(401, refusal(16, "no")), "not authenticated; give a valid token with --token-file (no)"),
        (Fault(403, refusal(7, "no")), "not allowed with this token; ask for the right to do it"),
        (Fault(404, refusal(5, "no")), "not there; see the name, --namespace and `taskmem runs` (no)"),
        (Fault(404, "404 page not found"), "no API v2beta1 of Kubeflow Pipelines there (404); see --host"),
        (Fault(409, refusal(10, "no")), "changed by somebody else meanwhile; run it again (no)"),
        (Fault(429, "", {"Retry-After": "7"}), "too many requests; wait 7 s and run it again"),
        (Fault(429, "", {"Retry-After": "\x1b[2J"}), "too many requests; wait a minute and run it again"),
        (Fault(500, refusal(13, "no")), "the server failed (500); run it again, and see the log of ml-pipeline"),
        (Fault(503, "<html>busy</html>"), "the server failed (503); run it again"),
        (Fault(501, refusal(12, "no")), "not known to this server, which is of another version than the client ("),
        (Fault(400, refusal(3, "unknown\nfield")), "refused (400); see what it says, and that server and client ("),
        (Fault(302, "", {"Location": "https://login.test/"}), "sent to another address, as to a login; give a valid token"),
        (Fault(200, "<!DOCTYPE html><title>Log in</title>"), "answered with a web page, as of a login; see that"),
        (Fault(200, "[]"), "answered with no JSON object; see that"),
        (Fault(200, UNREADABLE), "answered with what this client cannot read ("),
        (Fault(500, refusal(13, f"who sent {TOKEN}?" + "x" * 9999)), "who sent ***?xxx"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Fault) else "",
)  # fmt: skip
def test_whatever_the_server_answers_is_one_line_that_says_what_to_do(
    cluster: Cluster, command: str, fault: Fault, said: str
) -> None:
    cluster.stub.fault = lambda _: fault
    ended = COMMANDS[command](cluster)
    one_line(ended, f"{cluster.url}: ", said)
    assert len(ended.error) < 700


@each_command
def test_no_answer_in_time_is_one_line(cluster: Cluster, command: str) -> None:
    cluster.stub.fault = lambda _: Fault(delay=1.5)
    words = {"submit": (cluster.ir, "--params", cluster.parameters()), "logs": ("some-run",), "runs": ()}
    words["schedule"] = words["submit"]
    said = cluster.taskmem(command, *words[command], "--seconds", "0.3")
    one_line(said, "no answer in 0.3 s; run it again, which does nothing twice, or give --seconds")


@each_command
def test_a_connection_that_is_cut_is_one_line(cluster: Cluster, command: str) -> None:
    cluster.stub.fault = lambda _: Fault()
    one_line(COMMANDS[command](cluster), "not reached (", "; see --host, and that the server runs")


def test_nobody_there_and_no_such_host_are_one_line(cluster: Cluster) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{found.getsockname()[1]}"
    one_line(cluster.taskmem("runs", host=nobody), f"{nobody}: runs: not reached (", "Connection refused")
    one_line(cluster.taskmem("runs", host="http://kfp.invalid"), "http://kfp.invalid: runs: not reached (")
    one_line(cluster.taskmem("runs", host=cluster.url.replace("http:", "https:")), "no secure connection (", "--ca")


@pytest.mark.parametrize(
    "host", ["", "kfp.test", "ftp://kfp.test", "http://", "http://ada:pw@kfp.test", "http://kfp.test:no"]
)
def test_what_is_no_address_is_refused_without_being_repeated(cluster: Cluster, host: str) -> None:
    said = cluster.taskmem("runs", host=host or " ")
    one_line(said, "--host: not an http(s) URL")
    assert "pw" not in said.error


@pytest.mark.parametrize("token", [None, b"", b"two words", b"\xff\xfe"])
def test_a_file_that_holds_no_token_is_one_line(cluster: Cluster, token: bytes | None) -> None:
    cluster.token.unlink()
    if token is not None:
        cluster.token.write_bytes(token)
    said = cluster.taskmem("runs")
    one_line(said, f"{cluster.token}: ")
    assert "words" not in said.error


def test_a_missing_ca_is_one_line(cluster: Cluster, tmp_path: Path) -> None:
    one_line(cluster.taskmem("runs", "--ca", tmp_path / "ca.pem"), "ca.pem: no such file; give the PEM file")


def test_the_token_is_in_no_log_and_in_no_representation(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    from pipelines.client import Kubeflow, connection  # noqa: PLC0415 - kfp is slow to import

    where = connection(cluster.url, cluster.token, None, None, 5.0)
    with caplog.at_level("DEBUG"):
        Kubeflow(where).experiment("taskmem", create=True)
    assert where.token == TOKEN
    assert TOKEN not in repr(where) + caplog.text


def test_registered_by_somebody_else_meanwhile_it_is_found(cluster: Cluster) -> None:
    """A list that is older than what is there: the create that follows is a conflict."""
    cluster.schedule()
    hidden: list[str] = []

    def stale(operation: str) -> Fault | None:
        if (
            operation.endswith(("list_pipelines", "list_experiments", "list_pipeline_versions"))
            and operation not in hidden
        ):
            hidden.append(operation)
            return Fault(200, "{}")
        return None

    cluster.stub.fault = stale
    assert cluster.schedule().out.startswith("nightly: unchanged, ")
    assert len(hidden) == 3
    assert {kind: len(things) for kind, things in cluster.stub.kinds.items() if kind != "runs"} == dict.fromkeys(
        ("experiments", "pipelines", "pipeline_versions", "recurring_runs"), 1
    )


def test_the_address_and_the_token_may_come_from_kubeflow_s_own_variables(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys  # noqa: PLC0415

    from pipelines.cli import main  # noqa: PLC0415

    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", cluster.url)
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(cluster.token))
    monkeypatch.setattr(sys, "argv", ["taskmem", "runs"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT")
    with pytest.raises(SystemExit):
        main()
    assert "no address of Kubeflow Pipelines; give --host or set KF_PIPELINES_ENDPOINT" in capsys.readouterr().err
