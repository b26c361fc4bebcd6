"""A source of feedback is erased: what it said is found nowhere, what the streams showed stays."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from erasure_parts import Site, Snapshot, dvc
from erasure_texts import CANARY, CONTEXTS, NEIGHBOUR, OURS, USER, VOICE, holding

from taskmem.erasure.erase import Erasure
from taskmem.erasure.target import Target
from taskmem.erasure.tombstones import read_tombstone
from taskmem.feedback import read_collection
from taskmem.store import open_store


@dataclass(frozen=True)
class Done:
    site: Site
    said: Erasure
    clone: Path


@pytest.fixture(scope="module")
def done(snapshot: Snapshot) -> Iterator[Done]:
    site = snapshot.restore()
    said = site.erase(USER)
    yield Done(site, said, site.fresh_clone("fresh"))


def test_what_the_user_said_and_its_hash_are_found_nowhere(done: Done) -> None:
    assert holding(VOICE, done.site.root) == []
    assert holding(USER, done.site.root) == []


def test_what_the_streams_showed_and_the_neighbour_said_is_still_there(done: Done) -> None:
    runs = done.site.run / "runs"
    assert len((runs / "rollouts" / "rollouts.jsonl").read_text().splitlines()) == 2 * CONTEXTS
    assert len(list((runs / "segments" / "clips" / OURS).glob("*.mp4"))) == CONTEXTS
    assert holding(CANARY, runs)
    assert holding(NEIGHBOUR, done.site.events)
    assert len(list(open_store(done.site.store).list("rollouts/"))) == 2 * CONTEXTS
    assert [path.name for path in (done.site.run / "trunks").iterdir()] == [f"{'9' * 64}.safetensors"]


def test_both_adapters_of_the_door_are_named_and_the_rooms_is_not(done: Done) -> None:
    assert done.said.adapters == ("door@v1", "door@v2")
    (leading,) = [line for line in done.said.remaining if line.startswith("door@v2: ")]
    assert (
        "it is champion until another one is promoted; retire with `taskmem registry rollback door --to none`"
        in leading
    )
    stone = read_tombstone(open_store(done.site.store), Target("source", USER))
    assert stone is not None
    assert stone.retraining == ("door",)


def test_a_question_with_the_same_id_in_another_environment_stays(done: Done) -> None:
    pairs = done.site.run / "runs" / "night-1" / "preferences"
    assert len((pairs / "room" / "preferences.jsonl").read_text().splitlines()) == 2
    kept = (pairs / "door" / "preferences.jsonl").read_text()
    assert [json.loads(line)["questions"] for line in kept.splitlines()] == [["q2"], ["q5"]]


def test_the_influence_of_the_others_is_still_told(done: Done) -> None:
    told = json.loads((done.clone / "environments/door/adapter/influence.json").read_text())
    assert list(told["sources"]) == [NEIGHBOUR]
    assert [pair["sources"] for pair in told["pairs"]] == [[NEIGHBOUR], [NEIGHBOUR]]


def test_the_head_is_whole_without_the_user(done: Done) -> None:
    assert json.loads(dvc(done.clone, "status", "--json")) == {}
    collection = read_collection(done.clone / "environments/door/feedback")
    assert collection.sources == {"door": {"q2": (NEIGHBOUR,), "q5": (NEIGHBOUR,)}}
    assert [question.id for question in collection.questions["door"]] == ["q2", "q5"]


def test_the_next_collections_go_on(snapshot: Snapshot) -> None:
    site = snapshot.restore()
    site.erase(USER)
    assert site.collected("door") == ["q2", "q5", "q7"]
    assert site.collected("yard") == ["q7"]
    assert site.collected("room") == []
