"""Attempts of stages in containers of their images, by the Docker API of docker or podman.

kfp's own DockerRunner lets a container remove itself and takes one that it finds removed for a success (kfp issue 13332). Here
a container stays until its exit status is read. It runs as in a cluster: no root, no capability, a read-only root file system.
"""

import codecs
import os
import signal
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container
from kfp import local
from kfp.local import docker_task_handler
from kfp.local.status import Status

from pipelines.local.attempt import Attempt, Ended, Transcript, stage_environment
from pipelines.local.quiet import replaced
from taskmem.cluster import USER
from taskmem.errors import UserError
from taskmem.records import one_line

LABEL = "io.taskmem.run"
PASSED_ON = ("AWS_", "OMP_")
_AS_IN_A_CLUSTER = {
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "read_only": True,
    "tmpfs": {"/tmp": "mode=1777"},
}


class Containers:
    """Every attempt in a container of its stage's image.

    Each sees `out` and the folders `writes` at the same path as here, and `reads` too but cannot write there. They share this
    machine's network, and get of its variables those of AWS and OpenMP and the named `secrets`. A container's user is the
    caller, or the images' own where the caller is root: then what `out` holds is made its own. What a killed run left running is
    ended when the next one begins in the same `out`. UserError where no engine answers, or a folder is not to be written to.
    """

    def __init__(self, reads: Iterable[Path] = (), writes: Iterable[Path] = (), secrets: Iterable[str] = ()) -> None:
        self._reads, self._writes = [*reads], [*writes]
        for folder in self._writes:
            _writable(folder)
        self._given = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON) or k in {*secrets}}
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._running: set[Container] = set()
        # no timeout of its own: a stage may be silent for long
        self._client = _client()

    @contextmanager
    def installed(self, out: Path, temporary: Path, images: Iterable[str], here: threading.local) -> Iterator[Any]:
        """What `local.init` is to be given, while kfp makes attempts this way. UserError if an image is not to be had."""
        for left in self._client.containers.list(all=True, filters={"label": f"{LABEL}={out}"}):
            left.remove(force=True)
        for image in sorted({*images}):
            self._fetch(image)
        if os.geteuid() == 0:
            _give_away([out / "runs", out / "store", out / "work"])
        handler = partial(_Handler, self, self._mounts(out), temporary, {LABEL: str(out)}, here)
        with replaced(docker_task_handler, DockerTaskHandler=handler):
            yield local.DockerRunner()

    def run(self, transcript: Transcript, **container: Any) -> Ended:
        """Run a container to its end. After `stop` nothing runs: the attempt ends as killed."""
        with self._lock:
            if self.stopped.is_set():
                return Ended(-signal.SIGKILL, ())
            made = self._client.containers.create(
                detach=True, network_mode="host", user=_user(), **_AS_IN_A_CLUSTER, **container
            )
            self._running.add(made)
            # within the lock: `stop` ends what runs, and cannot end what is about to
            made.start()
        try:
            transcript.write(lines(made.logs(stream=True, follow=True)))
            code = int(made.wait()["StatusCode"])
        finally:
            with self._lock:
                self._running.discard(made)
            with suppress(NotFound):
                made.remove(force=True)
        return Ended(code, tuple(transcript.lines))

    def environment(self, variables: Mapping[str, str], temporary: Path) -> dict[str, str]:
        """The environment of a stage."""
        return stage_environment(self._given, variables, temporary)

    def stop(self) -> None:
        """Kill every attempt and let no further one begin."""
        with self._lock:
            self.stopped.set()
            for container in self._running:
                with suppress(APIError):
                    container.kill()

    def _fetch(self, image: str) -> None:
        try:
            self._client.images.get(image)
        except ImageNotFound:
            try:
                self._client.images.pull(image)
            except DockerException as error:
                raise UserError(
                    f"{image}: not here and not to be pulled ({one_line(str(error))}); make images"
                ) from None

    def _mounts(self, out: Path) -> dict[str, dict[str, str]]:
        read = {str(path): {"bind": str(path), "mode": "ro"} for path in self._reads}
        return read | {str(path): {"bind": str(path), "mode": "rw"} for path in (out, *self._writes)}


class _Handler(docker_task_handler.DockerTaskHandler):
    """One attempt, made by the stage that this thread is at."""

    def __init__(
        self,
        containers: Containers,
        mounts: Mapping[str, Mapping[str, str]],
        temporary: Path,
        labels: Mapping[str, str],
        here: threading.local,
        **given: Any,
    ) -> None:
        super().__init__(**given)
        self._containers, self._mounts, self._temporary, self._labels = containers, mounts, temporary, labels
        self._attempt: Attempt = here.attempt

    def run(self) -> Status:
        self._attempt.ended = self._containers.run(
            self._attempt.transcript,
            image=self.image,
            command=self.full_command,
            environment=self._containers.environment(self.env_vars, self._temporary),
            volumes={**self.get_volumes_to_mount(), **self._mounts},
            labels=self._labels,
        )
        return Status.SUCCESS if self._attempt.ended.code == 0 else Status.FAILURE


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines, each with its end, of bytes that come in any pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + decoder.decode(chunk)).split("\n")
        yield from (f"{line}\n" for line in whole)
    if rest:
        yield f"{rest}\n"


def _client() -> docker.DockerClient:
    try:
        client = docker.from_env(timeout=None)
        client.ping()
    except DockerException as error:
        raise UserError(
            f"no container engine answers at {os.environ.get('DOCKER_HOST', 'the default socket')} "
            f"({one_line(str(error))}); start docker, or `podman system service` and name its socket in DOCKER_HOST"
        ) from None
    return client


def _user() -> str:
    # a root of this machine would be root inside too
    return f"{os.getuid()}:{os.getgid()}" if os.geteuid() else f"{USER}:{USER}"


def _writable(folder: Path) -> None:
    """UserError if containers cannot write to a folder: it is missing, or root's where they run as the images' user."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; what stages in containers write to must be there before: create it")
    found = folder.stat()
    if os.geteuid() == 0 and not (
        found.st_mode & stat.S_IWOTH or (found.st_uid == USER and found.st_mode & stat.S_IWUSR)
    ):
        raise UserError(f"{folder}: not writable by the images' user; chown -R {USER}:{USER} it, or do not run as root")


def _give_away(folders: Sequence[Path]) -> None:
    """Make the images' user the owner of the folders and all that is in them."""
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        os.chown(folder, USER, USER)
        for root, names, files in os.walk(folder):
            for name in (*names, *files):
                os.chown(Path(root) / name, USER, USER, follow_symlinks=False)
