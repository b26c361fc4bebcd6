"""An environment can reach nothing of another's: not its adapter, not a version, not even whether it is there."""

from typing import Any

import httpx2
import pytest
from gateway_parts import HELLO, NOW, Site, text, written_by

from taskmem.files import sha256_bytes
from taskmem.gateway.tokens import revoke_token

ROUTES = [("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/v1/models/door")]
NOBODY_S = ["nothing", "nothing@v1", "door@v9", "door@latest", "door@v02", "door@v2@v1", "", "base", "@v1", "none", "*"]
ANOTHER_S = [
    "shop",
    "shop@v1",
    "shop@v9",
    "new",
    "SHOP@v1",
    "door/../shop@v1",
    "door@../../shop/versions/v1",
    "shop%40v1",
]


def told(reply: httpx2.Response, name: str) -> tuple[int, Any, set[str]]:
    """Status, body without the name that was asked for, and headers."""
    return reply.status_code, reply.text.replace(name or "\0", "NAME"), set(reply.headers)


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("header", [None, "Bearer tm_" + "a" * 43, "Bearer x", "Basic eA=="])
def test_without_a_token_there_is_nothing(method: str, path: str, header: str | None, site: Site) -> None:
    headers = {} if header is None else {"Authorization": header}
    body = {"json": {"model": "door", "messages": HELLO}} if method == "POST" else {}
    reply = site.client.request(method, path, headers=headers, **body)
    assert reply.status_code == 401
    assert site.upstream.asked == []


def test_a_revoked_token_is_let_in_nowhere(site: Site) -> None:
    revoke_token(site.store, sha256_bytes(site.tokens["door"]), NOW)
    for method, path in ROUTES:
        body = {"json": {"model": "door", "messages": HELLO}} if method == "POST" else {}
        assert site.client.request(method, path, headers=site.headers("door"), **body).status_code == 401


def test_another_s_model_is_told_from_a_missing_one_by_nothing(site: Site) -> None:
    unknown = "zzzz@v1"
    missing = told(site.chat("door", unknown), unknown)
    assert missing[0] == 404
    for name in (*NOBODY_S[1:6], *ANOTHER_S):
        assert told(site.chat("door", name), name) == missing, name
        assert told(site.chat("door", name, stream=True), name) == missing, name
    assert site.upstream.asked == []
    assert site.upstream.loads == {}


def test_another_s_model_is_not_in_the_list_nor_there_by_name(site: Site) -> None:
    missing = told(site.client.get("/v1/models/zzzz", headers=site.headers("door")), "zzzz")
    assert missing[0] == 404
    for name in ("shop", "shop@v1", "new"):
        assert told(site.client.get(f"/v1/models/{name}", headers=site.headers("door")), name) == missing
    for path in ("/v1/models/shop%2F..%2Fdoor", "/v1/models/../models/shop", "/v1/models/%2e%2e%2fshop@v1"):
        reply = site.client.get(path, headers=site.headers("door"))
        assert reply.status_code == 404 and "shop@v1" not in reply.text.replace("/shop@v1", "")


def test_the_store_is_not_even_asked_about_another(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.chat("door")
    read: list[str] = []
    real = type(site.store).get

    def get(store: Any, key: str) -> Any:
        read.append(key)
        return real(store, key)

    monkeypatch.setattr(type(site.store), "get", get)
    for name in (*NOBODY_S, *ANOTHER_S):
        site.chat("door", name)
        site.client.get(f"/v1/models/{name}", headers=site.headers("door"))
    assert [key for key in read if "shop" in key or "new" in key or "nothing" in key] == []
    assert any("door" in key for key in read)


@pytest.mark.parametrize(
    "extra",
    [
        {"lora_request": {"lora_name": "shop@v1"}},
        {"lora_name": "shop@v1"},
        {"adapter": "shop@v1"},
        {"extra_body": {"model": "shop@v1"}},
        {"chat_template": "{{ messages }}"},
        {"chat_template_kwargs": {"x": 1}},
        {"mm_processor_kwargs": {"fps": 1}},
        {"media_io_kwargs": {"video": {"num_frames": 9}}},
        {"cache_salt": "shop"},
        {"priority": -1},
        {"request_id": "req-1"},
        {"kv_transfer_params": {}},
        {"prompt_logprobs": 1},
        {"use_beam_search": True},
        {"vllm_xargs": {"other": 1}},
        {"vllm_xargs": {"taskmem_seed": "shop@v1"}},
        {"tools": []},
    ],
)
def test_no_field_chooses_an_adapter_or_reaches_into_the_server(extra: dict[str, Any], site: Site) -> None:
    reply = site.chat("door", **extra)
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")
    assert site.upstream.asked == []


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video_url", "video_url": {"url": "http://127.0.0.1:8000/v1/models"}},
        {"type": "video_url", "video_url": {"url": "file:///etc/passwd"}},
        {"type": "video_url", "video_url": {"url": "https://example.org/x.mp4"}},
        {"type": "video_url", "video_url": {"url": "DATA:video/mp4;base64,AAAA"}},
        {"type": "video_url", "video_url": {"url": "data:text/html;base64,AAAA"}},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA", "uuid": "x"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"video_url": "http://127.0.0.1/"},
        {"type": "image_embeds", "image_embeds": "AAAA"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_id": "x"}},
        {"type": "text", "text": "x", "video_url": {"url": "http://127.0.0.1/"}},
    ],
)
def test_the_server_is_made_to_open_no_address(part: dict[str, Any], site: Site) -> None:
    reply = site.chat("door", messages=[{"role": "user", "content": [part]}])
    assert reply.status_code == 400
    assert site.upstream.asked == []


def test_a_header_chooses_no_environment(site: Site) -> None:
    headers = {"x-taskmem-adapter": "shop@v1", "x-taskmem-environment": "shop", "x-forwarded-user": "shop"}
    assert text(site.chat("door", headers=headers)) == written_by("door@v2")
    twice = [("Authorization", f"Bearer {site.tokens[name]}") for name in ("door", "shop")]
    reply = site.client.get("/v1/models", headers=twice)
    assert reply.status_code in (200, 401)
    assert "shop" not in reply.text


def test_an_environment_whose_name_begins_another_s_reaches_nothing_of_it(site: Site) -> None:
    for name in ("doo", "door2"):
        assert site.chat("door", name).status_code == 404
        assert site.chat("door", f"{name}@v1").status_code == 404


def test_metrics_and_probes_name_no_environment(site: Site) -> None:
    site.chat("door")
    site.chat("shop")
    for path in ("/metrics", "/healthz", "/readyz"):
        reply = site.client.get(path)
        assert not [name for name in ("door", "shop", "@v") if name in reply.text], path


@pytest.mark.parametrize(
    "path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions", "/tokenize", "/docs"]
)
def test_the_server_s_other_routes_are_not_there(path: str, site: Site) -> None:
    before = dict(site.upstream.adapters)
    for method in ("GET", "POST"):
        reply = site.client.request(method, path, headers=site.headers("door"), json={"lora_name": "shop@v1"})
        assert reply.status_code == 404
    assert site.upstream.adapters == before
