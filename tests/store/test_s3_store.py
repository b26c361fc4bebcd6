"""What is the bucket's own: damage, parts, pages, strangers, children."""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from faulty_proxy import FaultyProxy, Refuse
from s3_servers import client, moto, new_bucket

from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.store import AlreadyExists, Conflict, CorruptObject, KeyMissing
from taskmem.store.s3 import S3Store, open_s3
from taskmem.store.s3_object import new_write, seal, unseal

PART = 5 * 2**20  # the smallest that S3 takes
LARGE = bytes(range(256)) * (2 * PART // 256) + b"end"


@pytest.fixture
def bucket() -> str:
    return new_bucket()


@pytest.fixture
def store(bucket: str) -> S3Store:
    return open_s3(f"s3://{bucket}/prefix", part_size=PART)


@pytest.fixture
def s3() -> Any:
    return client(moto())


def raw(s3: Any, bucket: str, name: str) -> bytes:
    data: bytes = s3.get_object(Bucket=bucket, Key=name)["Body"].read()
    return data


def uploads(s3: Any, bucket: str) -> list[Any]:
    found: list[Any] = s3.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    return found


def test_a_sealed_object_says_what_it_holds_and_which_writes_led_to_it() -> None:
    sealed = unseal(seal(b"a\nb", ("1" * 16, "2" * 16)))
    assert (sealed.data, sealed.sha256, sealed.writes) == (b"a\nb", sha256_bytes(b"a\nb"), ("1" * 16, "2" * 16))


def test_any_flipped_bit_of_a_sealed_object_is_found() -> None:
    whole = seal(b"content", (new_write(), new_write()))
    for position in range(8 * len(whole)):
        bits = bytearray(whole)
        bits[position // 8] ^= 1 << position % 8
        with pytest.raises(ValueError, match="stored"):
            unseal(bytes(bits))


def test_any_missing_end_of_a_sealed_object_is_found() -> None:
    whole = seal(b"content", (new_write(),))
    for length in range(len(whole)):
        with pytest.raises(ValueError, match="stored"):
            unseal(whole[:length])


def test_the_history_of_a_much_swapped_object_stays_short_and_readable() -> None:
    writes: tuple[str, ...] = ()
    for _ in range(1000):
        writes = unseal(seal(b"", (new_write(), *writes))).writes
    assert len(writes) == 128
    assert len(seal(b"", writes)) < 3000


@pytest.mark.parametrize("content", [b"content", LARGE])
def test_damage_is_reported_with_the_key_in_one_line_by_every_method(
    store: S3Store, bucket: str, s3: Any, content: bytes
) -> None:
    store.put_if_absent("a/b", content)
    bits = bytearray(raw(s3, bucket, "prefix/a/b"))
    bits[-1] ^= 1
    s3.put_object(Bucket=bucket, Key="prefix/a/b", Body=bytes(bits))
    calls: list[Callable[[], object]] = [
        lambda: store.get("a/b"),
        lambda: store.put_if_absent("a/b", content),
        lambda: store.compare_and_swap("a/b", b"new", sha256_bytes(content)),
        lambda: store.compare_and_swap("a/b", b"new", None),
    ]
    for call in calls:
        with pytest.raises(CorruptObject, match=rf"^a/b: damaged in s3://{bucket}/prefix/a/b; delete the object.*$"):
            call()
    store.delete("a/b")
    store.put_if_absent("a/b", content)
    assert store.get("a/b").data == content


def test_an_object_that_the_store_never_wrote_is_no_object_of_it(store: S3Store, bucket: str, s3: Any) -> None:
    s3.put_object(Bucket=bucket, Key="prefix/a", Body=b"written by hand")
    with pytest.raises(CorruptObject):
        store.get("a")


def test_the_etag_is_the_sha256_of_the_content_in_one_part_or_many(store: S3Store) -> None:
    assert store.put_if_absent("small", b"content") == sha256_bytes(b"content")
    assert store.put_if_absent("large", LARGE) == sha256_bytes(LARGE)
    assert store.get("large").etag == sha256_bytes(LARGE)


def test_a_large_object_goes_up_in_parts_and_a_small_one_does_not(store: S3Store, bucket: str, s3: Any) -> None:
    store.put_if_absent("small", bytes(PART - 300))
    store.put_if_absent("large", LARGE)
    assert "-" not in s3.head_object(Bucket=bucket, Key="prefix/small")["ETag"]
    assert s3.head_object(Bucket=bucket, Key="prefix/large")["ETag"].endswith('-3"')
    assert store.get("large").data == LARGE


def test_a_large_object_can_be_swapped_as_well(store: S3Store) -> None:
    first = store.put_if_absent("large", LARGE)
    second = store.compare_and_swap("large", LARGE + b"2", first)
    with pytest.raises(Conflict) as caught:
        store.compare_and_swap("large", LARGE + b"3", first)
    assert caught.value.current == second
    assert store.get("large").data == LARGE + b"2"


@pytest.mark.parametrize(("content", "same"), [(LARGE, True), (LARGE + b"other", False)])
def test_an_upload_in_parts_onto_a_taken_key_is_refused_and_leaves_no_parts(
    store: S3Store, bucket: str, s3: Any, content: bytes, same: bool
) -> None:
    store.put_if_absent("large", LARGE)
    with pytest.raises(AlreadyExists) as caught:
        store.put_if_absent("large", content)
    assert caught.value.same is same
    assert store.get("large").data == LARGE
    assert uploads(s3, bucket) == []


def test_of_many_uploads_in_parts_exactly_one_wins(store: S3Store, bucket: str, s3: Any) -> None:
    def put(worker: int) -> bool:
        try:
            store.put_if_absent("large", LARGE + bytes([worker]))
        except AlreadyExists as taken:
            assert not taken.same
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        won = list(threads.map(put, range(4)))
    assert won.count(True) == 1
    assert store.get("large").data == LARGE + bytes([won.index(True)])
    assert uploads(s3, bucket) == []


def test_an_upload_that_fails_halfway_leaves_no_parts(bucket: str, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyProxy(moto()) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = open_s3(f"s3://{bucket}", part_size=PART)
        parts: list[int] = []

        def count() -> None:
            found = uploads(s3, bucket)
            parts.extend(len(s3.list_parts(Bucket=bucket, Key="large", UploadId=u["UploadId"])["Parts"]) for u in found)

        proxy.fail_next(Refuse(403, "AccessDenied"), path="partNumber=2", meanwhile=count)
        with pytest.raises(UserError, match=r"access denied \(AccessDenied\)"):
            store.put_if_absent("large", LARGE)
    assert parts == [1]
    assert uploads(s3, bucket) == []
    assert list(store.list("")) == []


def test_a_long_list_comes_page_by_page(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    with FaultyProxy(moto()) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = open_s3(f"s3://{bucket}/prefix")
        keys = [f"many/{number}" for number in range(8)]
        for key in keys:
            store.put_if_absent(key, b"")
        proxy.requests.clear()
        assert list(store.list("many/")) == keys
        assert len(proxy.requests) == 3


def test_what_is_no_key_is_not_listed(store: S3Store, bucket: str, s3: Any) -> None:
    store.put_if_absent("a", b"")
    for stray in ("prefix/", "prefix/.probe/1", "prefix/with space", "prefix/a//b", "prefixed", "elsewhere/b"):
        s3.put_object(Bucket=bucket, Key=stray, Body=b"")
    assert list(store.list("")) == ["a"]


def test_two_prefixes_of_one_bucket_are_two_stores(bucket: str) -> None:
    one, other, whole = (open_s3(f"s3://{bucket}{path}") for path in ("/one", "/deep/other/", ""))
    one.put_if_absent("a", b"one")
    with pytest.raises(KeyMissing):
        other.get("a")
    other.put_if_absent("a", b"other")
    assert (one.get("a").data, other.get("a").data) == (b"one", b"other")
    assert list(one.list("")) == list(other.list("")) == ["a"]
    assert list(whole.list("")) == ["deep/other/a", "one/a"]


_FORKED = """
import os, sys
from taskmem.store import open_store
store = open_store(sys.argv[1])
for name in "ab":
    store.put_if_absent(name, name.encode() * 100_000)
child = os.fork()
name = "a" if child else "b"
wrong = sum(store.get(name).data != name.encode() * 100_000 for _ in range(100))
if child == 0:
    os._exit(wrong > 0)
sys.exit(wrong > 0 or os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_store_can_be_used_on_both_sides_of_a_fork(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The proxy keeps connections open, as S3 does and moto does not.
    with FaultyProxy(moto()) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        subprocess.run([sys.executable, "-c", _FORKED, f"s3://{bucket}"], check=True, timeout=60)
