"""Runs a pipeline with kfp.local, which keeps what it does well: order, loops, conditions, exit handlers, artifacts.

kfp.local has no place for a display, for logs in files or for a cache keyed by content. For the length of a run two of its
module attributes, both looked up when they are called, are therefore replaced and put back afterwards:
`task_executor.execute_single_task` (one task of the graph: here come its name, the cache and the retries, for kfp's own sleep
cannot be interrupted and tries again what cannot succeed) and the handler of one attempt (process.py, containers.py).
"""

import logging
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp import local
from kfp.dsl import Artifact, Metrics
from kfp.dsl.graph_component import GraphComponent
from kfp.local import config, executor_input_utils
from kfp.local.orchestrator import task_executor
from kfp.local.orchestrator.orchestrator_utils import OrchestratorUtils
from kfp.local.status import Status

from pipelines.local.attempt import Attempt, Attempts, Transcript
from pipelines.local.cache import Cache, Entry
from pipelines.local.names import Names, file_name
from pipelines.local.process import Processes
from pipelines.local.quiet import COLOURS, quiet, replaced
from taskmem.errors import UserError
from taskmem.files import sweep
from taskmem.loop.display import StageDisplay
from taskmem.records import one_line
from taskmem.store.locks import acquire, release

MARK = ".pipeline-runs"
LOCK = ".lock"
FOLDERS = ("cache", "logs", "runs", "store", "work")
SHOWN_LINES = 15
_FAILED: tuple[dict[str, Any], Status] = ({}, Status.FAILURE)


class StageFailedError(UserError):
    """A stage of the pipeline failed: which one, why, and the file with all it said."""

    def __init__(self, stage: str, reason: str, log: Path) -> None:
        super().__init__(f"{stage}: {one_line(reason)}; its log is {log}")
        self.stage, self.reason, self.log = stage, reason, log


@dataclass(frozen=True)
class StageResult:
    """A finished stage: outputs (parameters, and artifacts with `.path` and `.metadata`), seconds, and whether it ran."""

    outputs: Mapping[str, Any]
    seconds: float
    unchanged: bool

    @property
    def failed(self) -> int:
        """How many parts of its work the stage says failed, in the metadata `failed` of its artifacts; metrics repeat it."""
        artifacts = [v for v in self.outputs.values() if isinstance(v, Artifact) and not isinstance(v, Metrics)]
        numbers = [artifact.metadata.get("failed", 0) for artifact in artifacts]
        return sum(int(number) for number in numbers)


@dataclass(frozen=True)
class Finished:
    """A finished run: the pipeline's own outputs, and every stage by its name as displayed."""

    outputs: Mapping[str, Any]
    stages: Mapping[str, StageResult]

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of every stage's last attempt, of the unchanged ones as they once took."""
        return {name: stage.seconds for name, stage in self.stages.items()}


def run_pipeline(
    pipeline: GraphComponent,
    arguments: Mapping[str, Any],
    out: Path,
    display: StageDisplay,
    *,
    resume: bool = True,
    attempts: Attempts | None = None,
) -> Finished:
    """Run `pipeline` on this machine; a stage whose code and inputs `out` has seen before is not run again.

    `attempts` says how: as processes of this interpreter by default, or in `Containers`.

    `out` must be new, empty or of an earlier run; `resume` says whether that one is gone on with or removed. It gets cache/ (one
    entry per finished stage), runs/ (artifacts; those of no entry are removed when the next run starts), logs/ (<stage>.log,
    kubeflow.log) and store/, free for an object store of the pipeline's. A stage reports progress with lines `::progress
    DONE/TOTAL`. One whose artifacts have metadata `failed` above zero is not kept in the cache. Interrupted or killed, the same
    call goes on with what is missing. Raises StageFailedError if a stage fails, UserError if `out` is in use or somebody else's.
    """
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = acquire(out / LOCK, wait=False)
    except BlockingIOError:
        raise UserError(f"{out}: another run is writing there; wait for it or give another --out") from None
    try:
        _claim(out, resume)
        return _Run(pipeline, out, display, attempts or Processes()).run(arguments)
    finally:
        release(lock)


def _claim(out: Path, resume: bool) -> None:
    """Take possession of `out`, where unneeded files of ours will be removed."""
    foreign = sorted(path for path in out.iterdir() if path.name != LOCK)
    if foreign and not (out / MARK).exists():
        raise UserError(f"{foreign[0]}: no pipeline run made it; give an empty folder or another --out")
    (out / MARK).touch()
    for name in ("work",) if resume else FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)
    for name in FOLDERS:
        (out / name).mkdir(exist_ok=True)
    sweep(out / "cache")


class _Run:
    def __init__(self, pipeline: GraphComponent, out: Path, display: StageDisplay, attempts: Attempts) -> None:
        spec = pipeline.pipeline_spec
        self._pipeline, self._name = pipeline, spec.pipeline_info.name
        self._out, self._root = out, out.resolve()
        self._display = display
        self._names = Names(spec)
        self._cache = Cache(self._root, self._name)
        self._way = attempts
        self._execute = task_executor.execute_single_task
        self._here = threading.local()
        self._stages: dict[str, StageResult] = {}
        self._failures: list[StageFailedError] = []

    def run(self, arguments: Mapping[str, Any]) -> Finished:
        self._cache.remove_unkept(self._root / "runs")
        self._display.note(f"logs: {self._out / 'logs'}")
        try:
            with self._installed():
                outputs = self._outputs(arguments)
        except Exception as error:
            if self._failures:
                raise self._failures[0] from error
            if isinstance(error, RuntimeError):
                said = one_line(COLOURS.sub("", str(error)))
                raise UserError(f"{self._name}: {said} See {self._kubeflow_log}") from error
            raise
        finally:
            shutil.rmtree(self._out / "work", ignore_errors=True)
        if self._failures:
            raise self._failures[0]
        self._cache.forget_unused()
        return Finished(outputs, dict(self._stages))

    @property
    def _kubeflow_log(self) -> Path:
        return self._out / "logs" / "kubeflow.log"

    @contextmanager
    def _installed(self) -> Iterator[None]:
        temporary, workspace = self._root / "work" / "tmp", self._root / "work" / "workspace"
        for folder in (temporary, workspace):
            folder.mkdir()
        executors = self._pipeline.pipeline_spec.deployment_spec["executors"].values()
        images = [executor["container"]["image"] for executor in executors if "container" in executor]
        with (
            self._way.installed(self._root, temporary, images, self._here) as runner,
            quiet(self._kubeflow_log),
            replaced(config.LocalExecutionConfig, instance=None),
            replaced(task_executor, execute_single_task=self._task),
        ):
            local.init(runner, pipeline_root=str(self._root / "runs"), workspace_root=str(workspace))
            yield

    def _outputs(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        # In a thread of its own, so that an interruption reaches us here, kills the stages and lets kfp come to its end.
        with ThreadPoolExecutor(max_workers=1) as pool:
            future = pool.submit(lambda: dict(self._pipeline(**arguments).outputs))
            try:
                return future.result()
            except BaseException:
                self._way.stop()
                raise

    def _task(self, **call: Any) -> tuple[dict[str, Any], Status]:
        """In place of kfp's `execute_single_task`, with its arguments."""
        if self._way.stopped.is_set():
            return _FAILED
        task, component = call["task_spec"], call["components"][call["task_spec"].component_ref.name]
        executor = call["executors"][component.executor_label]
        name = self._names.claim(task, call["pipeline_resource_name"], call["io_store"])
        try:
            if executor.WhichOneof("spec") == "importer":
                return self._imported(call)
            return self._stage(name, executor.container, call)
        except Exception as error:
            # kfp would go on from some exceptions and not from others: here each is a stage that failed
            logging.getLogger().exception("%s", name)
            self._fail(name, 0.0, f"{type(error).__name__}: {error}", self._kubeflow_log)
            return _FAILED

    def _imported(self, call: Mapping[str, Any]) -> tuple[dict[str, Any], Status]:
        outputs, status = self._execute(**call)
        for artifact in outputs.values():
            if "://" not in artifact.uri and not Path(artifact.path).exists():
                raise FileNotFoundError(f"{artifact.path} is not there to be imported")
        return outputs, status

    def _stage(self, name: str, container: Any, call: Mapping[str, Any]) -> tuple[dict[str, Any], Status]:
        task, key = call["task_spec"], None
        if task.caching_options.enable_cache:
            arguments = OrchestratorUtils.make_task_arguments(task.inputs, call["io_store"])
            key = self._cache.key(task.component_ref.name, container, arguments)
            entry = self._cache.get(key)
            if entry is not None:
                self._stages[name] = StageResult(entry.outputs, entry.seconds, unchanged=True)
                self._display.skipped(name)
                return entry.outputs, Status.SUCCESS
        return self._attempts(name, key, call)

    def _attempts(self, name: str, key: str | None, call: Mapping[str, Any]) -> tuple[dict[str, Any], Status]:
        policy = call["task_spec"].retry_policy
        last = policy.max_retry_count + 1
        log = self._out / "logs" / f"{file_name(name)}.log"
        for number in range(1, last + 1):
            start = time.monotonic()
            shown = name if number == 1 else f"{name} (attempt {number})"
            with self._display.live(shown) as progress:
                attempt = Attempt(Transcript(log, number, progress))
                outputs, status = self._attempt(attempt, call)
                seconds = time.monotonic() - start
                result = StageResult(outputs, seconds, unchanged=False)
                if status == Status.SUCCESS and key is not None and result.failed == 0:
                    self._cache.put(key, name, Entry(outputs, seconds))
            if status == Status.SUCCESS:
                self._stages[name] = result
                self._display.done(name, seconds, _note(number, result.failed))
                return outputs, status
            if self._way.stopped.is_set() or attempt.ended is None:
                return _FAILED
            if number == last or attempt.ended.user_error:
                lines = () if attempt.ended.said else attempt.ended.lines[-SHOWN_LINES:]
                reason = attempt.ended.reason + (f", attempt {number} of {last}" if number > 1 else "")
                self._fail(name, seconds, reason, log, lines)
                return _FAILED
            delay = _delay(policy, number)
            self._display.failed(name, seconds, f"{attempt.ended.reason}, again in {delay:g} s", log)
            self._way.stopped.wait(delay)
        return _FAILED

    def _attempt(self, attempt: Attempt, call: Mapping[str, Any]) -> tuple[dict[str, Any], Status]:
        task = call["task_spec"]
        once = type(task)()
        once.CopyFrom(task)
        once.ClearField("retry_policy")
        # as on a cluster, where a pod starts with nothing
        shutil.rmtree(_task_root(call), ignore_errors=True)
        self._here.attempt = attempt
        outputs, status = self._execute(**{**call, "task_spec": once})
        return outputs, status

    def _fail(self, name: str, seconds: float, reason: str, log: Path, lines: tuple[str, ...] = ()) -> None:
        if self._way.stopped.is_set():
            return
        self._failures.append(StageFailedError(name, reason, log))
        self._display.failed(name, seconds, reason, log, lines)


def _task_root(call: Mapping[str, Any]) -> Path:
    component = executor_input_utils.get_local_task_resource_name(call["task_spec"].component_ref.name)
    root = executor_input_utils.construct_local_task_root(
        call["pipeline_root"], call["pipeline_resource_name"], component
    )
    return Path(root)


def _delay(policy: Any, attempt: int) -> float:
    """Seconds to wait after an attempt, by the rule kfp applies."""
    longest = policy.backoff_max_duration.seconds if policy.HasField("backoff_max_duration") else 3600
    seconds = policy.backoff_duration.seconds * (policy.backoff_factor or 2.0) ** (attempt - 1)
    return float(min(seconds, longest))


def _note(attempt: int, failed: int) -> str:
    notes = [f"attempt {attempt}"] if attempt > 1 else []
    return ", ".join([*notes, f"{failed} failed"] if failed else notes)
