"""Clients that load an agent while parts of it are killed, and the count of what they were told is kept."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from agent_parts import event, question
from service_parts import eventually
from site_parts import clip, sampled_segment
from standin import PROFILE

from taskmem.agent.answering import visible
from taskmem.agent.client import Patience, RemoteAgent
from taskmem.agent.writing import held_clips
from taskmem.endpoint.keys import ApiKey
from taskmem.files import sha256_bytes
from taskmem.records import Memory, Segment
from taskmem.store import LocalStore


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
    """Clients that send segments, questions and feedback for as long as it takes, each in its own thread; all show one film."""

    def __init__(self, url: str, token: str, length: int) -> None:
        self._url, self._token, self.length = url, token, length
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


def check(load: Load, store: LocalStore, names: list[str], calm: Mapping[str, Sequence[str]]) -> None:
    """Count everything against what was acknowledged; `calm` is what was written of each stream where nobody was killed."""
    with load.agent() as agent:
        for name in names:
            kept = stored(agent, name)
            assert [m.index for m in kept] == list(range(load.length))
            assert kept == load.told.memories[name]
            # the window was whole each time
            assert [m.text for m in kept] == calm[name]
            for index in range(load.length):
                asked = question(index, id=f"{name}-q{index}", stream=name, asked_at_s=index * 10.0 + 10)
                expected = tuple(f"{m.stream}:{m.index}" for m in visible(kept, asked))
                assert agent.answer(asked).memories == load.told.answers[asked.id] == expected
                assert agent.feedback(event(index, id=f"{name}-e{index}", stream=name, question=asked.id)) is False
    eventually(lambda: len(shipped(store)) >= len(load.told.events), 60)
    # collection counts an id once, so that a part that was shipped and not noted does no harm
    assert sorted(set(shipped(store))) == sorted(load.told.events)
    assert max(Counter(shipped(store)).values()) <= 2


def stored(agent: RemoteAgent, stream: str) -> list[Memory]:
    reply = agent._ask("memories", "GET", f"/v1/streams/{stream}/memories", params={"limit": 1000})
    return [Memory.model_validate_json(json.dumps(memory)) for memory in reply.json()["memories"]]


def shipped(store: LocalStore) -> list[str]:
    keys = list(store.list("feedback/door/"))
    return [json.loads(line)["id"] for key in keys for line in store.get(key).data.splitlines()[1:]]
