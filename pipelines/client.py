"""Kubeflow Pipelines from the outside: its generated REST client, with whatever that can throw as one line and what to do.

`kfp.Client` itself is not used: it has no time-outs, reads the environment when it is made, prints, and takes a login page for
an empty answer. Nothing is tried again here, for every command may be run again: what is there already is found.
"""

# mypy: disable-error-code="import-untyped"

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kfp_server_api
import urllib3
from kfp_server_api import ApiException

from taskmem.errors import UserError
from taskmem.records import one_line

PAGE, PAGES = 100, 1000
LONGEST_MESSAGE = 300
CONNECT_SECONDS = 10.0
EQUALS = "EQUALS"
VERSION = kfp_server_api.__version__
ADVICE = {
    401: "not authenticated; give a valid token with --token-file",
    403: "not allowed with this token; ask for the right to do it, or give another --token-file or --namespace",
    409: "changed by somebody else meanwhile; run it again",
    429: "too many requests; wait {wait} and run it again",
    501: f"not known to this server, which is of another version than the client ({VERSION}); bring them together",
}


@dataclass(frozen=True)
class Connection:
    """Where the API server is and who asks. `seconds` is how long an answer may take; `token` is never shown."""

    host: str
    token: str | None = field(default=None, repr=False)
    ca: Path | None = None
    namespace: str | None = None
    seconds: float = 30.0


def connection(
    host: str | None, token_file: Path | None, ca: Path | None, namespace: str | None, seconds: float
) -> Connection:
    """A checked connection; UserError for no address, one with a password in it, and a file that cannot be read or is empty."""
    if not host:
        raise UserError("no address of Kubeflow Pipelines; give --host or set KF_PIPELINES_ENDPOINT")
    try:
        parts = urlsplit(host)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(
            "--host: not an http(s) URL without user, password and query; give one such as https://kfp.example"
        )
    if ca is not None and not ca.is_file():
        raise UserError(f"{ca}: no such file; give the PEM file of the server's CA with --ca")
    return Connection(host.rstrip("/"), _token(token_file) if token_file else None, ca, namespace, seconds)


def _token(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a token ({type(error).__name__}); see --token-file") from None
    if not token or not token.isprintable() or " " in token:
        raise UserError(f"{path}: holds no token; write one line to it")
    return token


class AnswerError(Exception):
    """The server answered with something that is no answer of this API; the message says what."""


class _Client(kfp_server_api.ApiClient):
    """The generated client, but an answer that is no JSON object is an error and not an empty one."""

    def deserialize(self, response: Any, response_type: Any) -> Any:
        try:
            document = json.loads(response.data)
        except ValueError:
            text = response.data.lstrip()[:100].lower()
            page = text.startswith(("<!doctype", "<html"))
            raise AnswerError("a web page, as of a login" if page else "something that is no JSON") from None
        if not isinstance(document, dict):
            raise AnswerError("no JSON object")
        try:
            return super().deserialize(response, response_type)
        except (ValueError, TypeError, KeyError, AttributeError, ApiException) as error:
            raise AnswerError(f"what this client cannot read ({type(error).__name__})") from error


class Kubeflow:
    """The calls that the commands need. Every method raises UserError, one line, for whatever goes wrong."""

    def __init__(self, where: Connection) -> None:
        settings = kfp_server_api.Configuration(host=where.host)
        settings.retries = urllib3.Retry(total=0)
        settings.ssl_ca_cert = str(where.ca) if where.ca else None
        if where.token:
            settings.api_key["authorization"] = where.token
            settings.api_key_prefix["authorization"] = "Bearer"
        self.where = where
        self._client = _Client(settings)
        self._experiments = kfp_server_api.ExperimentServiceApi(self._client)
        self._pipelines = kfp_server_api.PipelineServiceApi(self._client)
        self._uploads = kfp_server_api.PipelineUploadServiceApi(self._client)
        self._schedules = kfp_server_api.RecurringRunServiceApi(self._client)
        self._runs = kfp_server_api.RunServiceApi(self._client)

    def experiment(self, name: str, create: bool) -> str:
        """The id of an experiment; UserError if it is not there and not to be created."""
        what = f"experiment {name}"
        asked = {"filter": named(name), **self._namespaced}
        found = [e for e in self._all(what, self._experiments.experiment_service_list_experiments, "experiments", **asked)
                 if e.display_name == name]  # fmt: skip
        if found:
            return str(found[0].experiment_id)
        if not create:
            raise UserError(
                f"{self.where.host}: has no {what}; give --experiment, or submit or schedule something in it"
            )
        new = kfp_server_api.V2beta1Experiment(display_name=name, namespace=self.where.namespace)
        made = self._again_if_taken(
            lambda: self._call(what, self._experiments.experiment_service_create_experiment, new),
            lambda: self.experiment(name, create=False),
        )
        return made if isinstance(made, str) else str(made.experiment_id)

    def pipeline(self, name: str) -> str | None:
        """The id of a registered pipeline, None if there is none."""
        what = f"pipeline {name}"
        asked = {"filter": named(name), **self._namespaced}
        listed = self._all(what, self._pipelines.pipeline_service_list_pipelines, "pipelines", **asked)
        return next((str(p.pipeline_id) for p in listed if name in (p.name, p.display_name)), None)

    def create_pipeline(self, name: str) -> str:
        """Register a pipeline that has no version yet; its id, also if somebody else has registered it meanwhile."""
        new = kfp_server_api.V2beta1Pipeline(name=name, display_name=name, namespace=self.where.namespace)
        made = self._again_if_taken(
            lambda: self._call(f"pipeline {name}", self._pipelines.pipeline_service_create_pipeline, new),
            lambda: self.pipeline(name),
        )
        return made if isinstance(made, str) else str(made.pipeline_id)

    def version(self, pipeline: str, name: str) -> Any | None:
        """A version of the pipeline of that id, None if there is none."""
        what, asked = f"version {name}", {"filter": named(name)}
        listed = self._all(
            what, self._pipelines.pipeline_service_list_pipeline_versions, "pipeline_versions", pipeline, **asked
        )
        return next((v for v in listed if name in (v.name, v.display_name)), None)

    def upload_version(self, pipeline: str, name: str, file: Path) -> str:
        """Register the IR in `file` as a version; its id, also if somebody else has registered it meanwhile."""
        made = self._again_if_taken(
            lambda: self._call(
                f"version {name}", self._uploads.upload_pipeline_version, str(file), name=name, pipelineid=pipeline
            ),
            lambda: getattr(self.version(pipeline, name), "pipeline_version_id", None),
        )
        return made if isinstance(made, str) else str(made.pipeline_version_id)

    def submit(self, run: Any) -> Any:
        """Start a V2beta1Run."""
        return self._call(f"run {run.display_name}", self._runs.run_service_create_run, run)

    def runs(self, experiment: str | None, limit: int) -> list[Any]:
        """The newest runs, of one experiment or of all."""
        asked = {"experiment_id": experiment} if experiment else self._namespaced
        listed = self._all(
            "runs",
            self._runs.run_service_list_runs,
            "runs",
            page_size=min(limit, PAGE),
            sort_by="created_at desc",
            **asked,
        )
        return [run for run, _ in zip(listed, range(limit), strict=False)]

    def run(self, run_id: str) -> Any:
        """One run with its tasks."""
        return self._call(f"run {run_id}", self._runs.run_service_get_run, run_id)

    def schedules(self, name: str) -> list[Any]:
        """All recurring runs of a name, the newest last; names need not be unique."""
        asked = {"filter": named(name), **self._namespaced}
        listed = self._all(
            f"schedule {name}", self._schedules.recurring_run_service_list_recurring_runs, "recurring_runs", **asked
        )
        found = [schedule for schedule in listed if schedule.display_name == name]
        return sorted(found, key=lambda s: (str(s.created_at), s.recurring_run_id))

    def create_schedule(self, schedule: Any) -> Any:
        """Create a V2beta1RecurringRun."""
        what = f"schedule {schedule.display_name}"
        return self._call(what, self._schedules.recurring_run_service_create_recurring_run, schedule)

    def delete_schedule(self, name: str, schedule_id: str) -> None:
        """Delete a recurring run; no error if it is gone already."""
        try:
            self._asked(self._schedules.recurring_run_service_delete_recurring_run, f"schedule {name}", schedule_id)
        except ApiException as error:
            if error.status != 404 or _message(error) is None:
                raise self._refused(error, f"schedule {name}") from None

    def log(self, run_id: str, pod: str) -> Iterator[str]:
        """The lines that a pod of a run wrote, of one that is gone from the archive if there is one.

        The route is the API server's own and not in its OpenAPI. What a terminal would act on is escaped.
        """
        what = f"log of {pod}"

        def ask(**options: Any) -> Any:
            path = "/apis/v1alpha1/runs/{run_id}/nodes/{node_id}/log"
            at, options = {"run_id": run_id, "node_id": pod}, {**options, "_preload_content": False}
            return self._client.call_api(path, "GET", at, [], {}, auth_settings=["Bearer"], **options)

        response = self._call(what, ask, _return_http_data_only=True)
        rest = b""
        try:
            for block in response.stream(1 << 16):
                *lines, rest = (rest + block).split(b"\n")
                yield from (_shown(line) for line in lines)
        except urllib3.exceptions.HTTPError as error:
            raise self._unreached(error, what) from None
        if rest:
            yield _shown(rest)

    @property
    def _namespaced(self) -> dict[str, str]:
        return {"namespace": self.where.namespace} if self.where.namespace else {}

    def _all(self, what: str, method: Callable[..., Any], attribute: str, *given: Any, **asked: Any) -> Iterator[Any]:
        """Everything on all pages."""
        token = ""
        for _ in range(PAGES):
            page = self._call(what, method, *given, **{"page_size": PAGE, **asked, "page_token": token})
            yield from getattr(page, attribute) or ()
            token = page.next_page_token or ""
            if not token:
                return
        raise UserError(f"{self.where.host}: {what}: more than {PAGES} pages; is this Kubeflow Pipelines?")

    def _again_if_taken(self, create: Callable[[], Any], find: Callable[[], str | None]) -> Any:
        """What `create` returns; if it is there already, what `find` finds."""
        try:
            return create()
        except ConflictError:
            found = find()
            if found is None:
                raise
            return found

    def _call(self, what: str, method: Callable[..., Any], *given: Any, **asked: Any) -> Any:
        try:
            return self._asked(method, what, *given, **asked)
        except ApiException as error:
            raise self._refused(error, what) from None

    def _asked(self, method: Callable[..., Any], what: str, *given: Any, **asked: Any) -> Any:
        timeout = (min(CONNECT_SECONDS, self.where.seconds), self.where.seconds)
        try:
            return method(*given, **asked, _request_timeout=timeout)
        except urllib3.exceptions.HTTPError as error:
            raise self._unreached(error, what) from None
        except AnswerError as error:
            raise UserError(
                f"{self.where.host}: {what}: answered with {error}; see that this is the API server's address and "
                f"--token-file opens it, and that server and client ({VERSION}) are of one version"
            ) from None

    def _refused(self, error: ApiException, what: str) -> UserError:
        said = _message(error)
        quoted = f" ({self._hidden(said)})" if said else ""
        where = f"{self.where.host}: {what}"
        if error.status == 0:
            return UserError(
                f"{where}: no secure connection ({self._hidden(str(error.reason))}); give the CA with --ca"
            )
        if error.status == 404 and said is None:
            return UserError(
                f"{where}: no API v2beta1 of Kubeflow Pipelines there (404); see --host, and that the server is 2.0 or later"
            )
        wait = _wait(error)
        advice = ADVICE.get(error.status, "").format(wait=wait) or _advice(error.status)
        kind = ConflictError if error.status == 409 else UserError
        return kind(f"{where}: {advice}{quoted}")

    def _unreached(self, error: Exception, what: str) -> UserError:
        reason = getattr(error, "reason", None) or error
        where = f"{self.where.host}: {what}"
        timeouts = (urllib3.exceptions.ConnectTimeoutError, urllib3.exceptions.ReadTimeoutError)
        # to urllib3 a refused connection is a kind of time-out
        if isinstance(reason, timeouts) and not isinstance(reason, urllib3.exceptions.NewConnectionError):
            return UserError(
                f"{where}: no answer in {self.where.seconds:g} s; run it again, which does nothing twice, or give --seconds"
            )
        if isinstance(reason, urllib3.exceptions.SSLError):
            return UserError(f"{where}: no secure connection ({self._hidden(str(reason))}); give the CA with --ca")
        if isinstance(reason, urllib3.exceptions.ResponseError):
            return UserError(f"{where}: sent to another address, as to a login; give a valid token with --token-file")
        return UserError(f"{where}: not reached ({self._hidden(_cause(reason))}); see --host, and that the server runs")

    def _hidden(self, text: str) -> str:
        """Foreign text as one short line without our token."""
        hidden = text.replace(self.where.token, "***") if self.where.token else text
        line = one_line(" ".join(hidden.split()))
        return line if len(line) <= LONGEST_MESSAGE else f"{line[:LONGEST_MESSAGE]}..."


class ConflictError(UserError):
    """It is there already, or somebody else has changed it."""


def named(name: str) -> str:
    """The API's filter for a name."""
    return json.dumps({"predicates": [{"operation": EQUALS, "key": "display_name", "string_value": name}]})


def _advice(status: int) -> str:
    if status == 404:
        return "not there; see the name, --namespace and `taskmem runs`"
    if status >= 500:
        return f"the server failed ({status}); run it again, and see the log of ml-pipeline if it stays"
    return f"refused ({status}); see what it says, and that server and client ({VERSION}) are of one version"


def _message(error: ApiException) -> str | None:
    """What the API says of an error, None if it is not the API that speaks."""
    try:
        document = json.loads(error.body)
    except (TypeError, ValueError):
        return None
    if not isinstance(document, dict) or "code" not in document:
        return None
    return str(document.get("message") or document.get("error") or "no message")


def _wait(error: ApiException) -> str:
    after = str((error.headers or {}).get("Retry-After", ""))
    return f"{after} s" if after.isdecimal() and len(after) < 6 else "a minute"


def _cause(reason: object) -> str:
    text = str(reason)
    # urllib3 begins with the object's address
    return text.split(">: ", 1)[-1].split("): ", 1)[-1]


def _shown(line: bytes) -> str:
    return one_line(line.decode("utf-8", "replace").rstrip("\r").replace("\t", "    "))
