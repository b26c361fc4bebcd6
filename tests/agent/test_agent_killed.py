"""kill -9 of the agent and of the database under load: nothing acknowledged is lost, nothing is doubled, order is kept."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from databases import BOTH, PostgreSQL, postgresql
from load_parts import Load, check, killed_meanwhile, shipped
from process_parts import AgentProcess
from service_parts import NOW, eventually
from standin import Gateway, Scripted

from taskmem.gateway.tokens import create_token
from taskmem.records import Memory
from taskmem.store import LocalStore

STREAMS = 3


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
        # all show the same, so that each must be told the same
        load.stream("calm")
        calm = [memory.text for memory in load.told.memories["calm"]]
        check(load, LocalStore(killable.folder / "store"), names, dict.fromkeys(names, calm))
        # written anew is only what a kill met on its way
        assert sum(killable.gateway.asked.values()) <= (len(names) + 1) * length + 10 * len(names)


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
