"""A checkpoint folder as a policy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from policy_parts import Films
from safetensors.torch import load_file, save_file

from taskmem.config import PolicySettings
from taskmem.errors import UserError
from taskmem.policy.completion import seed_of
from taskmem.policy.grammar import completion_for
from taskmem.policy.transformers_policy import ROWS, TransformersPolicy, load_checkpoint, policy_digest


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def without_file(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def pickle_only(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def one_weight_missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.popitem()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_checkpoint_folder_loads_as_a_policy(checkpoint: Path, settings: PolicySettings, films: Films) -> None:
    policy = TransformersPolicy.load(checkpoint, settings, films.frames_of)
    assert policy.adapter == "none"
    assert policy.digest == policy_digest(checkpoint)
    assert not policy.model.training
    assert len(policy.write([films.context(0)], 2, 0)[0]) == 2


def test_the_embeddings_of_a_loaded_checkpoint_stay_tied(checkpoint: Path) -> None:
    model, _ = load_checkpoint(checkpoint)
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("where", ["nothing", "a folder of other files"])
def test_a_folder_without_a_checkpoint_is_a_user_error(tmp_path: Path, where: str) -> None:
    folder = tmp_path / "policy"
    if where != "nothing":
        folder.mkdir()
        (folder / "notes.txt").write_text("no policy here")
    with pytest.raises(
        UserError, match=r"policy: no policy checkpoint \(config.json is missing\); give the folder"
    ) as error:
        load_checkpoint(folder)
    assert "\n" not in str(error.value)


def test_pickled_weights_are_never_read(copied: Path) -> None:
    pickle_only(copied)
    with pytest.raises((UserError, OSError)):
        load_checkpoint(copied)


@pytest.mark.parametrize(
    "harm",
    [pickle_only, cut_short, one_weight_missing, without_file("tokenizer.json"), without_file("processor_config.json")],
)
def test_a_damaged_checkpoint_is_a_user_error(copied: Path, harm: Callable[[Path], None]) -> None:
    harm(copied)
    with pytest.raises(UserError):
        load_checkpoint(copied)


def other_config(**changes: object) -> Callable[[Path], None]:
    """config.json with other values; `text__x` is x of text_config."""

    def harm(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for name, value in changes.items():
            place = config["text_config"] if name.startswith("text__") else config
            place[name.removeprefix("text__")] = value
        (folder / "config.json").write_text(json.dumps(config))

    return harm


def no_object(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text("[]")


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize(
    "harm",
    [
        *map(no_object, ("config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json")),
        *(
            other_config(text_config=5),
            other_config(text__num_hidden_layers="four"),
            other_config(text__hidden_act="?"),
        ),
        *(other_config(dtype="float33"), other_config(text__hidden_size=64)),
        *(without_tokenizer, without_file("chat_template.jinja")),
    ],
)
def test_a_checkpoint_that_makes_no_sense_is_named_in_one_line(copied: Path, harm: Callable[[Path], None]) -> None:
    harm(copied)
    with pytest.raises(UserError, match=f"^{copied}.*; (copy the checkpoint again|give another policy)$") as error:
        load_checkpoint(copied)
    assert "\n" not in str(error.value)


def test_the_digest_names_the_content_and_not_the_place(checkpoint: Path, copied: Path) -> None:
    assert policy_digest(copied) == policy_digest(checkpoint)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "processor_config.json"]
)
def test_every_file_that_shapes_the_outputs_shapes_the_digest(checkpoint: Path, copied: Path, name: str) -> None:
    with (copied / name).open("ab") as handle:
        handle.write(b" ")
    assert policy_digest(copied) != policy_digest(checkpoint)


def test_seeds_are_fixed_and_fit_a_generator() -> None:
    assert seed_of(7, "stream:3:abc") == seed_of(7, "stream:3:abc") == 6966448500149105682
    assert len({seed_of(seed, context) for seed in range(10) for context in ("a", "b")}) == 20
    assert all(0 <= seed_of(i) < 2**63 for i in range(100))


def test_a_completion_is_parsed_and_its_tokens_are_counted(policy: TransformersPolicy) -> None:
    tokenizer = policy.encoder.tokenizer
    thinking, memory = "the lamps are lit, so\n", "a red person, shows three lamps"
    tokens = policy.encoder.completion_ids(completion_for(memory, thinking))
    completion = policy.completion(tokens)
    assert completion.text == completion_for(memory, thinking)
    assert completion.tokens == tokens
    assert completion.memory == memory
    assert completion.think_tokens == len(tokenizer(thinking).input_ids) > 0
    assert completion.memory_tokens == len(tokenizer(memory).input_ids) > 0


def test_a_completion_that_was_cut_off_keeps_all_its_tokens(policy: TransformersPolicy) -> None:
    tokens = policy.encoder.completion_ids(completion_for("a red person", "hm"))[:-1]
    completion = policy.completion(tokens)
    assert completion.tokens == tokens
    assert completion.memory == "a red person"


def test_a_broken_completion_has_no_memory_and_all_of_it_is_thinking(policy: TransformersPolicy) -> None:
    tokens = policy.encoder.completion_ids("on and on")
    completion = policy.completion(tokens)
    assert (completion.memory, completion.memory_tokens) == (None, 0)
    assert completion.think_tokens == len(tokens) - 1


def test_an_empty_completion_is_broken(policy: TransformersPolicy) -> None:
    completion = policy.completion([policy.encoder.end_id])
    assert (completion.text, completion.memory, completion.think_tokens) == ("", None, 0)


def test_writing_depends_on_context_number_and_seed_alone(policy: TransformersPolicy, films: Films) -> None:
    contexts = [films.context(0), films.context(0, 1, memories=["a red person"]), films.context(3, stream="other")]
    written = policy.write(contexts, 3, seed=5)
    assert policy.write(contexts, 3, seed=5) == written
    assert policy.write(contexts[::-1], 3, seed=5)[::-1] == written
    assert [policy.write([context], 3, seed=5)[0] for context in contexts] == written
    assert policy.write(contexts, 3, seed=6) != written


def test_contexts_are_drawn_independently_of_each_other(model: Any, encoder_of: Any, films: Films) -> None:
    # so hot that every token is as likely: only the noise decides
    policy = TransformersPolicy(model, encoder_of({"temperature": 1e6}, max_completion_tokens=4), digest="a" * 64)
    first, second = policy.write([films.context(0), films.context(1)], 2, seed=0)
    assert all(a.tokens != b.tokens for a in first for b in second)


def test_more_contexts_than_fit_one_batch_are_all_written(policy: TransformersPolicy, films: Films) -> None:
    contexts = [films.context(index) for index in range(5)]
    n = ROWS // 2
    written = policy.write(contexts, n, seed=1)
    assert [len(group) for group in written] == [n] * 5
    assert written[4] == policy.write(contexts[4:], n, seed=1)[0]


def test_no_contexts_give_no_completions(policy: TransformersPolicy) -> None:
    assert policy.write([], 4, seed=0) == []


def test_different_contexts_get_different_completions(policy: TransformersPolicy, films: Films) -> None:
    first, second = policy.write([films.context(0), films.context(1)], 2, seed=0)
    assert first != second
