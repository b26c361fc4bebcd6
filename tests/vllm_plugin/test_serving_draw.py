"""vLLM draws what transformers draws: the same context, n and seed give the same tokens, whoever else is in the batch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from plugin_parts import SIZE, AdapterPress, drawn
from reference_parts import Ask, Reference

from taskmem.config import Sampling
from taskmem.policy.completion import seed_of

if TYPE_CHECKING:
    from serving_parts import Engine

pytestmark = pytest.mark.serving

SAMPLINGS = (
    Sampling(temperature=1.0, top_p=1.0, top_k=0),
    Sampling(temperature=0.6, top_p=0.95, top_k=20),
    Sampling(temperature=1.7, top_p=1.0, top_k=7),
    Sampling(temperature=1.3, top_p=0.8, top_k=0),
)
VECTORS: dict[str | None, torch.Tensor] = {None: torch.zeros(SIZE), "draw0@v1": drawn(30, 4), "draw1@v1": drawn(31, 6)}
PICTURES = (5, 6)
END, LONGEST, N, SEED = 2, 40, 4, 7
Sampled = dict[str, Any]


@pytest.fixture(scope="module")
def steered(engine: "Engine", press: AdapterPress, tmp_path_factory: pytest.TempPathFactory) -> "Engine":
    folder = tmp_path_factory.mktemp("drawing")
    for name, vector in VECTORS.items():
        if name is not None:
            engine.load(name, press.save(folder / name, vector))
    return engine


def shared(seed: int, sampling: Sampling, n: int = N, first: int = 0, rows: int = N) -> Sampled:
    """The parameters of a request for completions `first` and following of `rows` from `seed`."""
    return {
        **sampling.model_dump(),
        "n": n,
        "seed": first,
        "max_tokens": LONGEST,
        "ignore_eos": True,
        "stop_token_ids": [END],
        "logit_bias": dict.fromkeys(PICTURES, 100.0),
        "extra_args": {"taskmem_seed": seed, "taskmem_rows": rows},
    }


def of(ask: Ask, sampling: Sampling = SAMPLINGS[0], **more: int) -> Sampled:
    return shared(seed_of(SEED, N, ask.context.id), sampling, **more)


def test_every_token_is_the_one_that_transformers_draws(steered: "Engine", reference: Reference) -> None:
    # all in one batch: contexts, adapters and none, four ways to sample
    asks = [(ask, name, sampling) for ask in reference.asks for name in VECTORS for sampling in SAMPLINGS]
    written = steered.sample([(ask.prompt, name, of(ask, sampling)) for ask, name, sampling in asks])
    for name, vector in VECTORS.items():
        for sampling in SAMPLINGS:
            groups = reference.policy(vector, sampling).write([ask.context for ask in reference.asks], N, SEED)
            here = [[completion.tokens for completion in group] for group in groups]
            assert here == [w for (_, *kind), w in zip(asks, written, strict=True) if kind == [name, sampling]]
    assert len({tokens for group in written for tokens in group}) > len(asks)


def test_a_completion_asked_for_alone_is_the_same(steered: "Engine", reference: Reference) -> None:
    ask = reference.asks[3]
    (together,) = steered.sample([(ask.prompt, "draw0@v1", of(ask))])
    alone = [steered.sample([(ask.prompt, "draw0@v1", of(ask, n=1, first=row))])[0][0] for row in range(N)]
    pair = steered.sample([(ask.prompt, "draw0@v1", of(ask, n=2, first=2))])[0]
    assert alone == together
    assert pair == together[2:]


def test_drawn_greedy_and_sampled_requests_leave_each_other_alone(steered: "Engine", reference: Reference) -> None:
    kinds: list[Sampled] = [
        {"temperature": 0, "max_tokens": 20},
        {"temperature": 1.0, "seed": 5, "max_tokens": 30},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 11, "seed": 6, "n": 3, "max_tokens": 25},
    ]
    asks = [
        (ask.prompt, name, kind)
        for ask in reference.asks[:4]
        for name in VECTORS
        for kind in (*kinds, of(ask), of(ask, SAMPLINGS[1]))
    ]
    mixed = steered.sample([*asks, (reference.asks[4].prompt, None, {"temperature": 1.0, "max_tokens": 40})])
    assert mixed[:-1] == [steered.sample([ask])[0] for ask in asks]


def test_what_is_read_in_pieces_put_off_and_read_again_draws_on(
    steered: "Engine", exported: Path, tmp_path: Path
) -> None:
    seeded = {"temperature": 1.0, "seed": 9, "max_tokens": 30, "ignore_eos": True}
    long = {"max_tokens": 120, "ignore_eos": True, "stop_token_ids": []}
    prompts = [
        [1, *(20 + (7 * i + j) % 300 for j in range(length))] for i, length in enumerate((150, 90, 200, 40, 170))
    ]
    drawing = [(ids, {**shared(60 + i, SAMPLINGS[i % 4]), **long}) for i, ids in enumerate(prompts)]
    asks = [*drawing, (prompts[2], seeded), (prompts[0], {**seeded, "seed": 10})]
    request, answer = tmp_path / "request.json", tmp_path / "answer.json"
    request.write_text(json.dumps({"policy": str(exported), "asks": asks, "blocks": 12}))
    script = Path(__file__).with_name("pressed_engine.py")
    run = subprocess.run([sys.executable, str(script), str(request), str(answer)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    pressed = json.loads(answer.read_text())
    assert pressed["preemptions"] > 3
    at_ease = steered.sample([({"prompt_token_ids": ids}, None, sampling) for ids, sampling in asks])
    assert pressed["tokens"] == [[list(tokens) for tokens in group] for group in at_ease]


BAD: dict[str, tuple[Sampled, str]] = {
    "no seed": ({"extra_args": {"taskmem_rows": 4}}, "takes taskmem_seed and taskmem_rows"),
    "no rows": ({"extra_args": {"taskmem_seed": 4}}, "takes taskmem_seed and taskmem_rows"),
    "a field more": ({"extra_args": {"taskmem_seed": 1, "taskmem_rows": 4, "taskmem_row": 1}}, "taskmem_row"),
    "text": ({"extra_args": {"taskmem_seed": "1", "taskmem_rows": 4}}, "taskmem_seed is '1'"),
    "a list": ({"extra_args": {"taskmem_seed": 1, "taskmem_rows": [4]}}, r"taskmem_rows is \[4\]"),
    "a fraction": ({"extra_args": {"taskmem_seed": 1.5, "taskmem_rows": 4}}, "taskmem_seed is 1.5"),
    "negative": ({"extra_args": {"taskmem_seed": -1, "taskmem_rows": 4}}, "taskmem_seed is -1"),
    "no generator's seed": ({"extra_args": {"taskmem_seed": 1 << 63, "taskmem_rows": 4}}, "taskmem_seed is 9223"),
    "too many rows": ({"extra_args": {"taskmem_seed": 1, "taskmem_rows": 65}}, "taskmem_rows is 65"),
    "no rows at all": ({"extra_args": {"taskmem_seed": 1, "taskmem_rows": 0}}, "taskmem_rows is 0"),
    "no first row": ({"seed": None}, "first row of a shared draw.* is None"),
    "a row too far": ({"seed": 4, "n": 1}, "first row of a shared draw.* is 4"),
    "too many": ({"n": 5}, "n is 5"),
    "greedy": ({"temperature": 0, "n": 1}, "temperature is 0"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_draw_that_cannot_be_is_refused_and_the_engine_goes_on(
    what: str, steered: "Engine", reference: Reference
) -> None:
    from vllm.exceptions import VLLMValidationError  # noqa: PLC0415 - only where vLLM is

    spoilt, reason = BAD[what]
    ask = reference.asks[0]
    good = steered.sample([(ask.prompt, None, of(ask))])
    with pytest.raises(VLLMValidationError, match=reason):
        steered.sample([(ask.prompt, None, {**of(ask), **spoilt})])
    assert steered.sample([(ask.prompt, None, of(ask))]) == good
