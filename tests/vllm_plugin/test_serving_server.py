"""vLLM's HTTP server: adapters come in while others are served, and a refusal harms nobody."""

import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

import pytest
import torch
from plugin_parts import REFUSED, SIZE, AdapterPress, drawn
from reference_parts import Ask, Reference

if TYPE_CHECKING:
    from serving_parts import Server

pytestmark = pytest.mark.serving

Many = Callable[[str, int], dict[str, Path]]
Messages = list[Any]
STREAMS, LENGTH, HOT = 16, 120, 20


def by_http(ask: Ask) -> Messages:
    from serving_parts import with_clips  # noqa: PLC0415 - only where vLLM is

    return with_clips(ask.messages, ask.clips)


@pytest.fixture(scope="module")
def messages(reference: Reference) -> list[Messages]:
    return [by_http(ask) for ask in reference.asks]


def in_order(server: "Server", asks: list[tuple[str | None, Messages]]) -> list[list[int]]:
    return [server.tokens(adapter, messages) for adapter, messages in asks]


def in_parallel(server: "Server", asks: list[tuple[str | None, Messages]], clients: int) -> list[list[int]]:
    from serving_parts import at_once  # noqa: PLC0415

    with at_once(clients) as pool:
        return list(pool.map(lambda ask: server.tokens(*ask), asks))


def test_an_mp4_by_http_is_read_and_steered_as_in_process(
    server: "Server", reference: Reference, messages: list[Messages], press: AdapterPress, tmp_path: Path
) -> None:
    vector = drawn(4, 5)
    assert server.load("mp4@v1", press.save(tmp_path / "a", vector))[0] == 200
    for ask, sent in zip(reference.asks, messages, strict=True):
        for name, added in ((None, torch.zeros(SIZE)), ("mp4@v1", vector)):
            reply = server.chat(name, sent)
            assert tuple(reply["prompt_token_ids"]) == ask.ids
            assert tuple(reply["token_ids"]) == reference.write(ask, added)[0]


def test_forty_environments_through_eight_slots(server: "Server", messages: list[Messages], many: Many) -> None:
    every_reply_is_its_own(server, messages, many("slot", 40), clients=16)


@pytest.mark.slow
def test_two_hundred_environments_through_64_slots(
    exported: Path, messages: list[Messages], many: Many, tmp_path: Path
) -> None:
    from serving_parts import Server  # noqa: PLC0415

    with Server(exported, tmp_path / "log", slots=64, kept=128) as large:
        every_reply_is_its_own(large, messages, many("full", 200), clients=32)


def every_reply_is_its_own(server: "Server", messages: list[Messages], folders: dict[str, Path], clients: int) -> None:
    for name, folder in folders.items():
        assert server.load(name, folder)[0] == 200
    asks = [(name, messages[i % len(messages)]) for i, name in enumerate(folders)]
    single = in_order(server, asks)
    # every adapter twice and out of order, so that slots change hands while others are written
    order = [(7 * i + i // len(asks)) % len(asks) for i in range(2 * len(asks))]
    assert set(order) == set(range(len(asks)))
    assert in_parallel(server, [asks[i] for i in order], clients) == [single[i] for i in order]
    assert len({tuple(tokens) for tokens in single}) > len(messages)


def run(server: "Server", asks: list[tuple[str | None, Messages]]) -> list[tuple[list[int], list[float]]]:
    """All as streams side by side: the tokens of each, and the gaps between its pieces in seconds."""
    from serving_parts import at_once  # noqa: PLC0415

    def one(ask: tuple[str | None, Messages]) -> tuple[list[int], list[float]]:
        pieces = list(server.stream(*ask, LENGTH))
        times = [when for when, _ in pieces]
        return [t for _, tokens in pieces for t in tokens], [b - a for a, b in pairwise(times)]

    with at_once(len(asks)) as pool:
        return list(pool.map(one, asks))


def test_hot_loads_leave_running_streams_as_they_are(
    server: "Server", messages: list[Messages], many: Many, capsys: pytest.CaptureFixture[str]
) -> None:
    running, hot = many("run", 6), many("hot", HOT)
    for name, folder in running.items():
        assert server.load(name, folder)[0] == 200
    names = [None, *running]
    asks = [(names[i % len(names)], messages[i % len(messages)]) for i in range(STREAMS)]
    quiet = run(server, asks)
    took: list[tuple[float, int]] = []

    def load() -> None:
        for name, folder in hot.items():
            start = time.monotonic()
            status, _ = server.load(name, folder)
            took.append((time.monotonic() - start, status))

    loading = threading.Timer(0.3, load)
    loading.start()
    busy = run(server, asks)
    loading.join()
    assert {status for _, status in took} == {200}
    assert [tokens for tokens, _ in busy] == [tokens for tokens, _ in quiet]
    assert {len(tokens) for tokens, _ in busy} == {LENGTH}
    gaps = [quantiles([gap for _, between in side for gap in between], n=100)[98] * 1e3 for side in (quiet, busy)]
    with capsys.disabled():
        print(
            f"\n{HOT} hot loads during {STREAMS} streams: median {median(t for t, _ in took) * 1e3:.1f} ms a load; "
            f"p99 gap between tokens {gaps[0]:.1f} ms before, {gaps[1]:.1f} ms during"
        )


@pytest.mark.parametrize("what", REFUSED)
def test_a_refusal_says_why_and_the_server_goes_on(
    what: str, server: "Server", messages: list[Messages], saved: Path
) -> None:
    spoil, reason = REFUSED[what]
    before = server.tokens(None, messages[0])
    status, answer = server.load("spoilt@v1", spoil(saved))
    assert status >= 400
    assert reason in answer
    assert "spoilt@v1" not in server.get("/v1/models")
    assert server.tokens(None, messages[0]) == before


def test_a_name_stays_what_it_was(
    server: "Server", messages: list[Messages], press: AdapterPress, tmp_path: Path
) -> None:
    first = press.save(tmp_path / "first", drawn(11, 7))
    assert server.load("fixed@v1", first)[0] == 200
    written = server.tokens("fixed@v1", messages[1])
    status, answer = server.load("fixed@v1", first, load_inplace=True)
    assert status >= 400 and "never replaced in place" in answer
    # unloaded and loaded again from the same path with other weights: vLLM's prefix cache would take it for the old one
    assert server.unload("fixed@v1")[0] == 200
    press.save(first, drawn(12, 7))
    status, answer = server.load("fixed@v1", first)
    assert status >= 400 and "another vector before" in answer
    press.save(first, drawn(11, 7))
    assert server.load("fixed@v1", first)[0] == 200
    assert server.tokens("fixed@v1", messages[1]) == written
