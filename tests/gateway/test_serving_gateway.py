"""Before real vLLM: every reply is that of its own adapter, whatever is promoted, killed or started again meanwhile."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import openai
import pytest
from gateway_process_parts import Process
from service_parts import eventually
from serving_site import Policy, RealSite, tokens

from taskmem.records import Response, read_records

pytestmark = pytest.mark.serving

STREAMS = 16
ENVIRONMENTS = ("door", "shop", "yard", "barn")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return Policy.make(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def site(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSite]:
    with RealSite(tmp_path_factory.mktemp("site"), policy) as site:
        for number, environment in enumerate(ENVIRONMENTS):
            site.publish(environment, number + 1)
        yield site


def ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", trust_env=False, timeout=10).status_code == 200
    except httpx2.TransportError:
        return False


def test_mixed_champions_and_none_write_what_vllm_writes_when_asked_itself(site: RealSite) -> None:
    asks = [((*ENVIRONMENTS, "none")[i % 5], i // 5, bool(i % 2)) for i in range(30)]
    with ThreadPoolExecutor(STREAMS) as pool:
        replies = list(pool.map(lambda ask: site.through(ask[0], ask[1], stream=ask[2]), asks))
    assert [reply.text for reply in replies if reply.status_code != 200] == []
    named = [reply.headers["x-taskmem-adapter"] for reply in replies]
    assert named == ["none" if ask[0] == "none" else f"{ask[0]}@v1" for ask in asks]
    assert {reply.headers["x-taskmem-policy"] for reply in replies} == {site.policy.digest}
    models = ["policy" if name == "none" else name for name in named]
    expected = [site.direct(model, ask[1]) for model, ask in zip(models, asks, strict=True)]
    assert [tokens(reply) for reply in replies] == expected
    # the adapters matter: each environment writes something else of the same clips
    assert len({json.dumps([tokens(one) for one in replies[start::5]]) for start in range(5)}) == 5
    recorded = site.recorded
    assert [recorded[reply.headers["x-request-id"]].adapter for reply in replies] == named


def test_the_official_client_works_against_real_vllm(site: RealSite) -> None:
    ask = site.ask("door", 0)
    with openai.OpenAI(base_url=f"{site.running.url}/v1", api_key=site.token("door"), max_retries=0) as client:
        reply = client.chat.completions.create(
            model="door", messages=ask["messages"], max_tokens=ask["max_tokens"], temperature=0
        )
        streamed = client.chat.completions.create(
            model="door", messages=ask["messages"], max_tokens=ask["max_tokens"], temperature=0, stream=True
        )
        text = "".join(piece.choices[0].delta.content or "" for piece in streamed)
    assert reply.model == "door@v1"
    assert text == reply.choices[0].message.content
    assert text


def test_an_adapter_that_vllm_refuses_is_told_with_its_reason_and_nothing_else_is_served(site: RealSite) -> None:
    site.publish("loud", 9, norm=50.0)
    reply = site.through("loud", 0)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "adapter_refused")
    assert "norm 50 is above this server's bound of 8" in reply.json()["error"]["message"]
    assert str(site.root) not in reply.text
    assert site.through("door", 0).status_code == 200


def test_what_vllm_finds_wrong_with_a_request_is_the_caller_s_mistake(site: RealSite) -> None:
    for wrong in ({"temperature": -1}, {"max_tokens": -5}, {"logit_bias": {"x": 1}}, {"stop": 7}):
        for stream in (False, True):
            assert site.through("door", 0, stream=stream, **wrong).status_code == 400, wrong


def test_a_promotion_during_sixteen_streams_fails_none_and_changes_none(
    site: RealSite, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = {"max_tokens": 120, "ignore_eos": True, "stream": True}
    expected = {("yard@v1", n): site.direct("yard@v1", n, **longer) for n in range(len(site.policy.messages))}
    done: list[tuple[int, httpx2.Response]] = []
    stop = threading.Event()

    def ask(number: int) -> None:
        turn = number
        while not stop.is_set():
            done.append((turn, site.through("yard", turn, **longer)))
            turn += 1

    with ThreadPoolExecutor(STREAMS) as pool:
        asking = [pool.submit(ask, number) for number in range(STREAMS)]
        eventually(lambda: len(done) >= STREAMS, seconds=120)
        new = [site.publish("yard", 21)]
        promoted = time.monotonic()
        eventually(lambda: any(reply.headers.get("x-taskmem-adapter") == new[0] for _, reply in done), seconds=120)
        took = time.monotonic() - promoted
        new.append(site.publish("yard", 22))
        eventually(lambda: any(reply.headers.get("x-taskmem-adapter") == new[1] for _, reply in done), seconds=120)
        stop.set()
        for one in asking:
            one.result()
    assert {reply.status_code for _, reply in done} == {200}
    assert {reply.headers["x-taskmem-adapter"] for _, reply in done} == {"yard@v1", *new}
    for number, reply in done:
        key = (reply.headers["x-taskmem-adapter"], number % len(site.policy.messages))
        if key not in expected:
            expected[key] = site.direct(*key, **longer)
        assert tokens(reply) == expected[key]
        assert reply.text.endswith("data: [DONE]\n\n")
    with capsys.disabled():
        print(f"\n{len(done)} streams, two promotions, none failed; {took:.1f} s to a whole reply of the new champion")


def test_the_gateway_killed_under_load_goes_on_with_what_vllm_has(site: RealSite, tmp_path: Path) -> None:
    expected, given = site.direct("door@v1", 0), []
    token = site.token("door")
    ask = {key: value for key, value in site.ask("door", 0).items() if key != "model"}

    def asking(running: Process, number: int) -> None:
        try:
            while True:
                given.append(running.chat(token, stream=bool(number % 2), **ask))
        except httpx2.TransportError:
            pass  # killed meanwhile

    shared = {"--policy-server": site.url, "--adapters": site.root / "adapters", "--store": site.root / "store"}
    places = {**shared, "--responses": tmp_path / "own"}
    first = Process(tmp_path / "first.log", **places)
    try:
        with ThreadPoolExecutor(8) as pool:
            running = [pool.submit(asking, first, number) for number in range(8)]
            eventually(lambda: len(given) >= 24, seconds=120)
            first.run.kill()
            for one in running:
                one.result()
    finally:
        first.run.kill()
        first.run.wait()
    second = Process(tmp_path / "second.log", port=first.port, **places)
    try:
        given.append(second.chat(token, **ask))
    finally:
        second.run.kill()
        second.run.wait()
    assert {reply.status_code for reply in given} == {200}
    assert all(tokens(reply) == expected for reply in given)
    recorded = [one.id for one in read_records(tmp_path / "own" / "responses-gateway.jsonl", Response)]
    assert len(set(recorded)) == len(recorded)
    assert {reply.headers["x-request-id"] for reply in given} <= set(recorded)


def test_vllm_killed_under_load_is_503_until_it_is_back_and_then_all_is_as_before(site: RealSite) -> None:
    names = ENVIRONMENTS[:2]
    before = {name: tokens(site.through(name, 0)) for name in names}
    done: list[tuple[str, httpx2.Response]] = []
    stop = threading.Event()

    def ask(number: int) -> None:
        name = names[number % 2]
        while not stop.is_set():
            done.append((name, site.through(name, 0, stream=number % 4 < 2)))
            time.sleep(0.2)

    with ThreadPoolExecutor(STREAMS) as pool:
        asking = [pool.submit(ask, number) for number in range(STREAMS)]
        eventually(lambda: len(done) >= STREAMS, seconds=120)
        site.kill()
        eventually(lambda: done[-1][1].status_code == 503, seconds=60)
        assert not ready(site.running.url)
        site.start_again()
        eventually(lambda: ready(site.running.url), seconds=60)
        count = len(done)
        eventually(lambda: len(done) >= count + 3 * STREAMS, seconds=240)
        stop.set()
        for one in asking:
            one.result()
    assert {name: tokens(site.through(name, 0)) for name in names} == before
    assert {reply.status_code for _, reply in done} <= {200, 502, 503}
    whole = [(name, reply) for name, reply in done if reply.status_code == 200 and '"error"' not in reply.text]
    assert all(tokens(reply) == before[name] for name, reply in whole)
    recorded = site.recorded
    assert {recorded[reply.headers["x-request-id"]].environment for _, reply in whole} == set(names)
    assert all(reply.status_code == 200 for _, reply in done[-STREAMS:])
