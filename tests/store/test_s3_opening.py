"""Opening a bucket: what is proved, what is refused and in which words, and that no credential gets out."""

import logging
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faulty_proxy import Fault, FaultyProxy, Refuse
from s3_servers import AWS_NAMES, client, moto, new_bucket, rclone

from taskmem.errors import UserError
from taskmem.store import AlreadyExists, Conflict, KeyMissing, LocalStore, open_store
from taskmem.store.s3 import S3Store, open_s3


@pytest.fixture(scope="module")
def bucket() -> str:
    return new_bucket()


@pytest.fixture(scope="module")
def lax(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server that takes conditional writes and ignores their conditions; the folder of its one bucket "lax"."""
    folder = tmp_path_factory.mktemp("rclone")
    (folder / "lax").mkdir()
    with rclone(folder) as endpoint:
        yield endpoint, folder / "lax"


def refusal(url: str) -> str:
    """The one line in which a store is refused."""
    with pytest.raises(UserError) as caught:
        open_store(url)
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_a_store_is_opened_by_its_url(bucket: str, tmp_path: Path) -> None:
    assert isinstance(open_store(f"s3://{bucket}/a/b"), S3Store)
    assert isinstance(open_store(f"file://{tmp_path}/store"), LocalStore)
    assert isinstance(open_store(str(tmp_path / "store")), LocalStore)


def test_who_only_reads_writes_nothing_by_opening(
    lax: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, folder = lax
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    before = sorted(folder.rglob("*"))
    assert list(open_store("s3://lax", read_only=True).list("")) == []
    assert sorted(folder.rglob("*")) == before
    store = open_store(str(tmp_path / "kept"))
    store.put_if_absent("a", b"content")
    for path in (tmp_path / "kept" / "staging", tmp_path / "kept" / "locks"):
        shutil.rmtree(path)
    assert open_store(str(tmp_path / "kept"), read_only=True).get("a").data == b"content"
    with pytest.raises(UserError, match="typo: holds no store; give the folder of one"):
        open_store(str(tmp_path / "typo"), read_only=True)
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"objects"}
    assert not (tmp_path / "typo").exists()


def test_the_proof_leaves_nothing_behind_however_many_open_at_once(bucket: str) -> None:
    with ThreadPoolExecutor(6) as threads:
        stores = list(threads.map(open_store, [f"s3://{bucket}/proof"] * 6))
    assert [list(store.list("")) for store in stores] == [[]] * 6
    left = client(moto()).list_objects_v2(Bucket=bucket, Prefix="proof")
    assert "Contents" not in left
    assert "Uploads" not in client(moto()).list_multipart_uploads(Bucket=bucket)


def test_a_server_that_ignores_conditions_is_refused_and_left_clean(
    lax: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, folder = lax
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    said = refusal("s3://lax/prefix")
    assert said.startswith(
        f"s3://lax at {endpoint}: the server does not honour If-None-Match, so that two writers could"
    )
    assert said.endswith("use a server with conditional writes, as Amazon S3 has them, or a folder")
    assert [path for path in folder.rglob("*") if path.is_file()] == []


IGNORED = {
    "If-None-Match": {"PUT": ["If-None-Match"]},
    "If-Match": {"PUT": ["If-Match"]},
    "If-None-Match on a multipart upload": {"POST": ["If-None-Match"]},
}


@pytest.mark.parametrize("what", IGNORED)
def test_each_condition_that_a_server_ignores_is_found(bucket: str, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    with FaultyProxy(moto(), ignore=IGNORED[what]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        assert f"s3://{bucket} at {proxy.url}: the server does not honour {what}, so that" in refusal(
            f"s3://{bucket}/ignored"
        )
    assert "Contents" not in client(moto()).list_objects_v2(Bucket=bucket, Prefix="ignored")
    assert "Uploads" not in client(moto()).list_multipart_uploads(Bucket=bucket)


def test_a_server_that_knows_no_conditions_is_refused(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyProxy(moto()) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.fail_next(Refuse(501, "NotImplemented"), times=2)
        assert "the server does not honour If-None-Match, so that" in refusal(f"s3://{bucket}/unknown")
        assert proxy.seen.total() == 2


def test_a_server_that_refuses_also_conditions_that_hold_is_refused(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultyProxy(moto()) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)

        def swaps_too() -> None:
            proxy.fail_next(Refuse(412, "PreconditionFailed"))

        proxy.fail_next(Fault.LATE, "GET", meanwhile=swaps_too)
        assert "does not keep to the conditions of a write" in refusal(f"s3://{bucket}/strict")
        assert proxy.seen[Refuse(412, "PreconditionFailed")] == 1


def test_a_missing_bucket_is_named() -> None:
    assert refusal("s3://nobody-made-this") == (
        f"s3://nobody-made-this at {moto()}: no such bucket; create it, or correct the URL"
    )


def test_missing_credentials_are_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    said = refusal(f"s3://{bucket}")
    assert said.startswith(f"s3://{bucket} at {moto()}: no usable credentials (NoCredentialsError); give boto3 some:")


def test_a_profile_that_is_not_configured_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "no usable credentials (ProfileNotFound)" in refusal(f"s3://{bucket}")


def test_wrong_credentials_are_named(lax: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", lax[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-key")
    said = refusal("s3://lax")
    assert re.match(rf"s3://lax at {lax[0]}: access denied \(\w+\); check the credentials and what they may do", said)


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId"])
def test_an_operation_that_is_not_allowed_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    with FaultyProxy(moto()) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.fail_next(Refuse(403, code))
        assert f"access denied ({code}); check the credentials" in refusal(f"s3://{bucket}")


def test_an_endpoint_where_nobody_answers_is_named_within_seconds(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    start = time.monotonic()
    assert refusal(f"s3://{bucket}") == (
        f"s3://{bucket} at http://127.0.0.1:1: no answer (EndpointConnectionError); "
        "check AWS_ENDPOINT_URL and the network"
    )
    assert time.monotonic() - start < 10


def test_an_endpoint_that_is_no_url_is_the_users_mistake(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    assert "boto3 cannot work with its settings" in refusal(f"s3://{bucket}")


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix", "s3://UPPER", "s3://a", "s3://with_underscore/a"])
def test_what_is_no_bucket_is_refused_before_any_request(url: str) -> None:
    assert refusal(url) == f"store {url}: not a bucket's name; give s3://bucket/prefix"


@pytest.mark.parametrize("prefix", ["a//b", ".hidden", "../a", "with space"])
def test_what_is_no_prefix_is_refused_before_any_request(prefix: str) -> None:
    url = f"s3://bucket/{prefix}"
    assert refusal(url) == f"store {url}: not a prefix of safe parts; give s3://bucket/prefix"


@pytest.mark.parametrize("url", ["gs://bucket", "", "https://key:canary@host/x"])
def test_another_scheme_is_refused_without_repeating_the_url(url: str) -> None:
    said = refusal(url)
    assert "give one of these" in said
    assert "canary" not in said


_WITHOUT_BOTO3 = """
import sys
import taskmem.store
from taskmem.errors import UserError
assert not {"boto3", "botocore"} & set(sys.modules), "imported with the store"
sys.modules["boto3"] = None
try:
    taskmem.store.open_store("s3://bucket")
except UserError as error:
    print(error)
"""


def test_without_boto3_the_store_can_be_imported_and_s3_names_the_extra() -> None:
    run = subprocess.run([sys.executable, "-c", _WITHOUT_BOTO3], capture_output=True, text=True, check=True)
    assert run.stdout == "store s3://...: boto3 is not installed; pip install 'taskmem[stage]'\n"


KEY, SECRET, TOKEN = "AKIACANARYKEY", "canary-secret-1f", "canary-token-7a"
LEAK = re.compile(r"canary", re.IGNORECASE)


class Listener(logging.Handler):
    """Keeps every record, whatever its level."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(f"{record.name} {self.format(record)}")


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Hears everything that anybody logs."""
    root, handler = logging.getLogger(), Listener()
    level = root.level
    # boto3 and the client of Kubernetes set these to WARNING for the whole process
    loggers = [logging.getLogger(name) for name in ("botocore", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.NOTSET)
    root.setLevel(logging.DEBUG)
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)
    for logger, before in zip(loggers, levels, strict=True):
        logger.setLevel(before)


def errors_of_a_life(bucket: str, lax: str, monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """Use a store, and make every mistake there is; what was raised."""
    raised: list[Exception] = []

    def attempt(url: str) -> None:
        try:
            store = open_s3(url, part_size=5 * 2**20, attempts=2)
            etag = store.put_if_absent("a", b"first")
            store.compare_and_swap("a", b"second", etag)
            store.put_if_absent("large", bytes(6 * 2**20))
            for call in (lambda: store.put_if_absent("a", b""), lambda: store.compare_and_swap("a", b"", etag)):
                with pytest.raises((AlreadyExists, Conflict)) as caught:
                    call()
                raised.append(caught.value)
            with pytest.raises(KeyMissing):
                store.get("b")
        except UserError as error:
            raised.append(error)

    attempt(f"s3://{bucket}/canaries")
    attempt("s3://nobody-made-this")
    attempt(f"s3://{KEY}:{SECRET}@{bucket}/prefix")
    for endpoint in (lax, f"http://{KEY}:{SECRET}@127.0.0.1:1", f"{KEY}:{SECRET}"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        attempt("s3://lax")
    with FaultyProxy(moto(), rate=1, faults=[Fault.BUSY]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        attempt(f"s3://{bucket}")
    monkeypatch.setenv("AWS_PROFILE", SECRET)
    attempt(f"s3://{bucket}")
    return raised


def test_no_credential_reaches_a_log_an_error_or_an_object(
    bucket: str, lax: tuple[str, Path], listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if AWS_NAMES.fullmatch(name) and name.endswith(("_KEY_ID", "_ACCESS_KEY")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    raised = errors_of_a_life(bucket, lax[0], monkeypatch)
    assert len(raised) == 9
    shown = [text for error in raised for text in (repr(error), *traceback.format_exception(error))]
    assert [text for text in shown if LEAK.search(text)] == []
    assert any("urllib3" in said for said in listener.said), "nothing was heard"
    assert [said for said in listener.said if LEAK.search(said)] == []
    s3 = client(moto())
    names = [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket, Prefix="canaries")["Contents"]]
    assert sorted(names) == ["canaries/a", "canaries/large"]
    for name in names:
        kept = s3.get_object(Bucket=bucket, Key=name)
        assert not LEAK.search(repr(kept["Metadata"]) + kept["Body"].read().decode())
