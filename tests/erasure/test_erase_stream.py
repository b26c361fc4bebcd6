"""A stream is erased: its canary is found nowhere, everybody else's data is where it was."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from erasure_parts import Snapshot, ask, dvc
from erasure_texts import CANARY, CONTEXTS, OTHERS, OURS, SHARED_TEXT, USER, VOICE, WHEN, WHO, holding

from taskmem.erasure import erased_objects, tombstones
from taskmem.erasure.erase import Erasure, preview
from taskmem.erasure.target import Target
from taskmem.erasure.tombstones import Tombstone, read_tombstone
from taskmem.feedback import read_collection
from taskmem.registry import champion, watermark
from taskmem.store import Store, open_store

NONE_OF_OURS = ("segments", "rollouts", "judgements")


@dataclass(frozen=True)
class Done:
    """The deployment after its stream was erased, what was said, and the files of before and after."""

    snapshot: Snapshot
    said: Erasure
    foreseen: Erasure
    before: dict[str, bytes]
    looked: dict[str, bytes]
    clone: Path

    @property
    def store(self) -> Store:
        return open_store(self.snapshot.site.store)

    @property
    def stone(self) -> Tombstone:
        stone = read_tombstone(self.store, Target("stream", OURS))
        assert stone is not None
        return stone


@pytest.fixture(scope="module")
def done(snapshot: Snapshot) -> Iterator[Done]:
    site = snapshot.restore()
    before = snapshot.files()
    foreseen = preview(Target.parse(OURS), site.places)
    looked = snapshot.files()
    said = site.erase(OURS)
    yield Done(snapshot, said, foreseen, before, looked, site.fresh_clone("fresh"))


def test_there_is_something_to_erase_everywhere(snapshot: Snapshot) -> None:
    site = snapshot.restore()
    for folder in ("store", "remote", "events", "clone/.dvc", "runs/demo/runs", "runs/demo/logs"):
        assert holding(CANARY, site.root / folder), folder
    assert not holding(CANARY, site.lineage)


def test_the_canary_is_found_nowhere(done: Done) -> None:
    assert holding(CANARY, done.snapshot.site.root) == []


def test_a_preview_foresees_it_and_touches_nothing(done: Done) -> None:
    assert done.foreseen == done.said
    assert done.looked == done.before


def test_what_others_said_and_did_is_still_there(done: Done) -> None:
    run = done.snapshot.site.run
    for name in ("plain.html", "voice.html", "logs/other.log", f"runs/videos/{OTHERS}.mp4", "cache/weights.json"):
        assert (run / name).read_bytes() == done.before[f"runs/demo/{name}"]
    for kind in NONE_OF_OURS:
        path = f"runs/demo/runs/{kind}/{kind}.jsonl"
        others = [line for line in done.before[path].splitlines() if OTHERS.encode() in line]
        assert (done.snapshot.site.root / path).read_bytes().splitlines() == others != []
    assert SHARED_TEXT in (run / "runs/champion/memories.jsonl").read_text()
    assert holding(VOICE, run, done.snapshot.site.events)
    kept = [key.split("/")[3] for key in done.store.list("rollouts/")]
    assert kept == [OTHERS] * CONTEXTS


def test_frames_videos_subtitles_and_markers_of_the_stream_are_gone(done: Done) -> None:
    assert not [path for path in done.snapshot.site.root.rglob(f"{OURS}*") if not path.name.startswith(OTHERS)]
    assert len(list(done.snapshot.site.run.rglob(f"{OTHERS}*"))) == 4


def test_a_document_that_quotes_it_is_pruned_and_a_page_is_deleted(done: Done) -> None:
    run = done.snapshot.site.run
    said = json.loads((run / "said.json").read_text())
    assert said["kept"] == "numbers"
    assert said["said"][0] == "erased"
    assert VOICE in said["said"][1]
    assert {Path(path).name for path in done.said.files} == {
        *("report.html", "deploy.log", "segment.log", "bundle.zip", "log.txt.gz", "summary.md", "page.html"),
    }


def test_an_entry_of_the_cache_goes_with_its_artifact_and_trunk_states_go(done: Done) -> None:
    run = done.snapshot.site.run
    assert [path.name for path in (run / "cache").iterdir()] == ["weights.json"]
    assert list((run / "trunks").iterdir()) == []


def test_collections_of_feedback_stay_whole(done: Done) -> None:
    for root in (
        done.snapshot.site.run / "runs" / "night-1" / "feedback" / "door",
        done.clone / "environments/door/feedback",
    ):
        collection = read_collection(root)
        assert {question.stream for question in collection.questions["door"]} == {OTHERS}
        assert set(collection.sources["door"]) == {question.id for question in collection.questions["door"]}
        assert len(collection.sources["door"]) == 3


def test_the_head_of_the_lineage_is_whole_and_has_the_others_data(done: Done) -> None:
    assert json.loads(dvc(done.clone, "status", "--json")) == {}
    film = done.clone / "shared" / "segments"
    assert [path.name for path in (film / "clips").iterdir()] == [OTHERS]
    assert len((film / "segments.jsonl").read_text().splitlines()) == CONTEXTS
    pairs = done.clone / "environments" / "door" / "preferences" / "preferences.jsonl"
    assert len(pairs.read_text().splitlines()) == 3
    run = done.snapshot.site.run / "runs" / "policy"
    assert (done.clone / "shared" / "policy" / "model.safetensors").read_bytes() == (
        run / "model.safetensors"
    ).read_bytes()


def test_one_commit_was_added_and_every_tag_stands(done: Done) -> None:
    site = done.snapshot.site
    command = ["git", "-C", str(site.lineage), "log", "--format=%B", "main"]
    log = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert log.count("Run: ") == 2
    assert log.startswith(f"Erase {Target('stream', OURS).digest[:16]}\n\nErased: {Target('stream', OURS).digest}\n")
    tags = subprocess.run(["git", "-C", str(site.lineage), "tag"], capture_output=True, text=True, check=True).stdout
    assert tags.split() == ["door@v1", "door@v2", "room@v1"]


def test_the_adapter_that_was_trained_on_it_is_named_and_stays_champion_until_it_is_made_anew(done: Done) -> None:
    assert done.said.adapters == done.stone.adapters == ("door@v1",)
    assert done.stone.retraining == ("door",)
    now = champion(done.store, "door")
    assert now is not None
    assert now.version == "v2"
    (vector,) = [line for line in done.said.remaining if line.startswith("door@v1: ")]
    assert "a vector of 8 numbers" in vector
    assert "it is no champion" in vector


def test_a_run_that_is_recorded_meanwhile_keeps_its_commit(snapshot: Snapshot) -> None:
    site = snapshot.restore()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(site.lineage), "-c", "user.name=x", "-c", "user.email=x@x", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    steps: list[str] = []

    def record(step: str) -> None:
        if step == "objects of the head" and step not in steps:
            git("update-ref", "refs/heads/main", git("commit-tree", "main^{tree}", "-p", "main", "-m", "another run"))
        steps.append(step)

    site.erase(OURS, record)
    assert git("log", "-3", "--format=%s", "main").splitlines()[0].startswith("Erase ")
    assert git("log", "-3", "--format=%s", "main").splitlines()[1] == "another run"
    assert steps.count("objects of the head") == 2
    assert OURS not in (site.fresh_clone("fresh") / "shared" / "segments" / "segments.jsonl").read_text().replace(
        OTHERS, ""
    )


def test_the_tombstone_tells_who_erased_and_when_and_no_name(done: Done) -> None:
    stone = done.stone
    assert (stone.kind, stone.state, stone.by, stone.time) == ("stream", "erased", WHO, WHEN)
    assert stone.reason == "they asked for it"
    assert stone.erased == done.said.erased
    assert stone.erased["feedback logs"].records == 5
    assert OURS not in stone.model_dump_json().replace(OTHERS, "")
    assert tombstones(done.store) == {Target("stream", OURS).digest}


def test_the_tombstone_lists_the_objects_that_are_missing_now(done: Done) -> None:
    remote = done.snapshot.site.root / "remote" / "files" / "md5"
    there = {path.parent.name + path.name for path in remote.rglob("*") if path.is_file()}
    gone = {
        name.removeprefix("remote/files/md5/").replace("/", "") for name in done.before if name.startswith("remote/")
    }
    assert erased_objects(done.store) == gone - there != set()


def test_the_next_collection_starts_anew_where_an_adapter_rests_on_it_and_repeats_nothing_elsewhere(
    snapshot: Snapshot,
) -> None:
    site = snapshot.restore()
    site.erase(OURS)
    assert site.collected("door") == ["q2", "q4", "q5", "q7"]
    assert site.collected("room") == []
    assert site.collected("yard") == ["q7"]
    assert site.collected("yard") == []


def test_what_arrives_late_is_refused(snapshot: Snapshot) -> None:
    site = snapshot.restore()
    site.erase(OURS)
    site.collected("yard")
    ask(site, "yard", ((8, OURS, USER), (9, OTHERS, USER)))
    erased = tombstones(open_store(site.store))
    assert site.collected("yard", erased) == ["q9"]


def test_erased_again_nothing_changes(snapshot: Snapshot) -> None:
    site = snapshot.restore()
    site.erase(OURS)
    after, notes = snapshot.files(), list[str]()
    again = site.erase(OURS, notes.append)
    assert again.again
    assert notes == ["tombstone", "survey"]
    assert snapshot.files() == after


def test_a_folder_that_is_given_later_is_cleaned_too_and_added_to_the_tombstone(
    snapshot: Snapshot, tmp_path: Path
) -> None:
    site = snapshot.restore()
    site.erase(OURS)
    line = snapshot.kept.joinpath("runs/demo/runs/champion/memories.jsonl").read_bytes()
    (tmp_path / "memories.jsonl").write_bytes(line)
    before = read_tombstone(open_store(site.store), Target("stream", OURS))
    places = type(site.places)(site.store, folders=(tmp_path,))
    assert not site.erase(OURS, places=places).again
    assert holding(CANARY, tmp_path) == []
    after = read_tombstone(open_store(site.store), Target("stream", OURS))
    assert before is not None
    assert after is not None
    assert after.state == "erased"
    assert after.erased["folders and caches"].records == before.erased["folders and caches"].records + CONTEXTS


def test_a_night_that_has_collected_it_loses(snapshot: Snapshot) -> None:
    site = snapshot.restore()
    store = open_store(site.store)
    known = {name: watermark(store, name) for name in ("door", "yard", "room")}
    site.erase(OURS)
    assert watermark(store, "door") != known["door"]
    assert watermark(store, "yard") != known["yard"]
    assert watermark(store, "room") == known["room"]
