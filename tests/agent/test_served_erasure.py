"""DELETE of a stream: its rows, clips, answers, feedback and shipped parts go, a tombstone stays, and others keep everything."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from agent_parts import event
from service_parts import eventually
from site_parts import Site

from taskmem.config import load_profile
from taskmem.erasure import tombstones
from taskmem.feedback import collect_store
from taskmem.feedback.collection import scoped, tombstone_of
from taskmem.records import Response, read_records
from taskmem.store import StoreFault

PHRASE = "xylophone"  # in nothing else


def feedback(number: int, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = event(number, **changes).model_dump(mode="json")
    del fields["environment"]
    return fields


@pytest.fixture
def told(site: Site) -> Site:
    """Two streams of the door; about both there is feedback, shipped and not."""
    for stream in ("a", "b"):
        for index in range(3):
            assert site.send(stream, index).status_code == 201
        assert site.ask(stream, id=f"q-{stream}", text=f"{PHRASE} in {stream}?").status_code == 201
        with site.client() as client:
            for number in range(2):
                body = feedback(number, id=f"{stream}{number}", stream=stream, text=f"{PHRASE} in {stream}?")
                assert client.post("/v1/feedback", json=body).status_code == 201
    eventually(lambda: site.service.outbox.waiting()[0] == 0)
    return site


def shipped(site: Site) -> list[str]:
    lines = [line for key in site.store.list("feedback/door/") for line in site.store.get(key).data.splitlines()[1:]]
    return sorted(json.loads(line)["id"] for line in lines)


def test_of_the_stream_nothing_is_left_and_of_the_other_everything(told: Site) -> None:
    with told.client() as client:
        others = client.get("/v1/streams/b/memories").content
        reply = client.delete("/v1/streams/a")
    assert reply.status_code == 200, reply.text
    assert reply.json()["erased"] == {"memories": 3, "clips": 2, "answers": 1, "feedback": 2, "shipped": 2}
    assert shipped(told) == ["b0", "b1"]
    assert tombstone_of("stream", scoped("door", "a")) in tombstones(told.store)
    with told.client() as client:
        assert client.get("/v1/streams/b/memories").content == others
    log = read_records(told.folder / "responses" / "responses-agent.jsonl", Response)
    archived = [
        r for path in (told.folder / "responses").glob("responses.agent.*") for r in read_records(path, Response)
    ]
    assert {response.stream for response in [*log, *archived]} == {"b"}


def test_what_still_comes_of_it_is_refused(told: Site) -> None:
    with told.client() as client:
        client.delete("/v1/streams/a")
        replies = [
            told.send("a", 9),
            told.ask("a", id="q9"),
            client.get("/v1/streams/a/memories"),
            client.post("/v1/feedback", json=feedback(9, stream="a")),
        ]
    assert [(reply.status_code, reply.json()["error"]["code"]) for reply in replies] == [(410, "stream_erased")] * 4


def test_erasing_again_changes_nothing(told: Site) -> None:
    with told.client() as client:
        client.delete("/v1/streams/a")
        before = tombstones(told.store)
        again = client.delete("/v1/streams/a")
    assert (again.status_code, set(again.json()["erased"].values())) == (200, {0})
    assert tombstones(told.store) == before


def test_a_stream_that_only_feedback_speaks_of_can_be_erased(site: Site) -> None:
    with site.client() as client:
        client.post("/v1/feedback", json=feedback(1, stream="elsewhere"))
        assert client.delete("/v1/streams/elsewhere").json()["erased"]["feedback"] == 1
        assert client.post("/v1/feedback", json=feedback(2, stream="elsewhere")).status_code == 410


def test_an_erasure_that_broke_off_is_completed_by_the_same_request(
    told: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise StoreFault("feedback/door")

    monkeypatch.setattr(told.service.forgetter._elsewhere, "erase", broken)
    with told.client() as client:
        assert client.delete("/v1/streams/a").status_code == 503
        assert told.send("a", 9).status_code == 410
    monkeypatch.undo()
    told.restart()
    with told.client() as client:
        done = client.delete("/v1/streams/a")
    assert (done.status_code, done.json()["erased"]["shipped"]) == (200, 2)
    assert shipped(told) == ["b0", "b1"]


def test_the_tombstone_closes_the_stream_to_collectors(told: Site, tmp_path: Path) -> None:
    with told.client() as client:
        client.delete("/v1/streams/a")
    profile = load_profile("miniature")
    collection = collect_store(told.store, profile.mining, tombstones(told.store))
    assert {q.stream for questions in collection.questions.values() for q in questions} == {"b"}


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_no_byte_of_the_stream_stays_in_the_file(told: Site) -> None:
    # what PostgreSQL keeps of dead rows is its vacuum's affair
    with told.client() as client:
        memory = client.get("/v1/streams/a/memories").json()["memories"][0]["text"]
        words = memory.split()
        client.delete("/v1/streams/a")
    found = subprocess.run(["grep", "-c", "-a", f"{PHRASE} in a", *told.folder.glob("agent.db*")], check=False)
    assert found.returncode == 1
    assert (
        subprocess.run(["grep", "-c", "-a", " ".join(words), *told.folder.glob("agent.db*")], check=False).returncode
        == 1
    )
