"""A server or network that fails: nothing is lost, nothing is taken for another's, nothing happens twice."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import pytest
from faulty_proxy import Fault, FaultyProxy, Refuse
from s3_servers import client, moto, new_bucket

from taskmem.errors import UserError
from taskmem.store import AlreadyExists, Conflict, OutcomeUnknown
from taskmem.store.s3 import S3Store, open_s3
from taskmem.store.s3_bucket import Bucket

Connect = Callable[[str, int, float], Bucket]

WRITERS = 20
LARGE = bytes(11 * 2**20)


@pytest.fixture(scope="module")
def bucket() -> str:
    return new_bucket()


@pytest.fixture(scope="module")
def running() -> Iterator[FaultyProxy]:
    with FaultyProxy(moto()) as proxy:
        yield proxy


@pytest.fixture
def proxy(running: FaultyProxy) -> FaultyProxy:
    running.reset()
    return running


@pytest.fixture(scope="module")
def connect(bucket: str) -> Connect:
    """A function of endpoint, attempts and timeout that gives the bucket, connected once."""

    @cache
    def connected(endpoint: str, attempts: int, timeout: float) -> Bucket:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", endpoint)
            return Bucket(bucket, attempts, timeout)

    return connected


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return f"{tmp_path.name}/"


@pytest.fixture
def store(connect: Connect, prefix: str, proxy: FaultyProxy) -> S3Store:
    return S3Store(connect(proxy.url, 10, 20), prefix, part_size=5 * 2**20)


@pytest.fixture
def other(connect: Connect, prefix: str) -> S3Store:
    """The same store as `store`, without faults between."""
    return S3Store(connect(moto(), 10, 20), prefix, part_size=5 * 2**20)


@pytest.fixture
def hasty(connect: Connect, prefix: str, proxy: FaultyProxy) -> S3Store:
    """The same store as `store`, with two attempts at each call."""
    return S3Store(connect(proxy.url, 2, 20), prefix, part_size=5 * 2**20)


ONCE = [Fault.BUSY, Fault.RESET, Fault.LOST, Refuse(500, "InternalError"), Refuse(409, "ConditionalRequestConflict")]


@pytest.mark.parametrize("fault", ONCE)
def test_a_new_object_is_stored_over_a_fault(store: S3Store, proxy: FaultyProxy, fault: Fault | Refuse) -> None:
    proxy.fail_next(fault)
    etag = store.put_if_absent("a", b"content")
    assert (store.get("a").data, store.get("a").etag) == (b"content", etag)
    assert proxy.seen == {fault: 1}


@pytest.mark.parametrize("fault", ONCE)
def test_an_object_is_swapped_over_a_fault(store: S3Store, proxy: FaultyProxy, fault: Fault | Refuse) -> None:
    first = store.put_if_absent("a", b"first")
    proxy.fail_next(fault)
    etag = store.compare_and_swap("a", b"second", first)
    assert (store.get("a").data, store.get("a").etag) == (b"second", etag)
    assert proxy.seen == {fault: 1}


def test_an_answer_that_comes_too_late_is_as_good_as_none(connect: Connect, prefix: str, proxy: FaultyProxy) -> None:
    store = S3Store(connect(proxy.url, 10, 1), prefix, part_size=5 * 2**20)
    proxy.delay = 2
    proxy.fail_next(Fault.LATE)
    store.compare_and_swap("a", b"first", None)
    assert proxy.seen == {Fault.LATE: 1}
    assert [request.method for request in proxy.requests].count("PUT") > 1


@pytest.mark.parametrize("fault", [Fault.BUSY, Fault.RESET, Fault.CUT])
def test_a_read_that_fails_or_breaks_off_is_made_again(store: S3Store, proxy: FaultyProxy, fault: Fault) -> None:
    store.put_if_absent("a", bytes(100_000))
    proxy.fail_next(fault, "GET")
    assert store.get("a").data == bytes(100_000)
    assert proxy.seen == {fault: 1}


def test_listing_and_deleting_go_over_a_fault(store: S3Store, proxy: FaultyProxy) -> None:
    store.put_if_absent("a", b"")
    proxy.fail_next(Fault.RESET, "GET")
    assert list(store.list("")) == ["a"]
    proxy.fail_next(Fault.LOST, "DELETE")
    store.delete("a")
    assert list(store.list("")) == []
    assert proxy.seen == {Fault.RESET: 1, Fault.LOST: 1}


def test_a_server_that_minds_deleting_what_is_gone_is_no_error_and_any_other_refusal_is(
    bucket: str, store: S3Store, proxy: FaultyProxy
) -> None:
    proxy.fail_next(Refuse(404, "NoSuchKey"), "DELETE")
    store.delete("a")
    proxy.fail_next(Refuse(409, "OperationAborted"), "DELETE")
    with pytest.raises(UserError, match=rf"^s3://{bucket} at {proxy.url}: the server refuses \(OperationAborted\);"):
        store.delete("a")
    proxy.fail_next(Refuse(501, "NotImplemented"), "GET")
    with pytest.raises(UserError, match="NotImplemented"):
        store.get("a")


# After a lost answer the server is asked again: it finds the upload done, or no longer knows it, or sees a taken key.
AGAIN = [[], [Refuse(404, "NoSuchUpload")], [Refuse(412, "PreconditionFailed")]]


@pytest.mark.parametrize("again", AGAIN)
def test_an_upload_in_parts_whose_last_answer_got_lost_succeeded(
    store: S3Store, proxy: FaultyProxy, bucket: str, again: list[Refuse]
) -> None:
    proxy.fail_next(Fault.LOST, "POST", "uploadId=")
    for refusal in again:
        proxy.fail_next(refusal, "POST", "uploadId=")
    store.put_if_absent("large", LARGE)
    assert store.get("large").data == LARGE
    assert proxy.seen == dict.fromkeys([Fault.LOST, *again], 1)
    assert "Uploads" not in client(moto()).list_multipart_uploads(Bucket=bucket)


def test_a_key_that_another_takes_in_between_is_lost_also_with_the_same_bytes(
    store: S3Store, other: S3Store, proxy: FaultyProxy
) -> None:
    proxy.fail_next(Fault.BUSY, meanwhile=partial(other.put_if_absent, "a", b"content"))
    with pytest.raises(AlreadyExists) as caught:
        store.put_if_absent("a", b"content")
    assert caught.value.same
    assert proxy.seen == {Fault.BUSY: 1}


def test_a_swap_that_another_makes_in_between_is_lost_also_with_the_same_bytes(
    store: S3Store, other: S3Store, proxy: FaultyProxy
) -> None:
    first = store.put_if_absent("a", b"first")
    proxy.fail_next(Fault.BUSY, meanwhile=partial(other.compare_and_swap, "a", b"second", first))
    with pytest.raises(Conflict) as caught:
        store.compare_and_swap("a", b"second", first)
    assert caught.value.current == other.get("a").etag
    assert proxy.seen == {Fault.BUSY: 1}


def test_a_large_object_is_swapped_on_its_condition_too(store: S3Store, other: S3Store, proxy: FaultyProxy) -> None:
    first = store.put_if_absent("a", b"first")
    proxy.delay = 0
    proxy.fail_next(Fault.LATE, "GET", meanwhile=partial(other.compare_and_swap, "a", b"second", first))
    with pytest.raises(Conflict):
        store.compare_and_swap("a", LARGE, first)
    assert other.get("a").data == b"second"


def go_on(store: S3Store, key: str, steps: int) -> None:
    for step in range(steps):
        store.compare_and_swap(key, f"step {step}".encode(), store.get(key).etag)


def test_a_won_key_stays_won_when_others_go_on_before_its_answer(
    store: S3Store, other: S3Store, proxy: FaultyProxy
) -> None:
    proxy.fail_next(Fault.LOST, meanwhile=partial(go_on, other, "a", 3))
    store.put_if_absent("a", b"first")
    assert store.get("a").data == b"step 2"
    proxy.fail_next(Fault.LOST, meanwhile=partial(go_on, other, "a", 3))
    store.compare_and_swap("a", b"second", store.get("a").etag)
    assert store.get("a").data == b"step 2"
    assert proxy.seen == {Fault.LOST: 2}


def test_after_128_later_swaps_the_outcome_of_one_whose_answer_got_lost_is_unknown(
    store: S3Store, other: S3Store, proxy: FaultyProxy
) -> None:
    first = store.put_if_absent("a", b"first")
    proxy.fail_next(Fault.LOST, meanwhile=partial(go_on, other, "a", 128))
    with pytest.raises(OutcomeUnknown, match=r"^a: whether it was written is unknown .*; look at it and run again$"):
        store.compare_and_swap("a", b"second", first)
    assert proxy.seen == {Fault.LOST: 1}


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.BUSY])
def test_after_a_fault_a_deleted_object_tells_nothing(
    store: S3Store, other: S3Store, proxy: FaultyProxy, fault: Fault
) -> None:
    first = store.put_if_absent("a", b"first")
    proxy.fail_next(fault, meanwhile=partial(other.delete, "a"))
    with pytest.raises(OutcomeUnknown):
        store.compare_and_swap("a", b"second", first)
    assert proxy.seen == {fault: 1}


def test_an_object_deleted_before_the_only_attempt_is_a_plain_conflict(
    store: S3Store, other: S3Store, proxy: FaultyProxy
) -> None:
    first = store.put_if_absent("a", b"first")
    proxy.delay = 0
    proxy.fail_next(Fault.LATE, "GET", meanwhile=partial(other.delete, "a"))
    with pytest.raises(Conflict) as caught:
        store.compare_and_swap("a", b"second", first)
    assert caught.value.current is None
    assert proxy.seen == {Fault.LATE: 1}


def test_a_request_that_arrives_late_does_not_bring_back_what_others_replaced(
    store: S3Store, other: S3Store, proxy: FaultyProxy
) -> None:
    first = store.put_if_absent("a", b"A")
    proxy.fail_next(Fault.HELD)
    second = store.compare_and_swap("a", b"B", first)
    assert other.compare_and_swap("a", b"A", second) == first
    assert proxy.deliver() == [412]
    assert other.get("a").data == b"A"


def test_a_server_that_stays_busy_with_another_write_is_no_endless_loop(
    bucket: str, hasty: S3Store, other: S3Store, proxy: FaultyProxy
) -> None:
    etag = other.put_if_absent("a", b"first")
    proxy.fail_next(Refuse(409, "ConditionalRequestConflict"), times=2)
    with pytest.raises(UserError, match=f"^a: other writers kept changing it in s3://{bucket} at .*; run again$"):
        hasty.compare_and_swap("a", b"second", etag)
    proxy.fail_next(Refuse(409, "ConditionalRequestConflict"), times=2)
    with pytest.raises(UserError, match=f"^b: other writers kept changing it in s3://{bucket} at .*; run again$"):
        hasty.put_if_absent("b", b"first")
    assert proxy.seen.total() == 4


@pytest.mark.parametrize(("fault", "kind"), [(Fault.BUSY, "SlowDown"), (Fault.RESET, "ConnectionClosedError")])
def test_a_server_that_stays_away_ends_in_one_line_that_says_what_is_known(
    bucket: str, hasty: S3Store, proxy: FaultyProxy, fault: Fault, kind: str
) -> None:
    proxy.fail_next(fault, "GET", times=2)
    with pytest.raises(UserError, match=rf"^s3://{bucket} at {proxy.url}: .*\({kind}\); [^\n]*$"):
        hasty.get("a")
    proxy.fail_next(fault, times=2)
    with pytest.raises(OutcomeUnknown, match=rf"^a: whether it was written is unknown [^\n]*\({kind}\)[^\n]*$"):
        hasty.put_if_absent("a", b"")
    assert proxy.seen == {fault: 4}


def test_answers_that_keep_breaking_off_are_given_up(bucket: str, hasty: S3Store, proxy: FaultyProxy) -> None:
    hasty.put_if_absent("a", bytes(100_000))
    proxy.fail_next(Fault.CUT, "GET", times=2)
    with pytest.raises(UserError, match=f"^s3://{bucket} at {proxy.url}: the server keeps breaking off its answers;"):
        hasty.get("a")


def test_a_store_opens_through_faults(bucket: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    proxy.rate, proxy.faults = 0.3, (Fault.LOST,)
    open_s3(f"s3://{bucket}/opened")
    assert proxy.seen[Fault.LOST] > 2
    assert "Contents" not in client(moto()).list_objects_v2(Bucket=bucket, Prefix="opened")


def test_of_20_writers_one_wins_each_step_and_none_is_lost_while_every_fifth_call_fails(
    connect: Connect, other: S3Store, proxy: FaultyProxy, prefix: str
) -> None:
    store = S3Store(connect(proxy.url, 10, 1), prefix, part_size=5 * 2**20)
    first = other.put_if_absent("head", b"0")
    barrier = threading.Barrier(WRITERS)

    def win(writer: int) -> tuple[int, int]:
        """The step this writer won, and how many it lost before."""
        step, etag, lost = 0, first, 0
        barrier.wait(60)
        while True:
            try:
                store.compare_and_swap("head", str(step + 1).encode(), etag)
                store.put_if_absent(f"log/{step}", str(writer).encode())
                return step, lost
            except Conflict:
                lost += 1
            stored = store.get("head")
            step, etag = int(stored.data), stored.etag

    proxy.rate, proxy.delay, proxy.faults = 0.2, 1.2, 3 * (Fault.BUSY, Fault.LOST) + (Fault.LATE,)
    with ThreadPoolExecutor(WRITERS) as threads:
        outcomes = list(threads.map(win, range(WRITERS)))
    won = [step for step, _ in outcomes]
    assert sorted(won) == list(range(WRITERS))
    assert other.get("head").data == str(WRITERS).encode()
    assert [int(other.get(f"log/{step}").data) for step in range(WRITERS)] == [won.index(n) for n in range(WRITERS)]
    assert sum(lost for _, lost in outcomes) >= WRITERS, "the writers hardly met, so the test proved nothing"
    assert all(proxy.seen[fault] for fault in proxy.faults)
