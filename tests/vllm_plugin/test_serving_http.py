"""The policy over HTTP is the policy in this process: the same memories, candidates and evaluation."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from loopback import call_settings
from plugin_parts import SIZE, AdapterPress, drawn
from reference_parts import Reference

from taskmem.config import Profile, Sampling
from taskmem.endpoint.client import Endpoint
from taskmem.endpoint.ledger import read_ledger
from taskmem.endpoint.media import Clips
from taskmem.errors import UserError
from taskmem.policy.http import HttpPolicy, Vocabulary
from taskmem.policy.rollout_cache import build_rollouts
from taskmem.policy.stream import by_stream, watch
from taskmem.records import Segment, read_records

if TYPE_CHECKING:
    from serving_parts import Server

pytestmark = pytest.mark.serving

ADAPTERS: dict[str, torch.Tensor] = {"none": torch.zeros(SIZE), "http@v1": drawn(40, 6)}
COOLER = Sampling(temperature=0.7, top_p=0.9, top_k=30)


@pytest.fixture(scope="module")
def adapted(server: "Server", press: AdapterPress, tmp_path_factory: pytest.TempPathFactory) -> "Server":
    folder = tmp_path_factory.mktemp("http") / "adapter"
    assert server.load("http@v1", press.save(folder, ADAPTERS["http@v1"]))[0] == 200
    return server


@pytest.fixture
def endpoint(adapted: "Server", tmp_path: Path) -> Iterator[Endpoint]:
    settings = call_settings(
        f"{adapted.url}/v1", policy=True, model="policy", concurrency=8, reply_seconds=120.0, media_tokens=400
    )
    with Endpoint(settings, tmp_path / "calls", {}) as opened:
        yield opened


@pytest.fixture(scope="module")
def film(segments: Path) -> list[Segment]:
    return read_records(segments / "segments.jsonl", Segment)


def sampled(profile: Profile, sampling: Sampling) -> Profile:
    return profile.model_copy(update={"policy": profile.policy.model_copy(update={"sampling": sampling})})


def over_http(endpoint: Endpoint, profile: Profile, segments: Path, base: Path, adapter: str = "none") -> HttpPolicy:
    clips = Clips.below(segments, profile.video.limits)
    return HttpPolicy(endpoint, profile.policy, clips, Vocabulary.load(base), "0" * 64, adapter)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("task", [None, "who is holding the cup?"])
def test_memories_are_those_of_this_process(
    adapter: str,
    task: str | None,
    endpoint: Endpoint,
    profile: Profile,
    reference: Reference,
    film: list[Segment],
    segments: Path,
    base: Path,
) -> None:
    for sampling in (profile.policy.sampling, COOLER):
        changed = sampled(profile, sampling)
        there = over_http(endpoint, changed, segments, base, adapter)
        here = reference.policy(ADAPTERS[adapter], sampling, adapter)
        window = profile.policy.window
        assert watch(there, by_stream(film), window, 3, task) == watch(here, by_stream(film), window, 3, task)


def test_candidates_are_those_of_this_process_and_paid_once(
    endpoint: Endpoint,
    profile: Profile,
    reference: Reference,
    film: list[Segment],
    segments: Path,
    base: Path,
    tmp_path: Path,
) -> None:
    there = over_http(endpoint, profile, segments, base)
    here = reference.policy(ADAPTERS["none"], profile.policy.sampling)
    candidates = build_rollouts(there, film, profile, 5)
    assert candidates == build_rollouts(here, film, profile, 5)
    texts = {c.text for rollouts in candidates[0] for c in rollouts.candidates}
    assert len(texts) > 4 * len(candidates[0])
    paid = [call.outcome for call in read_ledger(tmp_path / "calls")]
    # one memory and one group of candidates for each context, a group in one request
    assert paid == ["answered"] * 2 * len(film)
    assert build_rollouts(there, film, profile, 5) == candidates
    assert [call.outcome for call in read_ledger(tmp_path / "calls")][len(paid) :] == ["cached"] * len(paid)


@pytest.mark.parametrize(
    "spoilt",
    [
        {"vllm_xargs": {"taskmem_seed": 1}},
        {"vllm_xargs": {"taskmem_seed": "x", "taskmem_rows": 1}},
        {"vllm_xargs": {"taskmem_seed": 1, "taskmem_rows": 1}, "seed": 1},
        {"vllm_xargs": {"taskmem_seed": 1, "taskmem_rows": 2}, "n": 3, "seed": 0},
        {"vllm_xargs": {"taskmem_seed": 1, "taskmem_rows": 1}, "seed": 0, "logit_bias": {"100000": 1}},
    ],
)
def test_a_draw_that_cannot_be_is_a_400_and_the_server_goes_on(
    spoilt: dict[str, Any], server: "Server", reference: Reference
) -> None:
    ask = {"model": "policy", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "temperature": 1.0}
    status, answer = server.post("/v1/chat/completions", {**ask, **spoilt})
    assert (status, "taskmem" in answer or "shared draw" in answer or "logit_bias" in answer) == (400, True), answer
    assert server.post("/v1/chat/completions", ask)[0] == 200


def test_a_seed_on_a_prompt_that_is_read_in_pieces_ends_nothing(server: "Server") -> None:
    from serving_parts import at_once  # noqa: PLC0415 - only where vLLM is

    # more tokens than the server reads at a time, so that it reads some prompts in pieces
    long = {"role": "user", "content": "red figure in the kitchen " * 90}
    ask = {"model": "policy", "messages": [long], "max_tokens": 8, "temperature": 1.0}
    with at_once(16) as pool:
        replies = list(pool.map(lambda i: server.post("/v1/chat/completions", {**ask, "seed": i}), range(16)))
    assert {status for status, _ in replies} == {200}


@pytest.mark.slow
def test_a_server_without_the_shared_draw_is_named(
    exported: Path, profile: Profile, film: list[Segment], segments: Path, base: Path, tmp_path: Path
) -> None:
    from serving_parts import Server  # noqa: PLC0415

    # vLLM takes the last; this one is its own, and does nothing here
    more = ("--logits-processors", "vllm.v1.sample.logits_processor:MinPLogitsProcessor")
    with Server(exported, tmp_path / "log", slots=2, kept=2, more=more) as plain:
        settings = call_settings(f"{plain.url}/v1", policy=True, model="policy", media_tokens=400, reply_seconds=120.0)
        with Endpoint(settings, tmp_path / "calls", {}) as endpoint:
            policy = over_http(endpoint, profile, segments, base)
            with pytest.raises(UserError, match="draws otherwise than this process would"):
                watch(policy, by_stream(film), profile.policy.window, 3)
