"""Thousands of hostile requests to a real process: no crash, only documented statuses, memory bounded, honest clients served."""

from collections import Counter
from pathlib import Path

import httpx2
import pytest
from hostile_parts import Hostile, Target
from process_parts import AgentProcess
from service_parts import NOW
from site_parts import clip, video
from standin import Gateway, Scripted

from taskmem.gateway.tokens import create_token
from taskmem.store import LocalStore

# those of taskmem.agent.routes; 0: the connection was closed on a client that had sent no request, or was gone
DOCUMENTED = {0, 200, 201, 400, 401, 404, 405, 408, 409, 410, 413, 429, 503}
SETTINGS = """
decoders: 2
decode_seconds: 5.0
limits: {body_bytes: 4194304, held_bytes: 33554432, header_seconds: 1.0, body_seconds: 2.0, stall_seconds: 5.0}
"""
ROOM = 200 << 20  # bytes above what the process has once it has served everything once


def attacked(folder: Path, scripted: Scripted, count: int) -> None:
    store = LocalStore(folder / "store")
    token, other = (create_token(store, name, "a test", NOW) for name in ("door", "room"))
    with (
        Gateway(scripted) as gateway,
        AgentProcess(folder, f"sqlite:///{folder}/agent.db", gateway.url, settings=SETTINGS) as agent,
        httpx2.Client(base_url=agent.url, timeout=60, trust_env=False) as honest,
    ):
        honest.headers["Authorization"] = f"Bearer {other}"
        served(honest, 0)
        hostile = Hostile(Target("127.0.0.1", agent.port, token), seed=1)
        before = agent.peak_bytes()
        statuses = hostile.send(count)
        assert agent.alive()
        assert {status for _, status in statuses} <= DOCUMENTED, agent.lines("fault")
        # each kind was refused where it had to be, and some of it came through
        kinds = {kind: Counter(s for k, s in statuses if k == kind) for kind, _ in statuses}
        assert kinds["huge body"].keys() <= {413, 408, 0}, kinds
        assert kinds["name"].keys() <= {400, 404, 405, 0}, kinds
        assert kinds["SQL"].keys() <= {201, 400, 404, 409, 200}, kinds
        # one large frame is a video of one segment, and becomes a small clip
        assert 400 in kinds["bomb"] and kinds["bomb"].keys() <= {201, 400, 413, 503, 0}, kinds
        assert {200, 201} & kinds["fuzzed JSON"].keys(), kinds
        assert agent.peak_bytes() - before < ROOM
        served(honest, 1)
        assert not agent.lines("fault")
    assert all(line["status"] != 500 for line in agent.lines("request"))
    assert {path.name for path in folder.iterdir()} == {
        *("store", "responses", "agent.db", "agent.db.lock", "agent.log", "agent.yaml")
    }


def served(client: httpx2.Client, index: int) -> None:
    """What an honest client asks for, of another environment than the hostile one's."""
    for data, sampled in ((video("calm", index), "false"), (clip("calm", index), "true")):
        reply = client.post(
            f"/v1/streams/{sampled}/segments", params={"index": index, "sampled": sampled}, content=data
        )
        assert reply.status_code == 201, reply.text
    asked = client.post("/v1/streams/true/questions", json={"id": f"q{index}", "text": "what?"})
    assert len(asked.json()["memories"]) == index + 1
    assert client.get("/readyz").status_code == 200


def test_hundreds_of_hostile_requests_do_no_harm(tmp_path: Path, scripted: Scripted) -> None:
    attacked(tmp_path, scripted, 250)


@pytest.mark.slow
def test_ten_thousand_hostile_requests_do_no_harm(tmp_path: Path, scripted: Scripted) -> None:
    attacked(tmp_path, scripted, 10_000)
