"""What a caller may ask for, and what never reaches the policy's server."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskmem.gateway.ask import parse_ask
from taskmem.service import Refused

HELLO = [{"role": "user", "content": "hello"}]
CLIP = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
FRAMES = {"type": "video_url", "video_url": {"url": "data:video/jpeg;base64,AAAA,BBBB"}}


def body(**changes: Any) -> bytes:
    return json.dumps({"model": "door", "messages": HELLO, **changes}).encode()


def refused(data: bytes, headers: dict[str, str] | None = None) -> Refused:
    with pytest.raises(Refused) as refusal:
        parse_ask(data, headers or {}, 32)
    assert (refusal.value.status_code, refusal.value.reason) == (400, "invalid")
    return refusal.value


def test_what_the_policy_s_own_client_sends_is_taken() -> None:
    sent = {
        "messages": [
            {"role": "system", "content": "watch"},
            {"role": "user", "content": [CLIP, FRAMES, {"type": "text", "text": "write"}]},
        ],
        "n": 8, "seed": 7, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "max_completion_tokens": 300, "logit_bias": {"7": -100},
        "return_token_ids": True, "vllm_xargs": {"taskmem_seed": 3, "taskmem_row": 0, "taskmem_rows": 8},
    }  # fmt: skip
    ask = parse_ask(body(**sent), {}, 32)
    assert ask.to("door@v2", "door") == {**json.loads(body(**sent)), "model": "door@v2", "cache_salt": "door"}
    assert (ask.model, ask.streamed, ask.stream, ask.memories) == ("door", False, None, ())
    assert ask.clips == ("data:video/mp4;base64,AAAA", "data:video/jpeg;base64,AAAA,BBBB")


@pytest.mark.parametrize(
    ("data", "param"),
    [
        (b"", "body"),
        (b"\xff\xfe", "body"),
        (b"not JSON", "body"),
        (b"null", "body"),
        (b"[]", "body"),
        (b'{"model": "door", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "body"),
        (b'{"model": "door", "messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}", "body"),
        (b'{"a":' * 50_000, "body"),
        (b"[" * 100_000 + b"]" * 100_000, "body"),
        (b'{"model": "door"}', "messages"),
        (body(model=7), "model"),
        (body(model=""), "model"),
        (body(model="x" * 1001), "model"),
        (body(messages=[]), "messages"),
        (body(messages="hello"), "messages"),
        (body(messages=[{"role": "tool", "content": "x"}]), "messages.0.role"),
        (body(messages=[{"role": "user"}]), "messages.0.content"),
        (body(messages=[{"role": "user", "content": "x", "tool_calls": []}]), "messages.0.tool_calls"),
        (body(n=0), "n"),
        (body(n=33), "n"),
        (body(n=True), "n"),
        (body(n="1"), "n"),
        (body(stream="yes"), "stream"),
        (body(lora_name="shop@v1"), "lora_name"),
    ],
)
def test_a_mistake_is_named_by_its_field(data: bytes, param: str) -> None:
    assert refused(data).param == param


def test_values_that_would_take_memory_are_not_even_parsed() -> None:
    many = b'{"model":"door","messages":[' + b"{}," * 2_000_000 + b"{}]}"
    tracemalloc.start()
    refusal = refused(many)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "values" in refusal.message
    assert peak < 1 << 20


def test_a_refusal_repeats_no_value_that_was_sent() -> None:
    for changes in (
        {"n": "the secret"},
        {"stream": "the secret"},
        {"messages": ["the secret"]},
        {"model": ["the secret"]},
    ):
        assert "secret" not in refused(body(**changes)).message


def test_what_it_is_about_is_told_by_headers() -> None:
    headers = {"x-taskmem-stream": "s0", "x-taskmem-question": "q1", "x-taskmem-memories": "s0:3,s0:4"}
    ask = parse_ask(body(), headers, 32)
    assert (ask.stream, ask.question, ask.memories) == ("s0", "q1", ("s0:3", "s0:4"))


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-taskmem-stream", "../x"),
        ("x-taskmem-stream", ""),
        ("x-taskmem-question", "q 1"),
        ("x-taskmem-memories", "s0"),
        ("x-taskmem-memories", "s0:1;s0:2"),
        ("x-taskmem-memories", "s0:-1"),
        ("x-taskmem-memories", ",".join(["s0:1"] * 1001)),
    ],
)
def test_a_header_that_could_not_stand_in_the_log_is_refused(header: str, value: str) -> None:
    assert refused(body(), {header: value}).param == header


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["model", "messages", "n", "stream", "seed", "stop", "x"]), json_values))
def test_whatever_is_sent_is_taken_or_refused(said: dict[str, Any]) -> None:
    try:
        ask = parse_ask(json.dumps(said).encode(), {}, 32)
    except Refused as refusal:
        assert refusal.status_code == 400
    else:
        assert "x" not in ask.body
