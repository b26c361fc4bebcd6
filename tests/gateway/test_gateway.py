"""Who asks gets its own adapter, what served is named and recorded, and a new champion needs no restart."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from gateway_parts import NOW, Site, chunks, text, written_by
from registry_parts import OTHER_POLICY, POLICY
from service_parts import eventually

from taskmem.registry import read_manifest, rollback, set_policy


@pytest.mark.parametrize("stream", [False, True])
def test_an_environment_s_name_is_its_champion(stream: bool, site: Site) -> None:
    reply = site.chat("door", stream=stream)
    assert (reply.status_code, text(reply)) == (200, written_by("door@v2"))
    told = {name: reply.headers[name] for name in ("x-taskmem-adapter", "x-taskmem-policy")}
    assert told == {"x-taskmem-adapter": "door@v2", "x-taskmem-policy": POLICY}
    assert {chunk["model"] for chunk in (chunks(reply) or [reply.json()])} == {"door@v2"}
    assert reply.text.endswith("data: [DONE]\n\n") == stream
    assert reply.headers["content-type"] == ("text/event-stream" if stream else "application/json")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["new", "policy"])
def test_without_a_champion_it_is_the_policy_without_adapter(model: str, stream: bool, site: Site) -> None:
    reply = site.chat("new", model, stream=stream)
    assert text(reply) == written_by("base")
    assert {chunk["model"] for chunk in (chunks(reply) or [reply.json()])} == {"policy"}
    assert reply.headers["x-taskmem-adapter"] == "none"
    assert site.upstream.loads == {}


def test_a_version_of_its_own_may_be_named(site: Site) -> None:
    assert text(site.chat("door", "door@v1")) == written_by("door@v1")
    assert text(site.chat("door", "policy")) == written_by("base")


def test_every_reply_is_in_the_response_log_before_it_is_given(site: Site) -> None:
    sent = {"x-taskmem-stream": "s0", "x-taskmem-question": "q1", "x-taskmem-memories": "s0:3, s0:4"}
    first = site.chat("door", headers=sent)
    second = site.chat("new", stream=True)
    one, two = site.responses
    made = read_manifest(site.store, "door", "v2")
    assert (one.id, two.id) == (first.headers["x-request-id"], second.headers["x-request-id"])
    assert (one.time, one.environment, one.policy, one.image) == (NOW, "door", POLICY, "sha256:image")
    assert (one.adapter, one.adapter_digest) == ("door@v2", made.files.adapter_model)
    assert (one.stream, one.question, one.memories) == ("s0", "q1", ("s0:3", "s0:4"))
    assert (two.environment, two.adapter, two.adapter_digest, two.stream, two.memories) == (
        "new",
        "none",
        None,
        None,
        (),
    )
    assert first.json()["id"] == f"chatcmpl-{one.id}"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_cannot_be_recorded_is_not_given(
    stream: bool, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.gateway.responses.close()
    reply = site.chat("door", stream=stream)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "response_log")
    assert "door@v2 0" not in reply.text
    assert site.client.get("/readyz").json()["missing"] == ["the response log cannot be written"]


def test_a_new_champion_serves_the_next_request_and_the_old_one_ends_what_it_began(site: Site) -> None:
    site.upstream.word_seconds = 0.1
    with ThreadPoolExecutor() as pool:
        running = pool.submit(site.chat, "door", stream=True)
        eventually(lambda: site.upstream.in_flight == 1)
        site.promote("door", site.publish("door", 4))
        assert text(site.chat("door")) == written_by("door@v3")
        assert text(running.result()) == written_by("door@v2")
    rollback(site.store, "door", "Ada", NOW, "none")
    assert text(site.chat("door")) == written_by("base")


def test_a_champion_is_at_most_as_old_as_the_setting_says(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with Site(tmp_path, champion_seconds=0.5) as site:
        assert text(site.chat("door")) == written_by("door@v2")
        site.promote("door", "v1")
        eventually(lambda: text(site.chat("door")) == written_by("door@v1"), seconds=1.5)


def test_a_champion_of_a_retired_policy_is_not_served(site: Site) -> None:
    set_policy(site.store, POLICY, "Ada", NOW, None)
    old = site.publish("door", 5, policy=OTHER_POLICY)
    site.promote("door", old)
    assert text(site.chat("door")) == written_by("base")
    assert site.chat("door", f"door@{old}").status_code == 404
    assert text(site.chat("door", "door@v1")) == written_by("door@v1")
    assert [model["id"] for model in site.client.get("/v1/models", headers=site.headers("door")).json()["data"]] == [
        "door", "door@v1", "door@v2", "policy",
    ]  # fmt: skip


def test_a_server_with_another_policy_than_the_registry_s_serves_nothing(site: Site) -> None:
    set_policy(site.store, OTHER_POLICY, "Ada", NOW, None)
    for model in ("door", "policy"):
        reply = site.chat("door", model)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "policy_mismatch")
    eventually(lambda: site.client.get("/readyz").status_code == 503)
    assert "runs aaaaaaaaaaaa, the registry's current policy is bbbbbbbbbbbb" in site.client.get("/readyz").text


def test_a_server_that_names_its_policy_by_digest_is_asked_for_just_that(site: Site) -> None:
    site.upstream.names = ["policy", f"sha256:{OTHER_POLICY}"]
    eventually(lambda: site.chat("new").headers.get("x-taskmem-policy") == OTHER_POLICY)
    assert site.upstream.asked[-1]["model"] == f"sha256:{OTHER_POLICY}"
    # another policy, before anybody looked: the name is not there any more
    site.gateway.settings = site.settings.model_copy(update={"watch_seconds": 1000.0})
    site.upstream.names = ["policy", f"sha256:{POLICY}"]
    # a look that was under way may tell the old name once more: that request is 503, never the wrong policy
    eventually(lambda: site.chat("new").headers.get("x-taskmem-policy") == POLICY)


def test_a_reply_of_another_model_than_asked_for_is_not_passed_on(site: Site) -> None:
    site.upstream.answer = {"model": "base"}
    for stream in (False, True):
        reply = site.chat("door", stream=stream)
        assert reply.status_code == 502
        assert "replied with another model than asked for" in reply.text
    assert site.responses == []


def test_models_are_its_own_and_nothing_else(site: Site) -> None:
    def listed(environment: str) -> dict[str, str]:
        reply = site.client.get("/v1/models", headers=site.headers(environment))
        return {model["id"]: model["root"] for model in reply.json()["data"]}

    assert listed("door") == {"door": "door@v2", "door@v1": "door@v1", "door@v2": "door@v2", "policy": "policy"}
    assert listed("shop") == {"shop": "shop@v1", "shop@v1": "shop@v1", "policy": "policy"}
    assert listed("new") == {"new": "policy", "policy": "policy"}
    one = site.client.get("/v1/models/door@v1", headers=site.headers("door"))
    assert one.json() == {"id": "door@v1", "object": "model", "created": 0, "owned_by": "taskmem", "root": "door@v1"}


def test_the_server_is_asked_in_the_adapter_s_name_and_apart_from_other_tenants(site: Site) -> None:
    reply = site.chat("door", temperature=0.6, n=2, seed=7, user="somebody", vllm_xargs={"taskmem_seed": 3})
    (asked,) = site.upstream.asked
    assert {name: asked[name] for name in ("model", "temperature", "n", "seed", "cache_salt", "vllm_xargs")} == {
        "model": "door@v2", "temperature": 0.6, "n": 2, "seed": 7, "cache_salt": "door", "vllm_xargs": {"taskmem_seed": 3},
    }  # fmt: skip
    assert "user" not in asked
    assert asked["x-request-id"] == reply.headers["x-request-id"]


def test_the_log_has_ids_and_digests_and_no_text(site: Site) -> None:
    reply = site.chat("door", messages=[{"role": "user", "content": "the secret of the kitchen"}])
    line = site.log.requests(1)[0]
    assert (line["request"], line["environment"], line["adapter"]) == (reply.headers["x-request-id"], "door", "door@v2")
    assert line["adapter_digest"] == read_manifest(site.store, "door", "v2").files.adapter_model
    assert (line["route"], line["status"], line["whole"]) == ("/v1/chat/completions", 200, True)
    for secret in ("kitchen", "door@v2 0", site.tokens["door"]):
        assert secret not in site.log.getvalue()


def test_it_counts_what_it_serves(site: Site) -> None:
    site.chat("door")
    site.chat("new")
    site.chat("door", "nothing")
    site.log.requests(3)
    assert site.sample("taskmem_gateway_requests_total", status="200") == 2
    assert site.sample("taskmem_gateway_requests_total", status="404") == 1
    assert site.sample("taskmem_gateway_seconds_count") == 2
    assert site.sample("taskmem_adapter_loads_total", result="loaded") == 1
    assert site.sample("taskmem_adapters_loaded") == 1
    assert site.sample("taskmem_adapter_version", environment="door") == 2
    assert site.sample("taskmem_adapter_version", environment="new") == 0
    assert site.sample("taskmem_refusals_total", service="gateway", reason="not_found") == 1
    exposed = site.client.get("/metrics").text
    assert "taskmem_gateway_in_flight 0.0" in exposed
    assert "door" not in exposed


def test_it_is_ready_when_all_it_needs_is_there(site: Site) -> None:
    assert site.client.get("/healthz").json() == {"status": "ok"}
    eventually(lambda: site.client.get("/readyz").json() == {"ready": True, "missing": []})
    (site.root / "policy" / "export.json").unlink()
    eventually(lambda: "which policy the server runs is unknown" in site.client.get("/readyz").text)
    assert site.client.get("/readyz").status_code == 503
    assert site.chat("new").status_code == 503


def test_a_stream_with_separators_inside_is_passed_on_as_it_is(site: Site) -> None:
    odd = "line\u2028separator\x85 and \r\n\r\n and \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")
    site.upstream.answer = {"system_fingerprint": odd}
    reply = site.chat("door", stream=True)
    lines = [line for line in reply.content.split(b"\n") if line.startswith(b"data: {")]
    assert {json.loads(line[6:])["system_fingerprint"] for line in lines} == {odd}
