"""The first stage of a night on feedback that agents have shipped to an object store."""

import json
from pathlib import Path

import pytest
from night_parts import NEEDED, brief, event, shard
from s3_servers import lead, moto, new_bucket

from taskmem.config import Profile, load_profile, override
from taskmem.errors import UserError
from taskmem.feedback import FeedbackParts, read_collection, read_watermark
from taskmem.feedback.collection import tombstone_of
from taskmem.lineage.outcome import Outcome
from taskmem.registry import advance, watermark
from taskmem.stages.collect import feedback_collection
from taskmem.stages.nightly import SINCE, collect_shard
from taskmem.store import Store, open_store

PROFILE = load_profile("miniature")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def bucket_url(monkeypatch: pytest.MonkeyPatch) -> str:
    lead(monkeypatch, moto())
    return f"s3://{new_bucket()}/kept"


def ask(store: Store, name: str, numbers: range, **changes: object) -> None:
    FeedbackParts(store, name).append([event(name, number, **changes) for number in numbers])


def night(url: str, out: Path, *names: str, profile: Profile = PROFILE) -> list[Outcome]:
    return collect_shard(shard(*names), url, url, profile, out)


def use(store: Store, out: Path, name: str) -> None:
    known = watermark(store, name)
    advance(store, name, read_collection(out / name).watermark.model_dump(mode="json"), known)


def files(folder: Path) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if name not in (SINCE, "events.jsonl")}


@pytest.mark.parametrize("where", ["url", "bucket_url"])
def test_two_nights_on_parts(request: pytest.FixtureRequest, where: str, tmp_path: Path) -> None:
    url = request.getfixturevalue(where)
    store, out = open_store(url), tmp_path / "out"
    ask(store, "door", range(NEEDED))
    ask(store, "few", range(2))
    assert brief(night(url, out, "door", "few", "quiet")) == [
        ("door", "ready", ""),
        ("few", "skipped", f"too little feedback: 2 questions in all, needs {NEEDED}"),
        ("quiet", "skipped", "no feedback yet"),
    ]
    assert json.loads((out / "door" / SINCE).read_text()) is None
    use(store, out, "door")
    # shipped again by an agent that was killed, and one new question
    ask(store, "door", range(NEEDED + 1), source="b" * 64)
    reason = f"too little feedback: 1 questions since the last adaptation, needs {NEEDED}; 5 lines refused, the first "
    (outcome,) = night(url, out, "door")
    assert outcome.reason.startswith(
        f"{reason}feedback/door/00000000000000000002:1: event q0 is already in an earlier part"
    )
    ask(store, "door", range(20, 24), source="c" * 64)
    assert brief(night(url, out, "door")) == [("door", "ready", "")]
    collection = read_collection(out / "door")
    assert [q.id for q in collection.new("door")] == ["q5", "q20", "q21", "q22", "q23"]
    assert [q.id for q in collection.questions["door"]][:5] == [f"q{n}" for n in range(5)]


def test_what_a_night_has_read_collects_to_the_same_bytes(url: str, tmp_path: Path) -> None:
    store, out = open_store(url), tmp_path / "out"
    ask(store, "door", range(NEEDED))
    night(url, out, "door")
    use(store, out, "door")
    ask(store, "door", range(3, 12), source="b" * 64)
    ask(store, "door", range(12, 14), consent=False)
    ask(store, "door", range(14, 15), stream="gone")
    store.put_if_absent(f"tombstones/{tombstone_of('stream', 'door/gone')}", b"{}")
    assert night(url, out, "door")[0].status == "ready"
    # as the lineage repository has it, and without the store
    since = read_watermark(out / "door" / SINCE)
    feedback_collection(out / "door" / "events.jsonl", since, PROFILE, tmp_path / "again")
    assert files(tmp_path / "again") == files(out / "door")
    assert len(read_collection(tmp_path / "again").refused) == 2 + 2 + 1 + 2


def test_a_command_takes_a_log_a_folder_or_a_store(url: str, tmp_path: Path) -> None:
    store = open_store(url)
    ask(store, "door", range(3))
    ask(store, "room", range(2))
    feedback_collection(url, None, PROFILE, tmp_path / "all")
    assert {name: len(asked) for name, asked in read_collection(tmp_path / "all").questions.items()} == {
        "door": 3,
        "room": 2,
    }
    feedback_collection(url, None, PROFILE, tmp_path / "door", "door")
    since = read_watermark(tmp_path / "door" / "watermark.json")
    ask(store, "door", range(3, 4))
    feedback_collection(url, since, PROFILE, tmp_path / "door", "door")
    assert [q.id for q in read_collection(tmp_path / "door").new("door")] == ["q3"]
    with pytest.raises(UserError, match="several environments have no one watermark; collect one with --environment"):
        feedback_collection(url, since, PROFILE, tmp_path / "all")
    with pytest.raises(UserError, match=r"store ftp://\.\.\.: not a folder's path"):
        feedback_collection("ftp://nowhere", None, PROFILE, tmp_path / "all")


def test_nobody_alone_decides_what_an_environment_learns(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    ask(open_store(url), "door", range(9), source="f" * 64)
    wide = override(PROFILE, {"mining": {"questions_per_source": 9}}, "wide")
    night(url, tmp_path / "out", "door")
    assert [q.id for q in read_collection(tmp_path / "out" / "door").questions["door"]] == [
        f"q{n}" for n in range(4, 9)
    ]
    night(url, tmp_path / "out", "door", profile=wide)
    assert len(read_collection(tmp_path / "out" / "door").questions["door"]) == 9


def test_a_watermark_of_another_kind_fails_that_environment_alone(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    store = open_store(url)
    for name in ("door", "room"):
        ask(store, name, range(NEEDED))
    advance(store, "door", {"offset": 3, "lines": 1, "sha256": "0" * 64}, None)
    door, room = night(url, tmp_path / "out", "door", "room")
    assert (door.status, room.status) == ("failed", "ready")
    assert "feedback/door: parts, and the watermark is a log's" in door.reason
