"""What every store promises. To hold another one to it, add a line to OPENERS."""

import copy
import itertools
import multiprocessing
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache, partial
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from s3_servers import new_bucket

from taskmem.errors import UserError
from taskmem.store import AlreadyExists, Conflict, CorruptObject, InvalidKey, KeyMissing, LocalStore, Store
from taskmem.store.protocol import validate_key
from taskmem.store.s3 import S3Store
from taskmem.store.s3_bucket import Bucket

Opener = Callable[[], Store]


@cache
def _bucket_of_this_process() -> str:
    return new_bucket()


@cache
def _connected(bucket: str) -> Bucket:
    return Bucket(bucket, attempts=10, timeout=60)


def _s3(bucket: str, prefix: str) -> S3Store:
    """Connected once per process; large objects go up in parts."""
    return S3Store(_connected(bucket), prefix, part_size=5 * 2**20)


# A function of an empty folder that gives what opens the same store in any process.
OPENERS: dict[str, Callable[[Path], Opener]] = {
    "local": lambda folder: partial(LocalStore, folder / "store"),
    "s3": lambda folder: partial(_s3, _bucket_of_this_process(), f"{folder.name}/"),
}

PROCESSES = 4


@pytest.fixture(params=OPENERS)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    return OPENERS[request.param](tmp_path)


@pytest.fixture
def store(opener: Opener) -> Store:
    return opener()


class Together:
    """Runs a function of (opener, barrier, worker) in as many processes as the barrier waits for."""

    def __init__(self, pool: ProcessPoolExecutor, manager: SyncManager) -> None:
        self._pool, self._manager = pool, manager

    def __call__(self, work: Callable[[Opener, Any, int], Any], opener: Opener) -> list[Any]:
        barrier = self._manager.Barrier(PROCESSES)
        runs = [self._pool.submit(work, opener, barrier, worker) for worker in range(PROCESSES)]
        return [run.result() for run in runs]


@pytest.fixture(scope="module")
def together() -> Iterator[Together]:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
        yield Together(pool, manager)


@pytest.mark.parametrize("data", [b"", b"\n", b"text\n\x00\xff", bytes(range(256)) * 4096])
def test_an_object_is_read_as_it_was_stored(store: Store, opener: Opener, data: bytes) -> None:
    etag = store.put_if_absent("adapters/shop/1", data)
    for reader in (store, opener()):
        stored = reader.get("adapters/shop/1")
        assert (stored.data, stored.etag) == (data, etag)


def test_equal_bytes_have_equal_etags_and_other_bytes_another(store: Store) -> None:
    first = store.put_if_absent("a", b"one")
    second = store.compare_and_swap("a", b"two", first)
    assert second != first
    assert store.compare_and_swap("a", b"one", second) == first


def test_a_missing_object_is_named(store: Store) -> None:
    with pytest.raises(KeyMissing, match="nobody/here") as caught:
        store.get("nobody/here")
    assert caught.value.key == "nobody/here"


@pytest.mark.parametrize(("second", "same"), [(b"first", True), (b"second", False)])
def test_a_taken_key_keeps_its_object_and_tells_whether_the_bytes_are_the_same(
    store: Store, second: bytes, same: bool
) -> None:
    etag = store.put_if_absent("a/b", b"first")
    with pytest.raises(AlreadyExists) as caught:
        store.put_if_absent("a/b", second)
    assert (caught.value.same, caught.value.etag) == (same, etag)
    assert store.get("a/b").data == b"first"


def test_a_swap_replaces_the_expected_object_only(store: Store) -> None:
    first = store.compare_and_swap("champion", b"v1", None)
    second = store.compare_and_swap("champion", b"v2", first)
    with pytest.raises(Conflict) as caught:
        store.compare_and_swap("champion", b"v3", first)
    assert caught.value.current == second
    assert store.get("champion").data == b"v2"


def test_a_swap_that_expects_nothing_needs_a_free_key(store: Store) -> None:
    etag = store.put_if_absent("champion", b"v1")
    with pytest.raises(Conflict) as caught:
        store.compare_and_swap("champion", b"v1", None)
    assert caught.value.current == etag


def test_a_swap_that_expects_something_needs_an_object(store: Store) -> None:
    etag = store.put_if_absent("champion", b"v1")
    store.delete("champion")
    with pytest.raises(Conflict) as caught:
        store.compare_and_swap("champion", b"v2", etag)
    assert caught.value.current is None
    assert list(store.list("")) == []


def test_a_deleted_key_is_free_again_and_deleting_twice_is_fine(store: Store) -> None:
    store.put_if_absent("a/b", b"first")
    store.delete("a/b")
    store.delete("a/b")
    store.delete("never/was")
    with pytest.raises(KeyMissing):
        store.get("a/b")
    store.put_if_absent("a/b", b"second")
    assert store.get("a/b").data == b"second"


KEYS = ["a", "a+b", "a-b/c", "a.b", "a/b", "a/b/c", "a/b@2", "a0", "b/a", "_x"]


def test_keys_are_listed_in_code_point_order_also_where_one_is_the_folder_of_another(store: Store) -> None:
    for key in random.Random(0).sample(KEYS, len(KEYS)):
        store.put_if_absent(key, key.encode())
    assert list(store.list("")) == sorted(KEYS)
    assert [store.get(key).data.decode() for key in store.list("")] == sorted(KEYS)


@pytest.mark.parametrize("prefix", ["a", "a/", "a/b", "a/b/", "a-", "b", "_", "z", "a/b/c/d"])
def test_a_prefix_is_the_beginning_of_the_whole_key(store: Store, prefix: str) -> None:
    for key in KEYS:
        store.put_if_absent(key, b"")
    assert list(store.list(prefix)) == [key for key in sorted(KEYS) if key.startswith(prefix)]


BAD_KEYS = [
    "", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", ".hidden", "a/.tmp", "a\\b", "a b", "a\n", "a~",
    "é", "a\x00b", "-flag", "a:b", "%2e%2e/a", "x" * 201, "/".join(["x" * 100] * 11),
]  # fmt: skip


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_is_no_safe_relative_path_is_refused_everywhere(store: Store, key: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.get(key),
        lambda: store.put_if_absent(key, b""),
        lambda: store.compare_and_swap(key, b"", None),
        lambda: store.compare_and_swap(key, b"", "etag"),
        lambda: store.delete(key),
    ]
    for call in calls:
        with pytest.raises(InvalidKey, match="not a key"):
            call()
    assert list(store.list("")) == []


@pytest.mark.parametrize("prefix", ["/", "/a", "..", "a/../", "a//", ".", "a/.b"])
def test_a_prefix_that_begins_no_key_is_refused_before_listing(store: Store, prefix: str) -> None:
    with pytest.raises(InvalidKey):
        store.list(prefix)


@given(st.text(alphabet="ab./~-@\\ ", max_size=12))
def test_a_valid_key_stays_inside_its_folder(key: str) -> None:
    try:
        validate_key(key)
    except InvalidKey:
        return
    parts = key.split("/")
    assert all(parts)
    assert not any(part.startswith(".") for part in parts)
    assert Path("/root", key).resolve().is_relative_to("/root")


def test_the_longest_key_can_be_used(store: Store) -> None:
    key = "/".join(["x" * 200] * 5)
    store.put_if_absent(key, b"deep")
    assert list(store.list("")) == [key]


def _put(opener: Opener, barrier: Any, worker: int) -> list[int]:
    """Put one object after the other, all workers at once; which of them this worker won."""
    store, won = opener(), []
    for number in range(100):
        barrier.wait(60)
        try:
            store.put_if_absent(f"race/{number}", f"worker {worker}".encode())
            won.append(number)
        except AlreadyExists as taken:
            assert not taken.same
    return won


def test_of_many_processes_that_put_one_key_exactly_one_wins(opener: Opener, together: Together) -> None:
    won, store = together(_put, opener), opener()
    assert sorted(itertools.chain(*won)) == list(range(100))
    for worker, numbers in enumerate(won):
        assert {store.get(f"race/{number}").data for number in numbers} <= {f"worker {worker}".encode()}
    assert sum(bool(numbers) for numbers in won) > 1, "one worker won everything, so the test proved nothing"


def test_a_swap_does_not_bring_back_what_was_deleted_meanwhile(opener: Opener) -> None:
    store, other = opener(), opener()
    with ThreadPoolExecutor(1) as threads:
        for attempt in range(12):
            # A large object makes the swap take its time over comparing.
            etag = store.put_if_absent("head", bytes(16_000_000))
            swap = threads.submit(other.compare_and_swap, "head", b"new", etag)
            time.sleep(0.002 * attempt)
            store.delete("head")
            assert swap.exception() is None or isinstance(swap.exception(), Conflict)
            assert list(store.list("")) == []


def _increment(opener: Opener, barrier: Any, _: int) -> int:
    """Count up 25 times; the number of conflicts on the way."""
    store, conflicts = opener(), 0
    barrier.wait(60)
    for _ in range(25):
        while True:
            stored = store.get("counter")
            try:
                store.compare_and_swap("counter", str(int(stored.data) + 1).encode(), stored.etag)
                break
            except Conflict:
                conflicts += 1
    return conflicts


def test_a_counter_swapped_up_by_many_processes_loses_no_increment(opener: Opener, together: Together) -> None:
    opener().put_if_absent("counter", b"0")
    conflicts = sum(together(_increment, opener))
    assert opener().get("counter").data == str(25 * PROCESSES).encode()
    assert conflicts > 0, "the workers never met, so the test proved nothing"


def test_a_counter_swapped_up_by_many_threads_loses_no_increment(opener: Opener) -> None:
    opener().put_if_absent("counter", b"0")
    barrier = threading.Barrier(PROCESSES)
    with ThreadPoolExecutor(PROCESSES) as threads:
        conflicts = sum(threads.map(partial(_increment, opener, barrier), range(PROCESSES)))
    assert opener().get("counter").data == str(25 * PROCESSES).encode()
    assert conflicts > 0, "the workers never met, so the test proved nothing"


def _churn(opener: Opener, barrier: Any, worker: int) -> int:
    """Put, swap and delete at random; how many reads found an object, every one of them whole."""
    store, rng, seen = opener(), random.Random(worker), 0
    barrier.wait(60)
    for _ in range(60):
        key = f"churn/{rng.randrange(3)}"
        data = bytes([rng.randrange(256)]) * rng.randrange(1, 20000)
        try:
            match rng.randrange(4):
                case 0:
                    store.put_if_absent(key, data)
                case 1:
                    store.compare_and_swap(key, data, store.get(key).etag)
                case 2:
                    store.delete(key)
                case _:
                    found = store.get(key).data
                    assert found == found[:1] * len(found)
                    seen += 1
        except (AlreadyExists, Conflict, KeyMissing):
            pass
    return seen


def test_a_reader_sees_whole_objects_only_whatever_others_do(opener: Opener, together: Together) -> None:
    assert sum(together(_churn, opener)) > 0
    assert set(opener().list("")) <= {f"churn/{n}" for n in range(3)}


@pytest.mark.parametrize(
    "fault",
    [KeyMissing("k"), InvalidKey("k"), AlreadyExists("k", "e", True), Conflict("k", None), CorruptObject("k", "f")],
)
def test_a_fault_survives_the_way_back_from_a_worker(fault: Exception) -> None:
    back = copy.copy(fault)  # rebuilds it as a process pool does
    assert back is not fault
    assert (type(back), str(back), vars(back)) == (type(fault), str(fault), vars(fault))


def test_a_damaged_object_is_something_a_person_can_act_on() -> None:
    assert issubclass(CorruptObject, UserError)
