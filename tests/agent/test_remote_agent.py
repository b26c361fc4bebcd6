"""The agent behind a network is the agent of this process: the same memories, answers and feedback, with the shipped policy."""

from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from agent_parts import event, question
from site_parts import Site, clip, sampled_segment
from standin import PROFILE, Scripted, Shipped

from taskmem.agent import Agent, Answer, LocalAgent, Served
from taskmem.agent.client import Patience, RemoteAgent
from taskmem.agent.writing import held_clips
from taskmem.cli import shipped_base
from taskmem.endpoint.keys import ApiKey
from taskmem.errors import UserError
from taskmem.feedback import EventConflictError
from taskmem.policy.transformers_policy import TransformersPolicy
from taskmem.records import Memory
from taskmem.world.judges import WorldAnswerer

STREAMS = {name: [sampled_segment(name, index) for index in range(5)] for name in ("a", "b")}
ALL = [segment for stream in STREAMS.values() for segment in stream]
ASKED = [
    *((f"which room was it at 0:{second:02d}?", 50.0) for second in (5, 15, 25, 35, 45)),
    ("what was carried at 0:05?", 30.0),
]
CLIPS = held_clips({s.sha256: clip(s.stream, s.index) for s in ALL}, PROFILE.video.limits)


def lived(agent: Agent) -> tuple[list[Memory], list[Answer]]:
    """What an agent makes of two streams and questions about them."""
    memories = [memory for step in range(5) for memory in agent.remember([s[step] for s in STREAMS.values()])]
    asked = [
        question(number, id=f"{stream}-{number}", text=text, stream=stream, asked_at_s=at)
        for stream in (*STREAMS, "never-seen")
        for number, (text, at) in enumerate(ASKED)
    ]
    answers = [agent.answer(q) for q in asked]
    assert [agent.feedback(event(1)), agent.feedback(event(2)), agent.feedback(event(1))] == [True, True, False]
    return memories, answers


def test_it_writes_and_answers_what_the_agent_in_this_process_does(
    sites: Callable[..., Site], database: str, shipped: Shipped, tmp_path: Path
) -> None:
    site = sites(database, shipped)
    here = TransformersPolicy.load(shipped_base(), PROFILE.policy, CLIPS.frames_of)
    with LocalAgent(here, WorldAnswerer(), PROFILE.policy.window, 0, tmp_path / "events") as local:
        expected, served = lived(local), local.ready()
    with site.remote(ALL) as remote:
        assert lived(remote) == expected
        assert remote.ready() == served == Served(site.service.policy, "none")
    assert any(memory.text for memory in expected[0])
    assert any(answer.text for answer in expected[1]) and not all(answer.text for answer in expected[1])
    assert len({memory.text for memory in expected[0]}) > 5


@pytest.fixture
def remote_site(sites: Callable[..., Site], tmp_path: Path, scripted: Scripted) -> Site:
    return sites(f"sqlite:///{tmp_path}/agent.db", scripted)


def test_a_stream_out_of_order_is_refused_and_nothing_is_remembered(remote_site: Site) -> None:
    with remote_site.remote(ALL) as agent:
        agent.remember([STREAMS["a"][1]])
        for given, why in (
            ([STREAMS["b"][0], STREAMS["a"][0]], "segment 0 of stream a: segment 1 was remembered before"),
            ([STREAMS["b"][0], STREAMS["b"][1]], "segment 1 of stream b: the stream comes twice"),
        ):
            with pytest.raises(UserError, match=why):
                agent.remember(given)
    with remote_site.remote(ALL) as another, pytest.raises(UserError, match=r"refused segment 0 of stream a \(409: .*"):
        another.remember([STREAMS["a"][0]])
    with remote_site.client() as client:
        assert client.get("/v1/streams/b/memories").status_code == 404


def test_feedback_that_contradicts_what_is_kept_is_refused(remote_site: Site) -> None:
    with remote_site.remote() as agent:
        agent.feedback(event(1))
        with pytest.raises(EventConflictError):
            agent.feedback(event(1, outcome="correct"))


def test_outside_its_block_it_does_nothing(remote_site: Site) -> None:
    agent = remote_site.remote(ALL)
    for call in (agent.ready, lambda: agent.remember([STREAMS["a"][0]]), lambda: agent.answer(question(1))):
        with pytest.raises(UserError, match="not started; use it inside its `with` block"):
            call()


def remote(url: str, sleeps: list[float], tries: int = 4) -> RemoteAgent:
    return RemoteAgent(url, ApiKey("tm_" + "x" * 43), CLIPS, Patience(tries=tries, seconds=5), sleeps.append)


def replies(*codes: int) -> Callable[[httpx2.Request], httpx2.Response]:
    """A server's replies, one after the other; 0 is none."""
    left = list(codes)

    def reply(request: httpx2.Request) -> httpx2.Response:
        code = left.pop(0)
        if not code:
            raise httpx2.ReadError("cut", request=request)
        body = {"environment": "door", "policy": "d" * 64, "adapter": "none"} if code == 200 else {"hello": 1}
        return httpx2.Response(code, headers={"Retry-After": "3"} if code == 503 else {}, json=body)

    return reply


@pytest.mark.parametrize(("codes", "waits"), [((200,), 0), ((503, 429, 0, 200), 3), ((500, 502, 504, 200), 3)])
def test_what_may_pass_is_waited_for(codes: tuple[int, ...], waits: int) -> None:
    sleeps: list[float] = []
    with remote("http://agent", sleeps) as agent:
        agent._client = httpx2.Client(base_url="http://agent", transport=httpx2.MockTransport(replies(*codes)))
        assert agent.ready() == Served("d" * 64, "none")
    assert len(sleeps) == waits
    assert codes[0] != 503 or 2.25 <= sleeps[0] <= 3.75


@pytest.mark.parametrize(
    ("codes", "why"),
    [
        ((503, 503, 503, 503), "refused the agent \\(503: no reason given\\)"),
        ((0, 0, 0, 0), "does not answer the agent \\(ReadError\\); start it"),
        ((401,), "refused the agent \\(401"),
        ((201,), "gave no ServedHere; is this an agent"),
    ],
)
def test_what_does_not_pass_is_one_line(codes: tuple[int, ...], why: str) -> None:
    with remote("http://agent", []) as agent:
        agent._client = httpx2.Client(base_url="http://agent", transport=httpx2.MockTransport(replies(*codes)))
        with pytest.raises(UserError, match=why) as stop:
            agent.ready()
    assert "\n" not in str(stop.value) and "tm_x" not in str(stop.value)


def test_a_server_that_is_not_there_is_named() -> None:
    with remote("http://127.0.0.1:9", [], tries=2) as agent, pytest.raises(UserError, match="ConnectError"):
        agent.ready()
