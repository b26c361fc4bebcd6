"""Places are given fairly, and none is lost whoever leaves when."""

import asyncio
import random
from collections import Counter

import pytest

from taskmem.gateway.places import Places
from taskmem.service import Refused


def places(in_flight: int = 1, waiting: int = 100, share: float = 1.0, wait_seconds: float = 5.0) -> Places:
    return Places(in_flight, waiting, share, wait_seconds, 2.0)


class Visits:
    """Requests that stay until they are told to go; `order` is how they were served."""

    def __init__(self, of: Places) -> None:
        self.of, self.order = of, list[str]()
        self.go: dict[str, asyncio.Event] = {}

    async def visit(self, name: str) -> None:
        environment = name[0]
        self.go[name] = asyncio.Event()
        with self.of.admitted(environment):
            async with self.of.served(environment):
                self.order.append(name)
                await self.go[name].wait()

    async def all(self, *names: str) -> dict[str, asyncio.Task[None]]:
        tasks = {name: asyncio.create_task(self.visit(name)) for name in names}
        await asyncio.sleep(0.01)
        return tasks


def test_a_free_place_is_for_who_has_the_fewest_and_among_equals_for_who_came_first() -> None:
    async def run() -> None:
        visits = Visits(places(in_flight=2))
        tasks = await visits.all("a1", "a2", "a3", "a4", "b1", "c1", "b2")
        assert visits.order == ["a1", "a2"]
        assert (visits.of.in_flight, visits.of.waiting) == (2, 5)
        for name in ("a1", "b1", "c1", "a2", "a3", "b2", "a4"):
            visits.go[name].set()
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks.values())
        assert visits.order == ["a1", "a2", "b1", "c1", "b2", "a3", "a4"]
        assert (visits.of.in_flight, visits.of.waiting) == (0, 0)

    asyncio.run(run())


def test_one_environment_has_its_share_at_most_and_everybody_at_least_one() -> None:
    async def run() -> None:
        visits = Visits(places(in_flight=1, waiting=4, share=0.4))
        tasks = await visits.all("a1", "a2", "a3", "b1")
        with pytest.raises(Refused, match="this environment has too many requests here"):
            await tasks["a3"]
        with places(in_flight=1, waiting=0, share=0.1).admitted("a"):
            pass
        more = await visits.all("b2", "c1", "d1")
        with pytest.raises(Refused, match="too many requests are waiting"):
            await more["d1"]
        for task in {**tasks, **more}.values():
            task.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(20))
def test_no_place_is_lost_or_given_twice_whoever_leaves_when(seed: int) -> None:
    rng = random.Random(seed)

    async def run() -> None:
        of = places(in_flight=3, waiting=50, share=0.6, wait_seconds=0.005)
        seen: Counter[str] = Counter()

        async def request(environment: str) -> None:
            try:
                with of.admitted(environment):
                    async with of.served(environment):
                        seen["served"] += 1
                        seen["too many"] += of.in_flight > 3
                        await asyncio.sleep(rng.choice((0, 0.001, 0.004)))
            except Refused:
                seen["refused"] += 1

        tasks = []
        for _ in range(200):
            tasks.append(asyncio.create_task(request(rng.choice("aaaab"))))
            if rng.random() < 0.3:
                rng.choice(tasks).cancel()
            await asyncio.sleep(rng.choice((0, 0, 0.001)))
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(end) for end in ends} == {type(None), asyncio.CancelledError}
        assert (of.in_flight, of.waiting) == (0, 0)
        assert seen["served"] > 0 and seen["refused"] > 0 and seen["too many"] == 0
        # all three can be had again
        async with of.served("a"), of.served("a"), of.served("b"):
            assert of.in_flight == 3

    asyncio.run(run())
