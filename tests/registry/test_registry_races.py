"""Real processes race for versions, the champion and the watermark; and die at any line of a publish or a promotion."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.managers import SyncManager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from registry_parts import VERDICT, contents, objects, promote, publish_light, write_adapter

from taskmem.registry import (
    ChampionMovedError,
    Pointer,
    WatermarkMovedError,
    advance,
    champion,
    fetch,
    promotion_log,
    verify,
    versions,
    watermark,
)
from taskmem.store import LocalStore

PROCESSES = 3
ROUNDS = 5
STEP = 37  # lines from one kill to the next


class Together:
    """Runs a function of (folder, barrier, worker) in as many processes as the barrier waits for."""

    def __init__(self, pool: ProcessPoolExecutor, manager: SyncManager) -> None:
        self._pool, self._manager = pool, manager

    def __call__(self, work: Callable[[Path, Any, int], Any], folder: Path) -> list[Any]:
        barrier = self._manager.Barrier(PROCESSES)
        runs = [self._pool.submit(work, folder, barrier, worker) for worker in range(PROCESSES)]
        return [run.result(timeout=120) for run in runs]


@pytest.fixture(scope="module")
def together() -> Iterator[Together]:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
        yield Together(pool, manager)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store, and adapters of several contents beside it."""
    LocalStore(tmp_path / "store")
    for number in range(PROCESSES * ROUNDS):
        write_adapter(tmp_path / str(number), number)
    return tmp_path


def _publish_own(root: Path, barrier: Any, worker: int) -> dict[str, int]:
    store, own = LocalStore(root / "store"), {}
    for number in range(ROUNDS):
        barrier.wait()
        content = worker * ROUNDS + number
        own[publish_light(store, root / str(content)).version] = content
    return own


def test_racing_publishers_of_different_adapters_each_get_a_version_of_their_own(
    root: Path, together: Together
) -> None:
    store, published = LocalStore(root / "store"), together(_publish_own, root)
    given = {version: content for own in published for version, content in own.items()}
    assert [m.version for m in versions(store, "door")] == [f"v{n + 1}" for n in range(PROCESSES * ROUNDS)]
    assert sorted(given.values()) == list(range(PROCESSES * ROUNDS))
    for version, content in given.items():
        fetch(store, "door", version, root / "fetched")
        original = contents(root / str(content))
        assert {name: data for name, data in contents(root / "fetched").items() if name in original} == original


def _publish_same(root: Path, barrier: Any, worker: int) -> dict[int, str]:
    store, got = LocalStore(root / "store"), {}
    for number in range(ROUNDS):
        barrier.wait()
        got[number] = publish_light(store, root / str(number), seed=worker).model_dump_json()
    return got


def test_racing_publishers_of_the_same_adapter_get_the_same_version(root: Path, together: Together) -> None:
    got = together(_publish_same, root)
    assert got == [got[0]] * PROCESSES
    assert [m.model_dump_json() for m in versions(LocalStore(root / "store"), "door")] == list(got[0].values())


def _publish_shuffled(root: Path, barrier: Any, worker: int) -> dict[int, str]:
    store, order = LocalStore(root / "store"), list(range(6))
    random.Random(worker).shuffle(order)
    barrier.wait()
    return {content: publish_light(store, root / str(content)).version for content in order}


def test_racing_publishers_of_overlapping_adapters_agree(root: Path, together: Together) -> None:
    got = together(_publish_shuffled, root)
    assert got == [got[0]] * PROCESSES
    assert sorted(got[0].values()) == [f"v{n + 1}" for n in range(6)]


def _promote_own(root: Path, barrier: Any, worker: int) -> list[str]:
    """What became of promoting the worker's own version over and over, against the champion all saw before."""
    store, became = LocalStore(root / "store"), []
    for number in range(ROUNDS):
        barrier.wait()
        expected = champion(store, "door")
        version = f"v{worker * ROUNDS + number + 1}"
        barrier.wait()
        try:
            became.append(promote(store, "door", version, expected, VERDICT).model_dump_json())
        except ChampionMovedError:
            became.append("moved")
        barrier.wait()
    return became


def test_of_racing_promotions_exactly_one_succeeds_and_the_others_are_told(root: Path, together: Together) -> None:
    store = LocalStore(root / "store")
    for number in range(PROCESSES * ROUNDS):
        publish_light(store, root / str(number))
    became = together(_promote_own, root)
    pointer: Pointer | None = None
    for outcomes in zip(*became, strict=True):
        (won,) = [outcome for outcome in outcomes if outcome != "moved"]
        before, pointer = pointer, Pointer.model_validate_json(won)
        assert pointer.previous == (before.version if before else None)
    assert champion(store, "door") == pointer
    assert [entry.number for entry in promotion_log(store, "door")] == list(range(1, ROUNDS + 1))


def _promote_same(root: Path, barrier: Any, worker: int) -> str:
    store = LocalStore(root / "store")
    expected = champion(store, "door")
    barrier.wait()
    return promote(store, "door", "v1", expected, f'{{"worker": {worker}}}'.encode()).model_dump_json()


def test_racing_promotions_of_the_same_version_leave_one_pointer(root: Path, together: Together) -> None:
    store = LocalStore(root / "store")
    publish_light(store, root / "0")
    (pointer,) = set(together(_promote_same, root))
    assert champion(store, "door") == Pointer.model_validate_json(pointer)


def _count(root: Path, barrier: Any, worker: int) -> int:
    store, moved, advanced = LocalStore(root / "store"), 0, 0
    barrier.wait()
    while advanced < 10:
        before = watermark(store, "door")
        try:
            advance(store, "door", {"lines": int(before["lines"]) + 1 if before else 1, "by": worker}, before)
            advanced += 1
        except WatermarkMovedError:
            moved += 1
    return moved


def test_of_racing_adaptations_none_loses_another_s_watermark(root: Path, together: Together) -> None:
    together(_count, root)
    final = watermark(LocalStore(root / "store"), "door")
    assert final is not None
    assert final["lines"] == 10 * PROCESSES


def _night(root: Path) -> None:
    """Publish a challenger and promote it, as a night does."""
    store = LocalStore(root / "store")
    first = champion(store, "door")
    manifest = publish_light(store, root.parent / "challenger", parent="v1")
    promote(store, "door", manifest.version, first, VERDICT)


def _before(root: Path, champion_folder: Path) -> None:
    store = LocalStore(root / "store")
    publish_light(store, champion_folder)
    promote(store, "door", "v1", None, VERDICT)


def _die_at_line(root: Path, last: int) -> None:
    """Live the night in this process, and die by SIGKILL at the `last`-th line that registry or store executes."""
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if "/taskmem/" not in frame.f_code.co_filename:
            return None
        lines += event == "line"
        if lines == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    _night(root)
    sys.settrace(None)
    os._exit(0)


def _mistakes(root: Path, whole: dict[str, bytes]) -> list[str]:
    """What is wrong after a kill: in what a reader sees, and after the same night has run again."""
    store, wrong = LocalStore(root / "store"), []
    known, pointer = [m.version for m in versions(store, "door")], champion(store, "door")
    if known not in (["v1"], ["v1", "v2"]):
        wrong.append(f"versions {known}")
    if pointer is None or pointer.version not in known:
        wrong.append(f"champion {pointer}")
    wrong += [f"{damage.key}: {damage.what}" for damage in verify(store, "door")]
    for version in known:
        fetch(store, "door", version, root / "fetched")
    _night(root)
    if objects(store) != whole:
        wrong.append(f"after the same night again: {sorted(objects(store))}")
    return wrong


def _kill_everywhere(folder: str) -> tuple[int, list[str]]:
    """Live the night over and over, killed some lines later each time; the kills, and what was wrong after them."""
    parent = Path(folder)
    _before(parent / "before", parent / "champion")
    unharmed = parent / "unharmed"
    shutil.copytree(parent / "before", unharmed)
    _night(unharmed)
    whole = objects(LocalStore(unharmed / "store"))
    mistakes: list[str] = []
    status, last = -signal.SIGKILL, 1
    while status == -signal.SIGKILL:
        root = parent / str(last)
        shutil.copytree(parent / "before", root)
        child = os.fork()
        if child == 0:
            try:
                _die_at_line(root, last)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        mistakes += [f"line {last}: {mistake}" for mistake in _mistakes(root, whole)]
        last += STEP
    if status != 0:
        mistakes.append(f"line {last}: exit status {status}")
    return last // STEP, mistakes


def test_a_kill_anywhere_leaves_what_was_or_what_shall_be_and_the_same_night_again_completes_it(tmp_path: Path) -> None:
    write_adapter(tmp_path / "champion", 0)
    write_adapter(tmp_path / "challenger", 1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        kills, mistakes = pool.apply_async(_kill_everywhere, (str(tmp_path),)).get(timeout=300)
    assert mistakes == []
    assert kills > 30
