"""The log of a TrainJob's first node, line by line, through lost connections and replaced pods."""

import threading
from collections.abc import Iterator
from typing import Any

from kubernetes import client  # type: ignore[import-untyped]
from kubernetes.client.exceptions import ApiException  # type: ignore[import-untyped]
from urllib3.exceptions import HTTPError

from taskmem.progress import Note

LONGEST = 65_536
"""Characters of a line; a longer one is cut."""
_LABELS = {
    "jobset.sigs.k8s.io/jobset-name": "{job}",
    "jobset.sigs.k8s.io/replicatedjob-name": "node",
    "batch.kubernetes.io/job-completion-index": "0",
}


class NodeLog:
    """Says every line of node 0's container once; a pod that replaces another (pre-emption) is followed in turn."""

    def __init__(self, api: client.CoreV1Api, namespace: str, job: str, say: Note, look: float) -> None:
        self.ended = threading.Event()
        """Set when the job has ended: what the log still holds is read, and no other pod waited for."""
        self._api = api
        self._namespace = namespace
        self._selector = ",".join(f"{key}={value.format(job=job)}" for key, value in _LABELS.items())
        self._say = say
        self._look = look
        self._last: dict[str, tuple[str, str]] = {}

    def follow(self) -> None:
        """Until the job has ended and its log is read. What goes wrong on the way is tried again: a log decides nothing."""
        while True:
            ending = self.ended.is_set()
            try:
                for pod in self._pods():
                    self._read(pod, follow=not ending)
            except (ApiException, HTTPError, OSError):
                pass
            if ending:
                return
            self.ended.wait(self._look)

    def _pods(self) -> list[Any]:
        """The pods that node 0 has had and that have a log, the oldest first."""
        found = self._api.list_namespaced_pod(
            self._namespace, label_selector=self._selector, _request_timeout=(10.0, 60.0)
        ).items
        started = [pod for pod in found if pod.status and pod.status.phase in ("Running", "Succeeded", "Failed")]
        return sorted(started, key=lambda pod: str(pod.metadata.creation_timestamp))

    def _read(self, pod: Any, follow: bool) -> None:
        name, uid = pod.metadata.name, pod.metadata.uid
        running = pod.status.phase == "Running"
        reply = self._api.read_namespaced_pod_log(
            name,
            self._namespace,
            container="node",
            follow=follow and running,
            timestamps=True,
            _preload_content=False,
            _request_timeout=(10.0, None if follow and running else 60.0),
        )
        try:
            # a log that is read again begins from its start
            known = self._last.get(uid, ("", ""))
            for line in _lines(reply):
                moment, _, text = line.partition(" ")
                if (key := _comparable(moment)) > known:
                    self._last[uid] = key
                    self._say(text)
        finally:
            reply.release_conn()


def _lines(reply: Any) -> Iterator[str]:
    rest = b""
    for chunk in reply.stream(4096, decode_content=False):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line[:LONGEST].decode("utf-8", "replace").rstrip("\r")
        rest = rest[:LONGEST]
    if rest:
        yield rest.decode("utf-8", "replace")


def _comparable(moment: str) -> tuple[str, str]:
    """An RFC 3339 time, whose fraction has as many digits as it needs, as what compares by time."""
    seconds, _, fraction = moment.rstrip("Z").partition(".")
    return seconds, fraction.ljust(9, "0")
