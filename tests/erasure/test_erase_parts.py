"""Events in the parts of an object store go; the parts, their numbers and their watermarks stay."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from registry_parts import FaultError, Weather
from s3_servers import client, lead, moto, new_bucket

from taskmem.config import load_profile
from taskmem.erasure import tombstones
from taskmem.erasure.erase import Erasure, Places, erase
from taskmem.erasure.objects import objects_at
from taskmem.erasure.parts import PARTS, forget, forget_in
from taskmem.erasure.target import Target
from taskmem.erasure.tombstones import read_tombstone
from taskmem.errors import UserError
from taskmem.feedback import FeedbackParts, PartsWatermark, collect_parts
from taskmem.feedback.collection import ERASED, tombstone_of
from taskmem.feedback.index import stream_mark
from taskmem.files import sha256_bytes
from taskmem.records import FeedbackEvent
from taskmem.store import LocalStore, Store, open_store

WHO, WHEN = "Ada", datetime(2026, 3, 1, tzinfo=UTC)
OURS, USER, CANARY = "yard", "5" * 64, "the teal umbrella of Mrs Abernathy"
MINING = load_profile("miniature").mining.model_copy(update={"recent_questions": 100, "questions_per_source": None})
PER_PART = 3


def event(number: int, environment: str = "door") -> FeedbackEvent:
    """Every third event is about OURS and has the canary, every fifth is USER's."""
    return FeedbackEvent(
        id=f"e{number}",
        environment=environment,
        source=USER if number % 5 == 0 else sha256_bytes(f"{number}"),
        time=WHEN,
        question=f"q{number}",
        stream=OURS if number % 3 == 0 else "hall",
        asked_at_s=float(number),
        type="object",
        text=f"{CANARY if number % 3 == 0 else 'what was it at'} {number}?",
        answer=None,
        outcome="unknown",
        consent=True,
    )


def ship(store: Store, parts: int, environment: str = "door") -> FeedbackParts:
    shipped = FeedbackParts(store, environment)
    for part in range(parts):
        shipped.append([event(PER_PART * part + n, environment) for n in range(PER_PART)])
    return shipped


def numbers(store: Store, environment: str = "door") -> list[int]:
    parts = FeedbackParts(store, environment)
    return [int(e.id[1:]) for part in parts.read() for e in parts.events(part.header.number)]


def expected(parts: int, gone: Callable[[int], bool]) -> list[int]:
    return [n for n in range(PER_PART * parts) if not gone(n)]


def of_ours(number: int) -> bool:
    return number % 3 == 0


def everything(url: str) -> dict[str, bytes]:
    store = open_store(url, read_only=True)
    return {key: store.get(key).data for key in store.list("")}


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return str(tmp_path / "store")


@pytest.fixture
def bucket_url(monkeypatch: pytest.MonkeyPatch) -> str:
    """A place in a bucket that keeps old versions."""
    lead(monkeypatch, moto())
    bucket = new_bucket()
    client(moto()).put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    return f"s3://{bucket}/kept"


def versions(url: str) -> list[bytes]:
    """Every version that a bucket has, or every file of a folder."""
    if not url.startswith("s3://"):
        return [path.read_bytes() for path in Path(url).rglob("*") if path.is_file()]
    s3: Any = client(moto())
    bucket = url.split("/")[2]
    pages = s3.get_paginator("list_object_versions").paginate(Bucket=bucket)
    found = [(entry["Key"], entry["VersionId"]) for page in pages for entry in page.get("Versions", ())]
    return [s3.get_object(Bucket=bucket, Key=key, VersionId=v)["Body"].read() for key, v in found]


def run(url: str, target: str, **places: Any) -> Erasure:
    return erase(Target.parse(target), Places(url, **places), WHO, WHEN)


@pytest.mark.parametrize(
    ("target", "gone", "elsewhere"),
    [
        (OURS, of_ours, of_ours),
        (f"door/{OURS}", of_ours, lambda n: False),
        (USER, lambda n: n % 5 == 0, lambda n: n % 5 == 0),
    ],
)
def test_what_is_erased_is_gone_from_every_part_and_the_order_stays(
    url: str, target: str, gone: Callable[[int], bool], elsewhere: Callable[[int], bool]
) -> None:
    store, many, few = open_store(url), 36, 4
    ship(store, many)
    ship(store, few, "shop")
    marks = [part.watermark for part in FeedbackParts(store, "door").read()]
    said = run(url, target)
    assert said.erased[PARTS].records == sum(map(gone, range(PER_PART * many))) + sum(
        map(elsewhere, range(PER_PART * few))
    )
    assert numbers(store) == expected(many, gone)
    assert numbers(store, "shop") == expected(few, elsewhere)
    parts = FeedbackParts(store, "door")
    assert [part.watermark for part in parts.read()] == marks
    assert [len(list(parts.read(mark))) for mark in marks[-3:]] == [2, 1, 0]
    parts.append([event(1001)])
    assert parts.end().parts == many + 1
    assert run(url, target).again


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_no_version_of_a_part_holds_what_was_erased(request: pytest.FixtureRequest, where: str) -> None:
    url = request.getfixturevalue("url" if where == "folder" else "bucket_url")
    ship(open_store(url), 33)
    assert sum(CANARY.encode() in data for data in versions(url)) == 33
    if where == "folder":
        run(url, OURS)
    else:
        forget(url, "door", OURS, WHO, WHEN)
    assert numbers(open_store(url)) == expected(33, of_ours)
    assert not any(CANARY.encode() in data for data in versions(url))
    # nor does the index know of the stream
    assert not any(stream_mark(OURS) in data for data in versions(url))
    assert any(stream_mark("hall") in data for data in versions(url))


def test_a_watermark_taken_before_is_good_after(url: str) -> None:
    store = open_store(url)
    parts = ship(store, 5)
    since = cast(PartsWatermark, collect_parts(parts, None, MINING).watermark)
    ship_more = [event(n) for n in (100, 101, 102)]
    run(url, OURS)
    FeedbackParts(store, "door").append(ship_more)
    later = collect_parts(FeedbackParts(store, "door"), since, MINING, tombstones(store))
    assert [q.id for q in later.new("door")] == ["q100", "q101"]
    assert [r.reason for r in later.refused] == [ERASED]
    assert [q.id for q in later.questions["door"]][:-2] == [f"q{n}" for n in expected(5, of_ours)]


def test_a_service_forgets_an_environments_stream_at_once(url: str) -> None:
    store = open_store(url)
    ship(store, 36)
    ship(store, 3, "shop")
    stone = forget(url, "door", OURS, WHO, WHEN)
    assert (stone.state, stone.erased[PARTS].records, stone.target) == (
        "erasing",
        36,
        tombstone_of("stream", "door/yard"),
    )
    assert numbers(store) == expected(36, of_ours)
    assert numbers(store, "shop") == list(range(9))
    assert not any(CANARY.encode() in data and b'"shop"' not in data for data in versions(url))
    before = everything(url)
    assert forget(url, "door", OURS, WHO, WHEN) == stone
    assert everything(url) == before
    # what comes late is refused, and gone when it is forgotten again
    FeedbackParts(store, "door").append([event(300)])
    assert not collect_parts(FeedbackParts(store, "door"), None, MINING, tombstones(store)).sources["door"].get("q300")
    assert forget(url, "door", OURS, WHO, WHEN).erased[PARTS].records == 36
    assert 300 not in numbers(store)
    said = run(url, f"door/{OURS}")
    assert not said.again
    found = read_tombstone(store, Target.parse(f"door/{OURS}"))
    assert found is not None
    assert found.state == "erased"
    assert forget(url, "door", OURS, WHO, WHEN) == found


@pytest.mark.parametrize(("environment_", "stream"), [("../door", "yard"), ("door", "a/b"), ("door", ""), ("", "yard")])
def test_an_unsafe_name_is_forgotten_nowhere(tmp_path: Path, environment_: str, stream: str) -> None:
    with pytest.raises(UserError, match="neither STREAM, ENV/STREAM nor the hash of a source"):
        forget(str(tmp_path), environment_, stream, WHO, WHEN)


def _steps(root: Path, work: Callable[[str, Callable[[str], None]], object]) -> int:
    steps: list[str] = []
    ship(LocalStore(root / "whole"), 34)
    work(str(root / "whole"), steps.append)
    return len(steps)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("how", ["erase", "forget"])
def test_killed_after_any_step_it_completes(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)

    def work(url: str, note: Callable[[str], None]) -> object:
        if how == "forget":
            return forget(url, "door", OURS, WHO, WHEN, note)
        return erase(Target.parse(OURS), Places(url), WHO, WHEN, None, note)

    total = _steps(tmp_path, work)
    whole = {key: LocalStore(tmp_path / "whole").get(key).data for key in LocalStore(tmp_path / "whole").list("feed")}
    assert total > 30
    for last in (1, 2, 3, 20, total - 2, total - 1):
        url, left = str(tmp_path / f"killed-{last}"), last
        ship(LocalStore(Path(url)), 34)

        def note(line: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise KilledError(line)

        with pytest.raises(KilledError):
            work(url, note)
        # from the first moment on nothing of it is collected
        store = LocalStore(Path(url))
        found = collect_parts(FeedbackParts(store, "door"), None, MINING, tombstones(store))
        assert [int(q.id[1:]) for q in found.questions["door"]] == expected(34, of_ours)
        work(url, lambda line: None)
        assert {key: store.get(key).data for key in store.list("feed")} == whole


def test_a_store_that_fails_a_fifth_of_all_calls_forgets_in_the_end(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    ship(store, 34)
    target, faults = Target.parse(f"door/{OURS}"), 0
    stormy = cast(Store, Weather(store, "forget", 0.02, 0.001))
    while True:
        try:
            forget_in(stormy, objects_at(str(tmp_path / "store")), target, WHO, WHEN, lambda line: None)
            break
        except (FaultError, UserError):
            faults += 1
    assert faults > 1
    assert numbers(store) == expected(34, of_ours)
    assert not any(stream_mark(OURS) in data for data in versions(str(tmp_path / "store")))


def test_a_long_feedback_is_not_read_to_forget_a_stream_of_a_few_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    store = LocalStore(tmp_path / "store")
    parts = FeedbackParts(store, "door")
    for number in range(1500):
        parts.append([event(3 * number + (0 if number == 700 else 1))])
    read: list[str] = []
    get = LocalStore.get

    def counted(self: LocalStore, key: str) -> Any:
        read.append(key)
        return get(self, key)

    monkeypatch.setattr(LocalStore, "get", counted)
    assert forget(str(tmp_path / "store"), "door", OURS, WHO, WHEN).erased[PARTS].records == 1
    assert len(read) < 400
