"""Adapters are loaded on first use, once, verified, and only as many as may be."""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gateway_parts import Site, text, written_by
from pydantic import ValidationError
from registry_parts import overwrite
from service_parts import eventually

from taskmem.gateway.settings import GatewaySettings
from taskmem.registry import read_manifest
from taskmem.registry.objects import file_key


def test_fifty_first_requests_at_once_load_it_once(site: Site) -> None:
    site.upstream.load_seconds = 0.3
    with ThreadPoolExecutor(50) as pool:
        replies = list(pool.map(lambda _: site.chat("door"), range(50)))
    assert {text(reply) for reply in replies} == {written_by("door@v2")}
    assert site.upstream.loads == {"door@v2": 1}
    assert site.sample("taskmem_adapter_loads_total", result="loaded") == 1


def test_who_began_to_load_it_may_go_away(site: Site) -> None:
    site.upstream.load_seconds = 0.5
    with ThreadPoolExecutor() as pool:
        impatient = pool.submit(lambda: site.client.post(
            "/v1/chat/completions",
            json={"model": "door", "messages": [{"role": "user", "content": "x"}]},
            headers=site.headers("door"),
            timeout=0.2,
        ))  # fmt: skip
        eventually(lambda: site.upstream.loads["door@v2"] == 1)
        assert text(site.chat("door")) == written_by("door@v2")
        assert impatient.exception() is not None
    assert site.upstream.loads == {"door@v2": 1}


def test_the_longest_unused_is_given_up_and_loaded_again_when_asked_for(tmp_path: Path) -> None:
    with Site(tmp_path, adapters=2, in_flight=2) as site:
        for model in ("door@v1", "door@v2", "door@v1", "door@v1"):
            site.chat("door", model)
        site.chat("shop")
        eventually(lambda: set(site.upstream.adapters) == {"door@v1", "shop@v1"})
        assert site.sample("taskmem_adapters_loaded") == 2
        assert text(site.chat("door", "door@v2")) == written_by("door@v2")
        eventually(lambda: set(site.upstream.adapters) == {"shop@v1", "door@v2"})
        assert site.upstream.unloads == {"door@v2": 1, "door@v1": 1}
        folder = site.root / "adapters"
        eventually(lambda: sorted(path.name for path in folder.iterdir()) == ["door@v2", "shop@v1"])


def test_an_adapter_in_use_is_never_given_up(tmp_path: Path) -> None:
    with Site(tmp_path, adapters=2, in_flight=2) as site, ThreadPoolExecutor() as pool:
        site.upstream.word_seconds = 0.3
        running = pool.submit(site.chat, "door", stream=True)
        eventually(lambda: site.upstream.in_flight == 1)
        for _ in range(3):
            for environment, model in (("door", "door@v1"), ("shop", "shop@v1")):
                site.chat(environment, model)
        assert "door@v2" in site.upstream.adapters
        assert text(running.result()) == written_by("door@v2")
        assert site.upstream.unloads["door@v2"] == 0
        assert site.upstream.unloads.total() > 0


def test_it_is_always_possible_to_give_one_up() -> None:
    with pytest.raises(ValidationError, match="at least in_flight"):
        GatewaySettings(adapters=4, in_flight=5)


def test_many_adapters_through_few_slots_each_write_their_own(tmp_path: Path) -> None:
    with Site(tmp_path, adapters=8, in_flight=8, waiting=100) as site:
        for number in range(10, 28):
            site.publish("door", number)
        names = [f"door@v{number}" for number in range(1, 21)]
        asks = [names[(7 * i) % 20] for i in range(120)]
        most = 0

        def look() -> None:
            nonlocal most
            while not done.is_set():
                most = max(most, len(site.upstream.adapters))
                time.sleep(0.002)

        done = threading.Event()
        looking = threading.Thread(target=look)
        looking.start()
        with ThreadPoolExecutor(32) as pool:
            written = list(pool.map(lambda name: text(site.chat("door", name)), asks))
        done.set()
        looking.join()
        assert written == [written_by(name) for name in asks]
        assert most <= 8 + 8
        eventually(lambda: len(site.upstream.adapters) <= 8)
        assert Counter(site.upstream.loads).total() > 20


def test_one_that_the_server_refuses_is_told_so_and_nothing_is_served_in_its_place(site: Site) -> None:
    site.upstream.refused["door@v2"] = "norm 9 is above this server's bound of 8; look at its training"
    for stream in (False, True):
        reply = site.chat("door", stream=stream)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "adapter_refused")
        assert "door@v2: norm 9 is above this server's bound of 8" in reply.json()["error"]["message"]
        assert str(site.root) not in reply.text
        assert reply.headers["retry-after"] == "30"
    assert site.upstream.asked == [] and site.responses == []
    assert site.sample("taskmem_adapter_loads_total", result="refused") == 1
    assert text(site.chat("door", "door@v1")) == written_by("door@v1")
    # it is tried again after a while
    site.upstream.refused.clear()
    eventually(lambda: site.chat("door").status_code == 200)


def test_one_that_is_damaged_in_the_store_is_not_loaded(site: Site) -> None:
    digest = read_manifest(site.store, "door", "v2").files.adapter_model
    overwrite(site.store, file_key("door", digest), b"other bytes")
    reply = site.chat("door")
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "adapter_failed")
    assert site.upstream.loads == {}
    assert site.sample("taskmem_adapter_loads_total", result="failed") == 1
    assert "is damaged" in site.log.getvalue()
    assert text(site.chat("shop")) == written_by("shop@v1")


def test_a_folder_that_was_changed_is_written_anew_before_it_is_loaded(site: Site) -> None:
    site.chat("door")
    path = site.root / "adapters" / "door@v2" / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(b"other bytes")
    site.upstream.adapters.clear()
    assert text(site.chat("door")) == written_by("door@v2")
    assert path.read_bytes() == whole


def test_a_server_that_has_the_adapter_already_needs_no_other(site: Site) -> None:
    site.upstream.adapters["door@v2"] = str(site.root / "adapters" / "door@v2")
    assert text(site.chat("door")) == written_by("door@v2")
    # by that name, but from somewhere else: who knows what it is
    site.upstream.adapters["shop@v1"] = "/somewhere/else"
    assert text(site.chat("shop")) == written_by("shop@v1")
    assert site.upstream.unloads == {"shop@v1": 1}
    assert site.upstream.adapters["shop@v1"] == str(site.root / "adapters" / "shop@v1")


def test_a_server_that_was_started_again_gets_its_adapters_again(site: Site) -> None:
    with ThreadPoolExecutor(16) as pool:
        for _ in range(3):
            assert {text(reply) for reply in pool.map(lambda _: site.chat("door"), range(16))} == {
                written_by("door@v2")
            }
            site.upstream.adapters.clear()
    assert site.upstream.loads["door@v2"] <= 3


def test_that_it_was_started_again_is_noticed_without_a_request(site: Site) -> None:
    site.chat("door")
    assert site.sample("taskmem_adapters_loaded") == 1
    site.upstream.adapters.clear()
    eventually(lambda: site.sample("taskmem_adapters_loaded") == 0)


def test_what_a_killed_gateway_left_half_written_is_swept(tmp_path: Path) -> None:
    left = tmp_path / "adapters" / ".door@v2.0123.tmp"
    left.mkdir(parents=True)
    with Site(tmp_path) as site:
        assert text(site.chat("door")) == written_by("door@v2")
    assert not left.exists()
