"""kill -9 of the agent and of the database under load: nothing acknowledged is lost, nothing is doubled, order is kept."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from agent_parts import event, question
from databases import BOTH, PostgreSQL, postgresql
from process_parts import AgentProcess
from service_parts import NOW, eventually
from site_parts import clip, sampled_segment
from standin import PROFILE, Gateway, Scripted

from taskmem.agent.answering import visible
from taskmem.agent.client import Patience, RemoteAgent
from taskmem.agent.writing import held_clips
from taskmem.endpoint.keys import ApiKey
from taskmem.files import sha256_bytes
from taskmem.gateway.tokens import create_token
from taskmem.records import Memory, Segment
from taskmem.store import LocalStore

STREAMS = 3


@dataclass
class Acknowledged:
    """What the clients were told is kept."""

    memories: dict[str, list[Memory]] = field(default_factory=dict)
    answers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(map(len, self.memories.values())) + len(self.answers) + len(self.events)


class Load:
    """Clients that send segments, questions and feedback for as long as it takes, each in its own thread."""

    def __init__(self, url: str, token: str, length: int) -> None:
        self._url, self._token, self.length = url, token, length
        # every stream shows the same, so that every stream must be told the same
        self.clips = {sha256_bytes(clip("film", index)): clip("film", index) for index in range(length)}
        self.told = Acknowledged()

    def agent(self) -> RemoteAgent:
        clips = held_clips(self.clips, PROFILE.video.limits)
        return RemoteAgent(self._url, ApiKey(self._token), clips, Patience(tries=400, seconds=30, pause=0.3, at_once=1))

    def segment(self, stream: str, index: int) -> Segment:
        return sampled_segment("film", index).model_copy(update={"stream": stream})

    def stream(self, name: str) -> None:
        with self.agent() as agent:
            for index in range(self.length):
                (memory,) = agent.remember([self.segment(name, index)])
                self.told.memories.setdefault(name, []).append(memory)
                asked = question(index, id=f"{name}-q{index}", stream=name, asked_at_s=index * 10.0 + 10)
                self.told.answers[asked.id] = agent.answer(asked).memories
                given = event(index, id=f"{name}-e{index}", stream=name, question=asked.id)
                agent.feedback(given)
                self.told.events.append(given.id)

    def run(self, names: list[str]) -> list[threading.Thread]:
        threads = [threading.Thread(target=self.stream, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        return threads


def killed_meanwhile(load: Load, kills: list[Callable[[], None]], names: list[str]) -> None:
    """Run the load; each kill comes when so much more was acknowledged."""
    threads = load.run(names)
    total = len(names) * load.length * 3
    for number, kill in enumerate(kills, 1):
        eventually(lambda number=number: load.told.count >= total * number // (len(kills) + 1), 300)
        time.sleep(random.Random(number).uniform(0, 0.05))
        assert load.told.count < total
        kill()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive()


def check(load: Load, store: LocalStore, names: list[str], gateway: Gateway) -> None:
    """Count everything against what was acknowledged."""
    with load.agent() as agent:
        load.stream("calm")
        whole = [memory.text for memory in load.told.memories["calm"]]
        for name in names:
            kept = stored(agent, name)
            assert [m.index for m in kept] == list(range(load.length))
            assert kept == load.told.memories[name]
            # the window was whole each time: one who was never killed writes the same
            assert [m.text for m in kept] == whole
            for index in range(load.length):
                asked = question(index, id=f"{name}-q{index}", stream=name, asked_at_s=index * 10.0 + 10)
                expected = tuple(f"{m.stream}:{m.index}" for m in visible(kept, asked))
                assert agent.answer(asked).memories == load.told.answers[asked.id] == expected
                assert agent.feedback(event(index, id=f"{name}-e{index}", stream=name, question=asked.id)) is False
    eventually(lambda: len(shipped(store)) >= len(load.told.events), 60)
    # collection counts an id once, so that a part that was shipped and not noted does no harm
    assert sorted(set(shipped(store))) == sorted(load.told.events)
    assert max(Counter(shipped(store)).values()) <= 2
    # written anew is only what a kill met on its way
    assert sum(gateway.asked.values()) <= (len(names) + 1) * load.length + 10 * len(names)


def stored(agent: RemoteAgent, stream: str) -> list[Memory]:
    reply = agent._ask("memories", "GET", f"/v1/streams/{stream}/memories", params={"limit": 1000})
    return [Memory.model_validate_json(json.dumps(memory)) for memory in reply.json()["memories"]]


def shipped(store: LocalStore) -> list[str]:
    keys = list(store.list("feedback/door/"))
    return [json.loads(line)["id"] for key in keys for line in store.get(key).data.splitlines()[1:]]


@pytest.fixture
def own_server() -> Iterator[PostgreSQL]:
    with postgresql() as server:
        yield server


@dataclass
class Killable:
    folder: Path
    database: str
    gateway: Gateway
    token: str
    server: PostgreSQL | None

    def agent(self, instance: str = "agent") -> AgentProcess:
        settings = "{decoders: 1, ship_seconds: 0.2}"
        return AgentProcess(self.folder, self.database, self.gateway.url, instance, settings)


@pytest.fixture(params=BOTH)
def killable(request: pytest.FixtureRequest, tmp_path: Path, scripted: Scripted) -> Iterator[Killable]:
    server: Any = request.getfixturevalue("own_server") if request.param == "postgresql" else None
    database = server.new_database() if server else f"sqlite:///{tmp_path}/agent.db"
    token = create_token(LocalStore(tmp_path / "store"), "door", "a test", NOW)
    with Gateway(scripted) as gateway:
        gateway.delay = 0.02
        yield Killable(tmp_path, database, gateway, token, server)


def run(killable: Killable, length: int, rounds: int) -> None:
    names = [f"s{number}" for number in range(STREAMS)]
    with killable.agent() as agent:
        load = Load(agent.url, killable.token, length)

        def kill_agent() -> None:
            agent.kill()
            agent.start()

        def kill_database() -> None:
            if killable.server is not None:
                killable.server.kill()
                killable.server.start()

        kills = [kill_agent, *([kill_database] if killable.server else [])]
        killed_meanwhile(load, kills * rounds, names)
        check(load, LocalStore(killable.folder / "store"), names, killable.gateway)


def test_a_killed_agent_or_database_loses_and_doubles_nothing(killable: Killable) -> None:
    run(killable, length=5, rounds=1)


@pytest.mark.slow
def test_however_often_they_are_killed_nothing_is_lost_or_doubled(killable: Killable) -> None:
    run(killable, length=30, rounds=6)


@pytest.mark.parametrize("killable", BOTH[1:], indirect=True)
def test_two_agents_on_one_database_write_each_stream_once_and_in_order(killable: Killable) -> None:
    with killable.agent("one") as one, killable.agent("two") as two:
        loads = [Load(agent.url, killable.token, 4) for agent in (one, two)]

        def both(name: str) -> list[list[Memory]]:
            # whoever comes second finds the memory of the first, or writes what follows it
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda load: load.stream(name), loads))
            return [load.told.memories[name] for load in loads]

        for name in ("x", "y"):
            first, second = both(name)
            assert first == second
            assert [m.index for m in first] == [0, 1, 2, 3]
        assert sum(killable.gateway.asked.values()) <= 2 * 2 * 4
        for load in loads:
            load.told.events = sorted(set(load.told.events))
        store = LocalStore(killable.folder / "store")
        eventually(lambda: set(shipped(store)) >= set(loads[0].told.events), 30)
        assert max(Counter(shipped(store)).values()) == 1
