"""Twenty promotions of one environment at once, and a store that fails, dawdles and loses its processes."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from registry_parts import NOW, FaultError, Weather, promote, publish_light, write_adapter

from taskmem.registry import (
    ChampionMovedError,
    Pointer,
    Promotion,
    champion,
    promotion_log,
    rollback,
    verify,
)
from taskmem.store import LocalStore, Store

WORKERS = 20
FAULTS, LATE_S, DIES = 0.2, 0.003, 0.08


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with twenty versions of `door`."""
    store = LocalStore(tmp_path / "store")
    for number in range(WORKERS):
        publish_light(store, write_adapter(tmp_path / str(number), number))
    return tmp_path / "store"


def _insist(store: Store, worker: int, life: str = "") -> Pointer:
    """Promote the worker's own version until it has been champion."""
    for attempt in range(2000):
        try:
            expected = champion(store, "door")
            return promote(store, "door", f"v{worker + 1}", expected, by=f"worker {worker}{life}, attempt {attempt}")
        except (ChampionMovedError, FaultError):
            continue
    raise AssertionError("never promoted")


def _calm(root: Path, worker: int, life: int) -> Store:
    return LocalStore(root)


def _stormy(root: Path, worker: int, life: int) -> Store:
    return cast(Store, Weather(LocalStore(root), f"{worker}-{life}", FAULTS, LATE_S))


def _deadly(root: Path, worker: int, life: int) -> Store:
    return cast(Store, Weather(LocalStore(root), f"{worker}-{life}", FAULTS, LATE_S, DIES))


Opener = Callable[[Path, int, int], Store]


def _in_threads(root: Path, opened: Opener) -> list[Pointer]:
    ready = threading.Barrier(WORKERS)

    def work(worker: int) -> Pointer:
        ready.wait()
        return _insist(opened(root, worker, 0), worker)

    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(work, range(WORKERS)))


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def _live(root: Path, opened: Opener, worker: int, life: int) -> None:
    """Promote in a process of its own, and leave the pointer in a file."""
    pointer = _insist(opened(root, worker, life), worker, f", life {life}")
    (root.parent / f"pointer-{worker}").write_text(pointer.model_dump_json())


def _all_lives(root: Path, opened: Opener) -> tuple[int, list[int]]:
    """Every worker in a process of its own, and in another one after it died; the deaths, and other exit codes."""
    lives, deaths, wrong = dict.fromkeys(range(WORKERS), 0), 0, []
    running: dict[int, int] = {}
    for worker in lives:
        running[_fork(lambda worker=worker: _live(root, opened, worker, 0))] = worker  # type: ignore[misc]
    while running:
        child, status = os.wait()
        worker, code = running.pop(child), os.waitstatus_to_exitcode(status)
        if code == 9:
            deaths += 1
            lives[worker] += 1
            life = lives[worker]
            running[_fork(lambda: _live(root, opened, worker, life))] = worker  # noqa: B023 - called at once
        elif code != 0:
            wrong.append(code)
    return deaths, wrong


def _in_processes(root: Path, opened: Opener) -> tuple[int, list[Pointer]]:
    """In forks of a process that has one thread only; the deaths, and the pointers of all workers."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        deaths, wrong = pool.apply_async(_all_lives, (root, opened)).get(timeout=120)
    assert wrong == []
    texts = [(root.parent / f"pointer-{worker}").read_text() for worker in range(WORKERS)]
    return deaths, [Pointer.model_validate_json(text) for text in texts]


def _whole(root: Path, pointers: Sequence[Pointer]) -> list[Promotion]:
    """The log, after a look at what must hold of it in any weather."""
    store = LocalStore(root)
    log, head = promotion_log(store, "door"), champion(store, "door")
    assert head is not None
    assert [entry.number for entry in log] == list(range(1, len(log) + 1))
    assert [entry.replaced_version for entry in log] == [None, *(entry.version for entry in log[:-1])]
    # each attempt is named once, so no step has two winners and no winner two steps
    assert len({entry.by for entry in log}) == len(log)
    digests = {entry.before for entry in log[1:]} | {head.entry}
    assert {pointer.entry for pointer in pointers} <= digests
    assert [pointer.version for pointer in pointers] == [f"v{n + 1}" for n in range(WORKERS)]
    assert verify(store, "door") == []
    return log


@pytest.mark.parametrize("where", ["threads", "processes"])
def test_of_twenty_promotions_at_once_each_is_one_step_of_the_log(root: Path, where: str) -> None:
    pointers = _in_threads(root, _calm) if where == "threads" else _in_processes(root, _calm)[1]
    log = _whole(root, pointers)
    assert sorted(entry.version or "" for entry in log) == sorted(f"v{n + 1}" for n in range(WORKERS))
    assert len({pointer.entry for pointer in pointers}) == WORKERS


@pytest.mark.parametrize("where", ["threads", "processes"])
def test_a_store_that_fails_a_fifth_of_all_calls_and_answers_late_breaks_no_chain(root: Path, where: str) -> None:
    pointers = _in_threads(root, _stormy) if where == "threads" else _in_processes(root, _stormy)[1]
    log = _whole(root, pointers)
    assert {entry.version for entry in log} == {f"v{n + 1}" for n in range(WORKERS)}
    assert len(list(LocalStore(root).list("registry/door/log/"))) > len(log)


def test_processes_that_die_between_their_writes_break_no_chain(root: Path) -> None:
    deaths, pointers = _in_processes(root, _deadly)
    assert deaths > 5
    log = _whole(root, pointers)
    assert {entry.version for entry in log} == {f"v{n + 1}" for n in range(WORKERS)}


class Together:
    """A store in which all workers have read the champion before one of them swaps it."""

    def __init__(self, store: Store, workers: int) -> None:
        self._store, self._barrier = store, threading.Barrier(workers)
        self._waited = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def compare_and_swap(self, key: str, data: bytes, expected: str | None) -> str:
        if not getattr(self._waited, "here", False):
            self._waited.here = True
            self._barrier.wait()
        return self._store.compare_and_swap(key, data, expected)


def _at_once(work: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(work, range(WORKERS)))


def test_twenty_rollbacks_at_once_go_one_step_back(root: Path) -> None:
    store = LocalStore(root)
    pointer = None
    for version in ("v1", "v2", "v3"):
        pointer = promote(store, "door", version, pointer)
    together: Any = Together(store, WORKERS)
    pointers = _at_once(lambda n: rollback(together, "door", f"worker {n}", NOW))
    assert {p.version for p in pointers} == {"v2"}
    assert {p.entry for p in pointers} == {p.entry for p in [champion(store, "door")] if p}
    assert [e.version for e in promotion_log(store, "door")] == ["v1", "v2", "v3", "v2"]
    assert verify(store, "door") == []


def test_of_twenty_rollbacks_to_different_versions_each_is_one_step(root: Path) -> None:
    store = LocalStore(root)
    pointer = None
    for number in range(1, WORKERS + 1):
        pointer = promote(store, "door", f"v{number}", pointer)
    together: Any = Together(store, WORKERS - 1)

    def back(worker: int) -> Pointer | None:
        if worker == WORKERS - 1:  # that is the champion, which needs no step
            return None
        return rollback(together, "door", f"worker {worker}", NOW, f"v{worker + 1}")

    pointers = [p for p in _at_once(back) if p]
    log = promotion_log(store, "door")[WORKERS:]
    assert sorted(e.version or "" for e in log) == sorted(f"v{n}" for n in range(1, WORKERS))
    assert len({p.entry for p in pointers}) == len(log) == WORKERS - 1
    assert verify(store, "door") == []


def test_a_rollback_that_lost_to_a_promotion_rolls_back_nobody_else_s_champion(root: Path) -> None:
    store = LocalStore(root)
    first = promote(store, "door", "v1", None)
    second = promote(store, "door", "v2", first)

    class Overtaken(Together):
        def compare_and_swap(self, key: str, data: bytes, expected: str | None) -> str:
            if champion(store, "door") == second:
                promote(store, "door", "v3", second)
            return store.compare_and_swap(key, data, expected)

    told = "^environment door: the champion has moved on from v2, it is v3; look at its log and roll back again"
    overtaken: Any = Overtaken(store, 1)
    with pytest.raises(ChampionMovedError, match=told):
        rollback(overtaken, "door", "Ada", NOW)
    assert [e.version for e in promotion_log(store, "door")] == ["v1", "v2", "v3"]
    # whoever names the version means it, whatever is champion
    assert rollback(overtaken, "door", "Ada", NOW, "v1").version == "v1"
