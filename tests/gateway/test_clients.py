"""The clients that people have work against it."""

import json
import subprocess
from collections.abc import Iterator

import openai
import pytest
from gateway_parts import HELLO, Site, written_by
from openai.types.chat import ChatCompletionMessageParam

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(site: Site) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{site.running.url}/v1", api_key=site.tokens["door"], max_retries=0) as client:
        yield client


def test_the_official_client_lists_and_completes(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["door", "door@v1", "door@v2", "policy"]
    assert client.models.retrieve("door@v1").id == "door@v1"
    reply = client.chat.completions.create(model="door", messages=MESSAGES)
    assert (reply.model, reply.choices[0].message.content) == ("door@v2", written_by("door@v2"))


def test_the_official_client_streams(client: openai.OpenAI) -> None:
    pieces = list(client.chat.completions.create(model="door", messages=MESSAGES, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == written_by("door@v2")
    assert {piece.model for piece in pieces} == {"door@v2"}


def test_the_official_client_knows_each_error(client: openai.OpenAI, site: Site) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="shop", messages=MESSAGES)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="door", messages=[])
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="tm_" + "a" * 43).models.list()
    site.upstream.refused["door@v2"] = "too large a norm"
    with pytest.raises(openai.InternalServerError, match="too large a norm"):
        client.chat.completions.create(model="door", messages=MESSAGES)


def test_the_official_client_is_told_that_a_stream_broke_off(client: openai.OpenAI, site: Site) -> None:
    site.upstream.breaks_after = 2
    with pytest.raises(openai.APIError, match="broke off"):
        list(client.chat.completions.create(model="door", messages=MESSAGES, stream=True))


def curl(site: Site, *words: str) -> str:
    done = subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "20", "--noproxy", "*", *words],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_curl_completes_and_streams(site: Site) -> None:
    token = ("--header", f"Authorization: Bearer {site.tokens['door']}")
    for stream in (False, True):
        body = json.dumps({"model": "door", "messages": HELLO, "stream": stream})
        said = curl(site, *token, "--json", body, f"{site.running.url}/v1/chat/completions")
        assert "door@v2 0; " in said
        assert said.endswith("data: [DONE]\n\n") == stream
    listed = json.loads(curl(site, *token, f"{site.running.url}/v1/models"))
    assert [model["id"] for model in listed["data"]] == ["door", "door@v1", "door@v2", "policy"]
    assert curl(site, "--output", "-", "--write-out", "%{http_code}", f"{site.running.url}/v1/models").endswith("401")
