"""kill -9 of vLLM, gateway, agent and database, each in turn, while streams are written through all four."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest
from databases import POSTGRESQL, PostgreSQL, postgresql
from gateway_process_parts import Process
from load_parts import Load, check, killed_meanwhile
from process_parts import AgentProcess
from serving_site import Policy, RealServer

from taskmem.records import Response, read_records

pytestmark = [pytest.mark.serving, pytest.mark.slow]

STREAMS = tuple(f"s{number}" for number in range(4))
LENGTH, ROUNDS = 40, 2


class Chain:
    """vLLM with a champion of `door`, a gateway and an agent as processes, and PostgreSQL; running inside the block."""

    def __init__(self, folder: Path, database: PostgreSQL) -> None:
        self._folder, self.database = folder, database
        self.vllm = RealServer(folder, Policy.make(folder / "made"))
        self._gateways: list[Process] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.vllm)
            self.champion = self.vllm.publish("door", 1)
            self._start_gateway()
            stack.callback(lambda: self._gateways[-1].run.kill())
            self.agent = stack.enter_context(self.agent_with(self.database.new_database(), "agent"))
            self._held = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def agent_with(self, database: str, instance: str) -> AgentProcess:
        settings = "{decoders: 1, ship_seconds: 0.2}"
        return AgentProcess(self._folder, database, f"http://127.0.0.1:{self._gateways[-1].port}", instance, settings)

    def load(self, agent: AgentProcess) -> Load:
        return Load(agent.url, self.vllm.token("door"), LENGTH)

    @property
    def kills(self) -> list[Callable[[], None]]:
        """Of each, its end and its start."""
        return [self._kill_vllm, self._kill_gateway, self._kill_agent, self._kill_database]

    @property
    def written(self) -> list[Response]:
        """What the gateways recorded."""
        return list(read_records(self._folder / "gateway" / "responses-gateway.jsonl", Response))

    def _start_gateway(self) -> None:
        before = self._gateways[-1].port if self._gateways else 0
        places = {"--policy-server": self.vllm.url, "--store": self._folder / "store"}
        places |= {"--adapters": self._folder / "adapters", "--responses": self._folder / "gateway"}
        self._gateways.append(Process(self._folder / f"gateway-{len(self._gateways)}.log", port=before, **places))

    def _kill_vllm(self) -> None:
        self.vllm.kill()
        self.vllm.start_again()

    def _kill_gateway(self) -> None:
        self._gateways[-1].run.kill()
        self._gateways[-1].run.wait()
        self._start_gateway()

    def _kill_agent(self) -> None:
        self.agent.kill()
        self.agent.start()

    def _kill_database(self) -> None:
        self.database.kill()
        self.database.start()


@pytest.fixture(params=[POSTGRESQL])
def chain(tmp_path: Path) -> Iterator[Chain]:
    with postgresql() as database, Chain(tmp_path, database) as chain:
        yield chain


def test_whatever_is_killed_nothing_is_lost_or_doubled_and_order_is_kept(
    chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load = chain.load(chain.agent)
    killed_meanwhile(load, chain.kills * ROUNDS, list(STREAMS))
    with chain.agent_with(f"sqlite:///{tmp_path}/calm.db", "calm") as other, chain.load(other).agent() as calm:
        rows = [calm.remember([load.segment(name, index) for name in STREAMS]) for index in range(LENGTH)]
        memories = {name: [row[number].text for row in rows] for number, name in enumerate(STREAMS)}
    check(load, chain.vllm.store, list(STREAMS), memories)
    recorded = [one.id for one in chain.written]
    assert len(set(recorded)) == len(recorded)
    # of each memory that is kept, and of those that a kill met before they were kept
    assert {one.adapter for one in chain.written} == {chain.champion}
    wanted = 2 * len(STREAMS) * LENGTH
    assert wanted <= len(recorded) <= wanted + len(chain.kills) * ROUNDS * len(STREAMS)
    with capsys.disabled():
        told = f"{len(STREAMS) * LENGTH} memories, {len(load.told.answers)} answers, {len(load.told.events)} events"
        print(f"\n{told} acknowledged, {len(chain.kills) * ROUNDS} kills, {len(recorded) - wanted} written anew")
