"""What a stranger wrote into the lineage and its remote does no harm, and what was erased is told from what is lost."""

import hashlib
import json
from pathlib import Path

import pytest
from audit_parts import NOW, Place, broken, changed, forge, objects_kept

from taskmem.audit.data import Data, Tracked, remote_of, tracked_by
from taskmem.audit.history import History
from taskmem.audit.links import Problem
from taskmem.erasure import Tombstone
from taskmem.errors import UserError
from taskmem.lineage.git import new_repository
from taskmem.registry.objects import to_bytes

PLACE = "environments/door-night"


def put(remote: Path, data: bytes, suffix: str = "") -> str:
    """An object of the remote; returns its name."""
    name = hashlib.md5(data, usedforsecurity=False).hexdigest() + suffix
    path = remote / "files" / "md5" / name[:2] / name[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return name


def fetched(tmp_path: Path, tracked: Tracked, erased: frozenset[str] = frozenset()) -> Data:
    data = Data(str(tmp_path / "remote"), tmp_path / "dvc", erased)
    data.fetch([tracked])
    return data


def listing(*entries: tuple[str, str]) -> bytes:
    return json.dumps([{"md5": md5, "relpath": name} for name, md5 in entries]).encode()


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "", "a//b", "."])
def test_a_folder_s_list_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    md5 = put(tmp_path / "remote", listing((name, put(tmp_path / "remote", b"evil"))), ".dir")
    with pytest.raises(UserError, match=f"^place/folder: its object {md5} in .* lists no folder's files; restore it$"):
        fetched(tmp_path, Tracked("place/folder", md5))


@pytest.mark.parametrize(
    "data", [b"no JSON", b"{}", b"[1]", b'[{"md5": "x", "relpath": "a"}]', b'[{"relpath": "a"}]', b"[" * 100_000]
)
def test_what_lists_no_files_is_a_mistake_with_its_name(tmp_path: Path, data: bytes) -> None:
    md5 = put(tmp_path / "remote", data, ".dir")
    if data == b"{}":
        assert fetched(tmp_path, Tracked("place/folder", md5)).items(Tracked("place/folder", md5)) == []
        return
    with pytest.raises(UserError, match="lists no folder's files"):
        fetched(tmp_path, Tracked("place/folder", md5))


def test_a_folder_is_laid_with_its_sound_files_only(tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    good, bad = put(remote, b"good"), put(remote, b"bad")
    gone = hashlib.md5(b"gone", usedforsecurity=False).hexdigest()
    tracked = Tracked("place", put(remote, listing(("a/good", good), ("bad", bad), ("gone", gone)), ".dir"))
    (remote / "files" / "md5" / bad[:2] / bad[2:]).write_bytes(b"BAD")
    data = fetched(tmp_path, tracked)
    problems = data.problems(tracked)
    assert {path: problem.status for path, problem in problems.items()} == {
        "place/bad": "damaged",
        "place/gone": "missing",
    }
    out = data.lay(tracked, tmp_path / "out")
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {"a/good"}


def test_a_remote_is_left_as_it_was_also_where_an_object_is_damaged(tmp_path: Path) -> None:
    md5 = put(tmp_path / "remote", b"bytes")
    path = tmp_path / "remote" / "files" / "md5" / md5[:2] / md5[2:]
    path.write_bytes(b"other")
    path.chmod(0o644)
    data = fetched(tmp_path, Tracked("file", md5))
    assert data.problems(Tracked("file", md5))["file"].status == "damaged"
    assert path.read_bytes() == b"other"


def test_what_an_erasure_took_away_is_erased_and_not_missing(tmp_path: Path) -> None:
    gone = "0" * 32
    (tmp_path / "remote").mkdir()
    data = fetched(tmp_path, Tracked("file", gone), frozenset({gone}))
    assert isinstance(problem := data.problems(Tracked("file", gone))["file"], Problem)
    assert (problem.status, problem.reason) == ("erased", "erased, see the tombstone")


def test_an_adapter_whose_pairs_were_erased_says_so(place: Place, tmp_path: Path) -> None:
    pairs = (place.root / "night1" / "preferences" / "door-night" / "preferences.jsonl").read_bytes()
    at = place.object_of(pairs)
    stone = Tombstone(
        kind="source", target="9" * 64, state="erased", time=NOW, by="Ada", objects=(at.parent.name + at.name,)
    )
    with objects_kept(place), changed(at, None):
        place.store.put_if_absent(f"tombstones/{'9' * 64}", to_bytes(stone))
        chain = place.audit("door@v1", tmp_path)
    assert broken(chain) == [("pairs", "erased")]
    assert "erased, see the tombstone" in chain.broken[0].line


BOMB = b"a: &a [x, x]\nb: &b [*a, *a]\nouts: [*b, *b]\n"


@pytest.mark.parametrize("data", [BOMB, b"[1, 2]", b"a: !!python/object/apply:os.system [id]", b"1: 2"])
def test_yaml_of_a_stranger_s_is_a_mistake_with_its_place(place: Place, tmp_path: Path, data: bytes) -> None:
    with objects_kept(place):
        forge(place, f"{PLACE}/events.jsonl.dvc", data)
        with pytest.raises(UserError, match=rf"lineage\.git: {PLACE}/events\.jsonl\.dvc of commit [0-9a-f]{{12}}: "):
            place.audit("door@v2", tmp_path)


@pytest.mark.parametrize(
    "out",
    [
        {"md5": "../../../etc/passwd", "hash": "md5", "path": "events.jsonl"},
        {"md5": "0" * 32, "hash": "md5", "path": "../events.jsonl"},
        {"md5": "0" * 32, "hash": "md5-dos2unix", "path": "events.jsonl"},
        {"hash": "md5", "path": "events.jsonl"},
    ],
)
def test_a_pointer_that_dvc_would_not_write_is_refused(place: Place, tmp_path: Path, out: dict[str, str]) -> None:
    with objects_kept(place):
        forge(place, f"{PLACE}/events.jsonl.dvc", json.dumps({"outs": [out]}).encode())
        history = History(place.lineage, tmp_path / "clone")
        with pytest.raises(UserError, match=f"^lineage: {PLACE}/events.jsonl: not tracked as DVC writes it"):
            tracked_by(history, history.head, PLACE, "events.jsonl")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ssh://somewhere/data", "neither s3:// nor a folder"),
        ("https://user:secret@somewhere/data", "neither s3:// nor a folder"),
        ("/tmp/a#b", "has characters of no URL"),
    ],
)
def test_a_remote_that_is_no_bucket_and_no_folder_is_not_asked(
    place: Place, tmp_path: Path, url: str, said: str
) -> None:
    with objects_kept(place):
        forge(place, ".dvc/config", f"[core]\n    remote = lineage\n['remote \"lineage\"']\n    url = {url}\n".encode())
        with pytest.raises(UserError, match=said) as caught:
            remote_of(History(place.lineage, tmp_path / "clone"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("there", [True, False], ids=["an empty folder", "nothing"])
def test_an_auditor_makes_no_repository_where_there_is_none(tmp_path: Path, there: bool) -> None:
    wrong = tmp_path / "wrong"
    if there:
        wrong.mkdir()
    with pytest.raises(UserError, match=f"^{wrong}: .*does not"):
        History(str(wrong), tmp_path / "work" / "lineage")
    assert wrong.exists() == there
    assert not there or not any(wrong.iterdir())


def test_an_empty_repository_is_a_mistake(tmp_path: Path) -> None:
    new_repository(tmp_path / "empty.git")
    with pytest.raises(UserError, match=r"empty\.git: holds no commit; give the repository that lineage_record writes"):
        History(str(tmp_path / "empty.git"), tmp_path / "clone")


def test_an_event_log_that_another_one_was_put_in_place_of_does_not_fit_its_watermark(
    place: Place, tmp_path: Path
) -> None:
    log = (place.root / "night2" / "events" / "door.jsonl").read_bytes().replace(b"(0)", b"(9)")
    md5 = put(place.remote, log)
    out = {"outs": [{"md5": md5, "hash": "md5", "path": "events.jsonl"}]}
    with objects_kept(place):
        forge(place, f"{PLACE}/events.jsonl.dvc", json.dumps(out).encode())
        chain = place.audit("door@v2", tmp_path)
    assert broken(chain) == [("events.jsonl", "damaged")]
    assert f"{PLACE}/events.jsonl: not the log that the feedback was collected from" in chain.broken[0].line
