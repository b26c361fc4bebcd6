"""The policy over HTTP: what the server is asked, and that its tokens become the same completions as in this process."""

import base64
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from loopback import Act, Loopback, Seen, call_settings, chat
from policy_parts import Films

from taskmem.config import load_profile
from taskmem.endpoint.client import Endpoint
from taskmem.endpoint.media import Clips
from taskmem.errors import UserError
from taskmem.policy.completion import seed_of
from taskmem.policy.grammar import completion_for
from taskmem.policy.http import HttpPolicy, Vocabulary, stamps
from taskmem.policy.transformers_policy import TransformersPolicy, load_checkpoint
from taskmem.records import Context, Segment
from taskmem.world.render import write_mp4

SETTINGS = load_profile("miniature").policy
DIGEST = "d" * 64
Opened = Callable[..., HttpPolicy]


@pytest.fixture(scope="module")
def vocabulary(checkpoint: Path) -> Vocabulary:
    return Vocabulary.load(checkpoint)


@pytest.fixture
def films() -> Films:
    return Films()


def spoken(vocabulary: Vocabulary, *texts: str, read: Sequence[str] = ("2.5",)) -> dict[str, Any]:
    tokenizer = vocabulary.tokenizer
    ids = [[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for text in texts]
    reply = chat("what a reasoning parser made of it")
    times = [tokenizer(f"[00:10]<{time} seconds>", add_special_tokens=False).input_ids for time in read]
    reply["prompt_token_ids"] = [token for ids in times for token in (*ids, 3, *[vocabulary.video] * 2, 4)]
    reply["choices"] = [{**reply["choices"][0], "index": i, "token_ids": tokens} for i, tokens in enumerate(ids)]
    return reply


@pytest.fixture
def server(vocabulary: Vocabulary) -> Iterator[Loopback]:
    def behave(seen: Seen) -> Act:
        texts = [completion_for(f"{seen.body['vllm_xargs']['taskmem_seed']} {i}") for i in range(seen.body["n"])]
        return Act(spoken(vocabulary, *texts, read=["2.5"] * str(seen.body["messages"]).count("'type': 'video_url'")))

    with Loopback(behave) as server:
        yield server


@pytest.fixture
def opened(server: Loopback, tmp_path: Path, films: Films, vocabulary: Vocabulary) -> Iterator[Opened]:
    endpoints: list[Endpoint] = []

    def policy(adapter: str = "none", digest: str = DIGEST, **changes: Any) -> HttpPolicy:
        if endpoints:
            endpoints[-1].close()
        settings = call_settings(server.url, **{"policy": True, "media": "frames", "model": "base", **changes})
        endpoints.append(Endpoint(settings, tmp_path / "calls", {}))

        def bytes_of(segment: Segment) -> bytes:
            path = tmp_path / f"{segment.sha256}.mp4"
            write_mp4(path, films.frames_of(segment))
            return path.read_bytes()

        clips = Clips(bytes_of, films.frames_of)
        return HttpPolicy(endpoints[-1], SETTINGS, clips, vocabulary, digest, adapter)

    yield policy
    if endpoints:
        endpoints[-1].close()


def test_every_setting_that_decides_goes_with_the_request(server: Loopback, opened: Opened, films: Films) -> None:
    context = films.context(0, 1, memories=["a red person"])
    opened().write([context], 3, 7)
    (seen,) = server.seen
    asked = {key: value for key, value in seen.body.items() if key not in ("messages", "logit_bias")}
    assert asked == {
        "model": "base",
        "n": 3,
        "seed": 0,
        "vllm_xargs": {"taskmem_seed": seed_of(7, 3, context.id), "taskmem_rows": 3},
        "temperature": SETTINGS.sampling.temperature,
        "top_p": SETTINGS.sampling.top_p,
        "top_k": SETTINGS.sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_completion_tokens": SETTINGS.max_completion_tokens,
        "ignore_eos": True,
        "stop_token_ids": [2, 6, 5],
        "return_token_ids": True,
    }


def test_a_server_that_draws_for_itself_is_refused_by_its_first_token(
    server: Loopback, opened: Opened, films: Films, vocabulary: Vocabulary
) -> None:
    reply = spoken(vocabulary, completion_for("x"), completion_for("y"))
    reply["choices"][1]["token_ids"] = [vocabulary.video]
    server.behave = lambda _: Act(reply)
    with pytest.raises(
        UserError, match=r"draws otherwise than this process would; start it with `taskmem serve policy`"
    ):
        opened().write([films.context(0)], 2, 0)
    # it would write nothing else: the tokens that the shared draw forbids are certain without it
    names = ("<|video_pad|>", "<|image_pad|>")
    pictures = [vocabulary.tokenizer.convert_tokens_to_ids(name) for name in names]
    assert server.seen[0].body["logit_bias"] == {str(token): 100 for token in pictures}
    assert server.seen[0].body["stop_token_ids"] == [vocabulary.tokenizer.eos_token_id, *pictures]


@pytest.mark.parametrize("media", ["mp4", "frames"])
def test_the_messages_are_the_renderers_with_the_clips_in_place(
    server: Loopback, opened: Opened, films: Films, media: str
) -> None:
    opened(media=media).write([films.context(0, 1, memories=["a red person"])], 1, 0)
    (message,) = server.seen[0].body["messages"]
    kinds = [part.get("text", part["type"]).strip() for part in message["content"]]
    assert kinds == ["memory:\n[00:00] a red person", "[00:00]", "video_url", "[00:10]", "video_url"]
    urls = [part["video_url"]["url"] for part in message["content"] if part["type"] == "video_url"]
    assert len(set(urls)) == 2
    if media == "mp4":
        assert all(base64.b64decode(url.split(",")[1])[4:8] == b"ftyp" for url in urls)


def test_tokens_become_the_completions_of_the_process_itself(
    server: Loopback, opened: Opened, films: Films, vocabulary: Vocabulary, checkpoint: Path
) -> None:
    texts = [completion_for("a red person", "let me see"), "no tags", completion_for("<face_1> waves"), "</think>{}"]
    server.behave = lambda _: Act(spoken(vocabulary, *texts))
    (group,) = opened().write([films.context(0)], 4, 0)
    model, processor = load_checkpoint(checkpoint)
    here = TransformersPolicy.of(model, processor, SETTINGS, films.frames_of, DIGEST)
    assert group == [here.completion(completion.tokens) for completion in group]
    assert [c.memory for c in group] == ["a red person", None, "<face_1> waves", None]
    assert [c.text for c in group] == texts
    assert group[0].think_tokens > 0 == group[2].think_tokens


def test_an_adapter_is_asked_for_by_name(server: Loopback, opened: Opened, films: Films) -> None:
    policy = opened("env@v3")
    policy.write([films.context(0)], 1, 0)
    assert (policy.adapter, server.seen[0].body["model"]) == ("env@v3", "env@v3")


def test_what_was_sampled_is_not_sampled_again(server: Loopback, opened: Opened, films: Films) -> None:
    contexts = [films.context(i) for i in range(3)]
    first = opened().write(contexts, 2, 0)
    assert opened().write(contexts[::-1], 2, 0) == first[::-1]
    assert len(server.seen) == 3
    opened(digest="e" * 64).write(contexts, 2, 0)
    opened("env@v3").write(contexts, 2, 0)
    opened().write(contexts, 2, 1)
    assert len(server.seen) == 12


def test_completions_do_not_depend_on_the_other_contexts(opened: Opened, films: Films) -> None:
    contexts = [films.context(i) for i in range(6)]
    together = opened(concurrency=6).write(contexts, 2, 0)
    assert [c for context in contexts for c in opened(concurrency=1).write([context], 2, 0)] == together
    assert len({group[0].memory for group in together}) == 6


def test_a_server_without_token_ids_is_refused(server: Loopback, opened: Opened, films: Films) -> None:
    server.behave = lambda _: Act(chat("text alone"))
    with pytest.raises(UserError, match="gives no token ids; serve the policy with vLLM"):
        opened().write([films.context(0)], 1, 0)


@pytest.mark.parametrize("read", [[], ["2.5"], ["2.5"] * 3, ["0.5", "0.5"], ["2.5", ""]])
def test_a_server_that_samples_the_clips_again_or_takes_them_for_faster_is_refused(
    server: Loopback, opened: Opened, films: Films, vocabulary: Vocabulary, read: list[str]
) -> None:
    reply = spoken(vocabulary, completion_for("x"), read=[time or "x" for time in read])
    server.behave = lambda _: Act(reply)
    with pytest.raises(UserError, match=r"instead of \['2.5', '2.5'\], so it samples them again"):
        opened().write([films.context(0, 1)], 1, 0)


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
@pytest.mark.parametrize("fps", [0.2, 2.0])
def test_the_times_are_those_of_the_processor(
    opened: Opened, films: Films, vocabulary: Vocabulary, checkpoint: Path, frames: int, fps: float
) -> None:
    segment = films.segment(0, frames=frames, fps=fps)
    context = Context(segments=(segment,))
    here = TransformersPolicy.of(*load_checkpoint(checkpoint), SETTINGS, films.frames_of, DIGEST)
    wanted = stamps(frames, fps, 2)
    assert (wanted == [None]) is (frames == 1)
    read = vocabulary.stamps_in(here.prompt(context).ids)
    assert [w or r for w, r in zip(wanted, read, strict=True)] == read


def test_a_time_that_a_memory_speaks_of_is_none(vocabulary: Vocabulary) -> None:
    told = vocabulary.tokenizer("a clock shows <9.9 seconds>" + " and so on" * 20).input_ids
    assert vocabulary.stamps_in([*told, vocabulary.video]) == [""]


def test_too_few_completions_are_no_answer(server: Loopback, opened: Opened, films: Films) -> None:
    with pytest.raises(UserError, match="1 completions instead of 2"):
        server.behave = lambda _: Act(chat("x", token_ids=[1]))
        opened().write([films.context(0)], 2, 0)


def test_completions_in_another_order_are_no_answer(
    server: Loopback, opened: Opened, films: Films, vocabulary: Vocabulary
) -> None:
    reply = spoken(vocabulary, completion_for("x"), completion_for("y"))
    server.behave = lambda _: Act({**reply, "choices": reply["choices"][::-1]})
    with pytest.raises(UserError, match="completions out of order"):
        opened().write([films.context(0)], 2, 0)


def test_a_second_try_asks_for_the_same_draws(
    server: Loopback, opened: Opened, films: Films, vocabulary: Vocabulary
) -> None:
    good = Act(spoken(vocabulary, completion_for("x")))
    server.behave = lambda seen: good if seen.number else Act(b"{half")
    opened(invalid_retries=1).write([films.context(0)], 1, 0)
    first, second = server.seen
    assert first.body == second.body


@pytest.mark.parametrize("temperature", [0.009, 2.5])
def test_a_temperature_that_vllm_would_change_is_refused(
    server: Loopback, tmp_path: Path, films: Films, vocabulary: Vocabulary, temperature: float
) -> None:
    sampling = SETTINGS.sampling.model_copy(update={"temperature": temperature})
    settings = SETTINGS.model_copy(update={"sampling": sampling})
    clips = Clips(lambda _: b"", films.frames_of)
    with (
        Endpoint(call_settings(server.url, policy=True, media="frames"), tmp_path / "calls", {}) as endpoint,
        pytest.raises(UserError, match=r"policy\.sampling\.temperature"),
    ):
        HttpPolicy(endpoint, settings, clips, vocabulary, DIGEST)


def test_more_completions_than_a_server_writes_are_refused_unasked(
    server: Loopback, opened: Opened, films: Films
) -> None:
    with pytest.raises(UserError, match="a server writes 64 at most"):
        opened().write([films.context(0)], 65, 0)
    assert not server.seen


def test_an_outage_ends_the_work_with_one_line(server: Loopback, opened: Opened, films: Films) -> None:
    server.behave = lambda _: Act({"error": {"message": "gone"}}, 400)
    with pytest.raises(UserError, match=r"^context stream:0:.*the policy's server failed.*--resume") as stop:
        opened().write([films.context(0)], 1, 0)
    assert "\n" not in str(stop.value)


def test_loose_images_are_refused(opened: Opened) -> None:
    with pytest.raises(UserError, match=r"calls\.policy\.media"):
        opened(media="images")


def test_a_folder_without_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        Vocabulary.load(tmp_path)
