"""What is the local disk's own: damage, kills, leftovers."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.store import AlreadyExists, CorruptObject, KeyMissing, LocalStore
from taskmem.store.locks import acquire, locked, release


def _file(root: Path, key: str) -> Path:
    return root / "objects" / f"{key}~"


@pytest.fixture
def damaged(tmp_path: Path) -> LocalStore:
    """A store whose object "a/b" has one wrong bit."""
    store = LocalStore(tmp_path)
    store.put_if_absent("a/b", b"content")
    raw = bytearray(_file(tmp_path, "a/b").read_bytes())
    raw[-1] ^= 1
    _file(tmp_path, "a/b").write_bytes(raw)
    return store


def test_any_flipped_bit_is_found(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put_if_absent("a", b"content")
    whole = _file(tmp_path, "a").read_bytes()
    for position in range(0, 8 * len(whole), 3):
        raw = bytearray(whole)
        raw[position // 8] ^= 1 << position % 8
        _file(tmp_path, "a").write_bytes(raw)
        with pytest.raises(CorruptObject):
            store.get("a")


def test_any_missing_end_is_found(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put_if_absent("a", b"content")
    whole = _file(tmp_path, "a").read_bytes()
    for length in range(len(whole)):
        _file(tmp_path, "a").write_bytes(whole[:length])
        with pytest.raises(CorruptObject):
            store.get("a")


def test_damage_is_reported_with_the_key_in_one_line_by_every_method(damaged: LocalStore) -> None:
    for call in (
        lambda: damaged.get("a/b"),
        lambda: damaged.put_if_absent("a/b", b"content"),
        lambda: damaged.compare_and_swap("a/b", b"new", sha256_bytes(b"content")),
        lambda: damaged.compare_and_swap("a/b", b"new", None),
    ):
        with pytest.raises(CorruptObject, match=r"^a/b: damaged in .*/a/b~; delete the object.*$") as caught:
            call()
        assert caught.value.key == "a/b"


def test_a_damaged_object_can_be_deleted_and_stored_again(damaged: LocalStore) -> None:
    damaged.delete("a/b")
    damaged.put_if_absent("a/b", b"content")
    assert damaged.get("a/b").data == b"content"


def test_the_etag_is_the_sha256_of_the_content(tmp_path: Path) -> None:
    assert LocalStore(tmp_path).put_if_absent("a", b"content") == sha256_bytes(b"content")


def test_files_that_are_no_objects_are_not_listed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put_if_absent("a", b"")
    for stray in ("notes.txt", ".hidden~", "with space~"):
        (tmp_path / "objects" / stray).write_bytes(b"")
    (tmp_path / "staging" / "leftover").write_bytes(b"half")
    assert list(store.list("")) == ["a"]


def test_leftovers_are_removed_on_opening_unless_somebody_is_writing(tmp_path: Path) -> None:
    LocalStore(tmp_path)
    (tmp_path / "staging" / "leftover").write_bytes(b"half")
    with locked(tmp_path / "locks" / "staging", shared=True):
        LocalStore(tmp_path)
        assert (tmp_path / "staging" / "leftover").exists()
    LocalStore(tmp_path)
    assert not (tmp_path / "staging" / "leftover").exists()


def test_a_failed_write_leaves_no_trace(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put_if_absent("a", b"first")
    with pytest.raises(AlreadyExists):
        store.put_if_absent("a", b"second")
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_root_that_is_a_file_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(UserError, match=r"root: cannot hold a store \(.*\); give a writable folder$"):
        LocalStore(tmp_path / "root")


def test_a_lock_that_is_taken_can_be_declined_and_is_free_after_release(tmp_path: Path) -> None:
    held = acquire(tmp_path / "lock")
    with pytest.raises(BlockingIOError):
        acquire(tmp_path / "lock", wait=False)
    release(held)
    release(acquire(tmp_path / "lock", wait=False))


def _history(store: LocalStore, acknowledge: int) -> None:
    """A short life of two keys; one byte to `acknowledge` after each step that returned."""
    first = store.put_if_absent("deep/new", b"new" * 1000)
    os.write(acknowledge, b".")
    store.compare_and_swap("head", b"head", None)
    os.write(acknowledge, b".")
    store.compare_and_swap("deep/new", b"newer" * 1000, first)
    os.write(acknowledge, b".")
    store.delete("head")
    os.write(acknowledge, b".")


# The contents of both keys after each acknowledged step.
_STATES = [
    {},
    {"deep/new": b"new" * 1000},
    {"deep/new": b"new" * 1000, "head": b"head"},
    {"deep/new": b"newer" * 1000, "head": b"head"},
    {"deep/new": b"newer" * 1000},
]


def _live_until_line(store: LocalStore, acknowledge: int, last: int) -> None:
    """Live the history in this process, and die by SIGKILL at the `last`-th line the package executes."""
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
    _history(store, acknowledge)
    sys.settrace(None)
    os._exit(0)


def _kill_everywhere(root: str) -> tuple[int, list[str]]:
    """Live the history over and over, killed two lines later each time; the kills, and what was wrong after them."""
    mistakes: list[str] = []
    status, last = -signal.SIGKILL, -1
    while status == -signal.SIGKILL:
        last += 2
        folder = Path(root) / str(last)
        store = LocalStore(folder)
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                _live_until_line(store, write_end, last)
            finally:
                os._exit(1)
        os.close(write_end)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        acknowledged = len(os.read(read_end, 100))
        os.close(read_end)
        reopened = LocalStore(folder)
        found = {key: reopened.get(key).data for key in reopened.list("")}
        if found not in _STATES[acknowledged : acknowledged + 2]:
            mistakes.append(f"line {last}, {acknowledged} acknowledged: {sorted(found)}")
        if list((folder / "staging").iterdir()):
            mistakes.append(f"line {last}: leftovers")
        # A lock that outlived its holder would hang here.
        reopened.delete("head")
    if status != 0:
        mistakes.append(f"line {last}: exit status {status}")
    return last // 2, mistakes


def test_a_kill_anywhere_leaves_the_old_objects_or_the_new_ones(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        kills, mistakes = pool.apply_async(_kill_everywhere, (str(tmp_path),)).get(timeout=300)
    assert mistakes == []
    assert kills > 60


_WRITER = """
import sys
from pathlib import Path
from taskmem.store import LocalStore
store, number = LocalStore(Path(sys.argv[1])), 0
etag = store.compare_and_swap("head", b"0", None)
while True:
    number += 1
    store.put_if_absent(f"objects/{number}", str(number).encode() * 200_000)
    etag = store.compare_and_swap("head", str(number).encode(), etag)
    print(number, flush=True)
"""


def test_a_writer_killed_at_any_moment_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    for attempt in range(4):
        root = tmp_path / str(attempt)
        with subprocess.Popen([sys.executable, "-c", _WRITER, str(root)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(0.01 + 0.017 * attempt)
            writer.kill()
            acknowledged = 1 + sum(line.endswith("\n") for line in writer.stdout)
        store = LocalStore(root)
        assert int(store.get("head").data) in (acknowledged, acknowledged + 1)
        for number in range(1, acknowledged + 1):
            assert store.get(f"objects/{number}").data == str(number).encode() * 200_000
        extra = set(store.list("objects/")) - {f"objects/{n}" for n in range(1, acknowledged + 1)}
        assert extra <= {f"objects/{acknowledged + 1}"}
        assert all(store.get(key).data for key in extra)
        with pytest.raises(KeyMissing):
            store.get(f"objects/{acknowledged + 2}")
