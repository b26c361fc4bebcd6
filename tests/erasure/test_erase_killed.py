"""An erasure is killed at any step and run again: it ends as if nothing had happened."""

import multiprocessing
import os
import signal

import pytest
from erasure_parts import Site, Snapshot
from erasure_texts import CANARY, OURS, USER, VOICE, holding

# the last step before it dies, and how many like it came before
STEPS = {
    OURS: [
        ("tombstone", 0),
        ("survey", 0),
        ("logs/deploy.log", 0),
        ("objects of the head", 0),
        ("head pushed", 0),
        ("remote/files/md5", 12),
        ("store", 1),
        ("aa/memories.jsonl", 0),
        ("feedback/door/questions/door.jsonl", 0),
        ("watermark of", 0),
        ("erased from", -1),
    ],
    USER: [("feedback of door", 0), ("remote/files/md5", 8), ("preferences.jsonl", 0)],
}


@pytest.fixture(scope="module")
def whole(snapshot: Snapshot) -> dict[str, tuple[list[str], dict[str, bytes]]]:
    """By target: the steps of an erasure that nobody disturbs, and what it leaves."""
    found = {}
    for name in STEPS:
        steps: list[str] = []
        snapshot.restore().erase(name, steps.append)
        found[name] = steps, snapshot.files()
    return found


def killed(site: Site, name: str, after: int) -> None:
    """Erase in a process of its own that dies after so many steps."""
    steps = iter(range(1, 10_000))

    def die(_: str) -> None:
        if next(steps) == after:
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=site.erase, args=(name, die))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(("name", "step", "number"), [(name, *step) for name, steps in STEPS.items() for step in steps])
def test_killed_at_any_step_and_run_again_it_ends_the_same(
    snapshot: Snapshot, whole: dict[str, tuple[list[str], dict[str, bytes]]], name: str, step: str, number: int
) -> None:
    steps, after = whole[name]
    site = snapshot.restore()
    killed(site, name, [at for at, said in enumerate(steps, 1) if step in said][number])
    site.erase(name)
    assert holding(CANARY if name == OURS else VOICE, site.root) == []
    assert snapshot.files() == after
