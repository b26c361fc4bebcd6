"""The agent over HTTP, on both databases: memories, windows that survive a restart, questions, feedback, repetitions."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from agent_parts import event
from service_parts import eventually
from site_parts import Site, clip, video
from standin import Scripted

from taskmem.records import Memory, Response, read_records


def texts(site: Site, stream: str, environment: str = "door") -> list[str | None]:
    with site.client(environment) as client:
        reply = client.get(f"/v1/streams/{stream}/memories", params={"limit": 1000})
    assert reply.status_code == 200, reply.text
    return [memory["text"] for memory in reply.json()["memories"]]


def test_a_segment_becomes_a_memory_and_stays_one(site: Site) -> None:
    reply = site.send("a", 0)
    assert reply.status_code == 201, reply.text
    memory = Memory.model_validate_json(reply.content)
    assert (memory.stream, memory.index, memory.start_s, memory.end_s) == ("a", 0, 0.0, 10.0)
    assert (memory.adapter, memory.text and memory.text[0]) == ("none", "1")
    assert texts(site, "a") == [memory.text]


def test_the_same_segment_again_gets_its_memory_and_costs_nothing(site: Site) -> None:
    first = site.send("a", 0)
    site.send("a", 1)
    again = site.send("a", 0)
    assert (again.status_code, again.content) == (200, first.content)
    assert site.gateway.asked == {"a:0": 1, "a:1": 1}


@pytest.mark.parametrize(("index", "data"), [(1, clip("b", 1)), (0, clip("a", 0)), (1, video("a", 1))])
def test_what_contradicts_the_stream_is_refused(site: Site, index: int, data: bytes) -> None:
    site.send("a", 1)
    reply = site.send("a", index, data=data)
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "conflict")
    assert len(texts(site, "a")) == 1


def test_a_restart_changes_nothing_of_what_is_written_afterwards(
    sites: Callable[..., Site], database: str, scripted: Scripted
) -> None:
    site = sites(database, scripted)
    for index in range(6):
        assert site.send("broken", index).status_code == 201
        if index in (0, 2, 3):
            site.restart()
    for index in range(6):
        assert site.send("whole", index, data=clip("broken", index)).status_code == 201
    assert texts(site, "broken") == texts(site, "whole")
    # the window of three: the policy was shown one, two, then three clips
    assert [text and text[0] for text in texts(site, "broken")] == ["1", "2", "3", "3", "3", "3"]


def test_a_video_is_cut_and_sampled_to_the_clip_that_the_policy_sees(site: Site) -> None:
    assert site.send("a", 0, data=video("a", 0), sampled="false").status_code == 201
    assert site.send("a", 1, data=clip("a", 1)).status_code == 201
    first, second = site.gateway.bodies
    assert str(first["messages"]).count("video_url") == 2  # type and address
    assert str(second["messages"]).count("video_url") == 4


def test_times_may_be_given(site: Site) -> None:
    assert site.send("a", 0, start_s=5, end_s=12.5).json()["end_s"] == 12.5
    early = site.send("a", 1, start_s=12)
    assert (early.status_code, "before the last ends" in early.text) == (409, True)
    assert site.send("a", 1, start_s=12.5).json()["start_s"] == 12.5
    assert site.send("a", 2, start_s=30, end_s=41).status_code == 400


def test_streams_are_written_side_by_side_and_each_in_order(site: Site) -> None:
    site.gateway.delay = 0.1
    together = 0
    most = 0
    lock = threading.Lock()
    inner = site.gateway.writes

    def counted(body: dict) -> tuple[list[int], list[int]]:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        try:
            return inner(body)
        finally:
            with lock:
                together -= 1

    site.gateway.writes = counted
    names = [f"s{number}" for number in range(6)]

    def stream(name: str) -> list[int]:
        return [site.send(name, index, data=clip("a", index)).status_code for index in range(3)]

    with ThreadPoolExecutor(6) as pool:
        assert set(map(tuple, pool.map(stream, names))) == {(201, 201, 201)}
    assert len({tuple(texts(site, name)) for name in names}) == 1


def test_the_same_segment_sent_many_times_at_once_is_written_once(site: Site) -> None:
    site.gateway.delay = 0.05
    with ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda _: site.send("a", 0), range(6)))
    assert sorted(reply.status_code for reply in replies) == [200] * 5 + [201]
    assert len({reply.content for reply in replies}) == 1
    assert site.gateway.asked == {"a:0": 1}


def test_the_caller_s_own_token_and_environment_reach_the_gateway(site: Site) -> None:
    site.gateway.served = lambda name: f"{name}@v4" if name == "room" else "policy"
    memory = site.send("a", 0, environment="room").json()
    assert memory["adapter"] == "room@v4"
    assert site.gateway.bodies[0]["model"] == "room"
    headers = site.gateway.headers[0]
    assert headers["authorization"] == f"Bearer {site.tokens['room']}"
    assert (headers["x-taskmem-stream"], headers["x-taskmem-memories"]) == ("a", "a:0")


def test_a_gateway_that_fails_is_an_outage_and_the_segment_can_be_sent_again(site: Site) -> None:
    site.gateway.status = 403
    reply = site.send("a", 0)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "2")
    assert site.tokens["door"] not in site.log.getvalue()
    site.gateway.status = 200
    assert site.send("a", 0).status_code == 201


def test_a_question_is_answered_once_from_what_was_remembered(site: Site) -> None:
    site.send("a", 0)
    site.send("a", 1)
    first = site.ask("a", text="what colour is the door?")
    assert first.status_code == 201, first.text
    assert [ground["id"] for ground in first.json()["memories"]] == ["a:0", "a:1"]
    assert (first.json()["outcome"], first.json()["answer"]) == ("insufficient", None)
    site.send("a", 2)
    again = site.ask("a", text="what colour is the door?")
    assert (again.status_code, again.content) == (200, first.content)
    other = site.ask("a", text="what else?")
    assert other.status_code == 409
    assert len(site.ask("a", id="q2", asked_at_s=20.0).json()["memories"]) == 2


def test_of_an_unknown_stream_nothing_is_known(site: Site) -> None:
    for reply in (
        site.ask("never"),
        site.client().get("/v1/streams/never/memories"),
        site.client().delete("/v1/streams/never"),
    ):
        assert reply.status_code == 404
        assert reply.json()["error"]["type"] == "invalid_request_error"


def test_the_response_log_says_what_an_answer_rests_on_and_no_text(site: Site) -> None:
    site.send("a", 0)
    reply = site.ask("a", text="SECRET question?")
    (line,) = read_records(site.folder / "responses" / "responses-agent.jsonl", Response)
    assert (line.id, line.environment, line.stream) == (reply.headers["x-request-id"], "door", "a")
    assert (line.question, line.memories, line.adapter) == ("q1", ("a:0",), "none")
    assert "SECRET" not in (site.folder / "responses" / "responses-agent.jsonl").read_text()
    assert "SECRET" not in site.log.getvalue()
    requests = site.log.requests(2)
    assert {line["environment"] for line in requests} == {"door"}


def said(number: int, **changes: object) -> dict:
    fields = event(number, **changes).model_dump(mode="json")
    del fields["environment"]
    return fields


def test_feedback_is_kept_once_and_shipped(site: Site) -> None:
    with site.client() as client:
        codes = [client.post("/v1/feedback", json=said(n)).status_code for n in (1, 2, 1)]
        assert codes == [201, 201, 200]
        assert client.post("/v1/feedback", json=said(1, outcome="correct")).status_code == 409
    eventually(lambda: site.service.outbox.waiting() == (0, 0.0))
    keys = list(site.store.list("feedback/door/"))
    lines = b"".join(site.store.get(key).data for key in keys)
    assert [lines.count(f'"id": "e{n}"'.encode()) for n in (1, 2)] == [1, 1]
    with site.client() as client:
        assert client.post("/v1/feedback", json=said(1)).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"id": NaN}',
        b"\xff",
        b"[" * 100_000,
        b'{"id": "e1", "environment": "door"}',
        b'{"id": "e1", "text": "\\ud800"}',
        b"1" * 5000,
    ],
)
@pytest.mark.parametrize("path", ["/v1/feedback", "/v1/streams/a/questions"])
def test_what_is_no_request_is_refused_and_not_repeated(site: Site, path: str, body: bytes) -> None:
    with site.client() as client:
        reply = client.post(path, content=body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid")


def test_metrics_count_what_was_done(site: Site) -> None:
    site.send("a", 0)
    site.send("a", 0)
    site.send("a", 0, data=b"no video")
    site.send("b", 0, data=b"no video")
    site.ask("a")
    with site.client() as client:
        client.post("/v1/feedback", json=said(1, outcome="correct"))
        client.get("/v1/streams/never/memories")
    with site.client(None) as client:
        told = client.get("/metrics").text
    for line in (
        'taskmem_segments_total{result="written"} 1.0',
        'taskmem_segments_total{result="repeated"} 1.0',
        'taskmem_segments_total{result="refused"} 2.0',
        'taskmem_questions_total{outcome="insufficient"} 1.0',
        'taskmem_feedback_total{outcome="correct"} 1.0',
        'taskmem_calls_total{outcome="answered",role="policy"} 1.0',
        'taskmem_refusals_total{reason="not_found",service="agent"} 1.0',
        'taskmem_refusals_total{reason="invalid",service="agent"} 1.0',
        'taskmem_refusals_total{reason="conflict",service="agent"} 1.0',
        "taskmem_memory_tokens_count 1.0",
        "taskmem_segment_seconds_count 1.0",
        "taskmem_question_seconds_count 1.0",
    ):
        assert line in told.splitlines(), line
    assert "door" not in told


def test_health_needs_no_token_and_says_what_is_missing(site: Site, tmp_path: Path) -> None:
    with site.client(None) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").json() == {"ready": True, "missing": []}
        site.service.responses.close()
        assert (client.get("/readyz").status_code, client.get("/readyz").json()["missing"]) == (503, ["response log"])


def test_what_is_served_is_told_to_its_own(site: Site) -> None:
    site.gateway.served = lambda name: f"{name}@v2"
    with site.client("room") as client:
        told = client.get("/v1/served").json()
    assert told == {"environment": "room", "policy": site.service.policy, "adapter": "room@v2"}


ONCE = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@ONCE
@pytest.mark.parametrize("served", ["room@v1", "door", "Qwen", ""])
def test_a_memory_that_another_model_wrote_is_not_kept(site: Site, served: str) -> None:
    site.gateway.served = lambda _: served
    assert site.send("a", 0).status_code == 503
    site.gateway.served = lambda _: "policy"
    assert site.send("a", 0).status_code == 201


@ONCE
def test_a_gateway_that_serves_another_policy_is_an_outage(site: Site) -> None:
    site.gateway.policy = "e" * 64
    assert site.send("a", 0).status_code == 503
    site.gateway.policy = site.service.policy
    assert site.send("a", 0).status_code == 201


@ONCE
def test_too_many_at_once_are_told_to_come_again(sites: Callable[..., Site], database: str, scripted: Scripted) -> None:
    site = sites(database, scripted, at_once=1, waiting=1)
    site.gateway.delay = 0.3
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda n: site.send(f"s{n}", 0, data=clip("a", 0)), range(12)))
    codes = [reply.status_code for reply in replies]
    assert set(codes) == {201, 429} and codes.count(201) >= 2
    assert {reply.headers["retry-after"] for reply in replies if reply.status_code == 429} == {"1"}


@ONCE
def test_an_answer_says_which_adapter_s_memories_it_rests_on(site: Site) -> None:
    site.gateway.served = lambda _: "door@v3"
    site.send("a", 0)
    # of an adapter that no registry knows nothing could be audited, so that nothing is answered
    assert site.ask("a").status_code == 503
    site.service.lookup.weights = lambda adapter: "f" * 64 if adapter == "door@v3" else ""
    assert site.ask("a").json()["adapter"] == "door@v3"
    (line,) = read_records(site.folder / "responses" / "responses-agent.jsonl", Response)
    assert (line.adapter, line.adapter_digest) == ("door@v3", "f" * 64)
