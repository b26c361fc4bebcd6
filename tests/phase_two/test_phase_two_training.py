"""DPO on one vector, against TRL's own trainer."""

import json
import math
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from phase_two_parts import SEED, film, pairs, short_profile
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer

from taskmem.config import Profile
from taskmem.errors import UserError
from taskmem.files import sha256_tree
from taskmem.phase_two import frozen, supply
from taskmem.phase_two.frozen import FrozenPolicy
from taskmem.phase_two.halves import LowerHalf, UpperHalf, load_lower, load_upper
from taskmem.phase_two.train import train_phase_two
from taskmem.policy.transformers_policy import TransformersPolicy, load_checkpoint, policy_digest
from taskmem.steer import SteerConfig, read_adapter, steer_vector


def vector(adapter: Path) -> torch.Tensor:
    return read_adapter(adapter)[1]


def curve(adapter: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((adapter / "training.json").read_text())
    return found


def rows(policy: TransformersPolicy, chosen: bool) -> list[tuple[Any, tuple[int, ...]]]:
    texts = [pair.chosen if chosen else pair.rejected for pair in pairs()]
    return [(policy.prompt(p.context), policy.encoder.completion_ids(t)) for p, t in zip(pairs(), texts, strict=True)]


@torch.no_grad()
def logps(model: Any, policy: TransformersPolicy, chosen: bool) -> torch.Tensor:
    """The log-probability of every pair's chosen or rejected completion, one plain row each, [pairs]."""
    found = []
    for prompt, tokens in rows(policy, chosen):
        batch, _ = policy.encoder.batch([prompt], [tokens], side="right")
        scores = model(**batch).logits[0, len(prompt.ids) - 1 : -1].log_softmax(-1)
        found.append(scores.gather(1, torch.tensor(tokens)[:, None]).sum())
    return torch.stack(found)


def margins(model: Any, policy: TransformersPolicy) -> torch.Tensor:
    return logps(model, policy, chosen=True) - logps(model, policy, chosen=False)


def trl_vector(base: Path, profile: Profile, out: Path) -> tuple[torch.Tensor, list[float]]:
    """The vector and the losses of TRL's DPOTrainer as it comes: its reference is a pass with the adapter off."""
    model, processor = load_checkpoint(base)
    policy = TransformersPolicy.of(model, processor, profile.policy, film, "0" * 64)
    good, bad = rows(policy, chosen=True), rows(policy, chosen=False)

    def collate(picked: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        both = [good[row["number"]] for row in picked] + [bad[row["number"]] for row in picked]
        batch, labels = policy.encoder.batch([p for p, _ in both], [tokens for _, tokens in both], side="right")
        return {**batch, "completion_mask": (labels != -100).long()}

    settings = profile.phase_two
    config = DPOConfig(
        output_dir=str(out),
        seed=SEED,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=math.inf,
        dataloader_drop_last=True,
        beta=settings.beta,
        max_length=None,
        router_aux_loss_coef=0.0,
        remove_unused_columns=False,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        bf16=False,
        use_cpu=True,
    )
    data = [{"number": i, "images": [], "prompt": "", "chosen": "", "rejected": ""} for i in range(len(good))]
    trainer = DPOTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(data),
        processing_class=processor,
        data_collator=collate,
        peft_config=SteerConfig(layer=settings.layer),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return steer_vector(trainer.model).detach().clone(), losses


def test_the_vector_equals_that_of_trls_own_trainer(base: Path, trained: Path, tmp_path: Path) -> None:
    wanted, losses = trl_vector(base, short_profile(), tmp_path)
    assert wanted.norm() > 0.1
    assert float((vector(trained) - wanted).norm() / wanted.norm()) < 1e-5
    assert [step["loss"] for step in curve(trained)["steps"]] == pytest.approx(losses, abs=1e-5)


def test_the_vector_starts_from_zero_so_the_first_loss_is_log_2(trained: Path) -> None:
    first, *others = curve(trained)["steps"]
    assert first["loss"] == pytest.approx(math.log(2), abs=2e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert all(step["loss"] != pytest.approx(math.log(2), abs=1e-4) for step in others)


def test_an_adapter_that_lies_in_the_folder_already_is_not_gone_on_from(
    base: Path, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "red")
    train_phase_two(FrozenPolicy(base), pairs(), film, short_profile(), SEED, tmp_path / "red")
    assert sha256_tree(tmp_path / "red") == sha256_tree(trained)


def test_only_the_vector_changes(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def remember(path: Path, layer: int) -> UpperHalf:
        used.append(load_upper(path, layer))
        return used[-1]

    monkeypatch.setattr(frozen, "load_upper", remember)
    digest = sha256_tree(base)
    adapter = train_phase_two(FrozenPolicy(base), pairs(), film, short_profile(), SEED, tmp_path / "red")
    (upper,) = used
    before = load_upper(base, 2).state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in upper.state_dict().items())
    assert all(parameter.grad is None for parameter in upper.parameters())
    assert vector(adapter).norm() > 0
    assert sha256_tree(base) == digest


def test_the_whole_model_is_never_loaded(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lower half is gone when the upper comes, and transformers is asked for no whole model."""
    lowers: list[Any] = []

    def lower(*args: Any) -> LowerHalf:
        half = load_lower(*args)
        lowers.append(weakref.ref(half))
        return half

    def upper(*args: Any) -> UpperHalf:
        assert [half() for half in lowers] == [None]
        return load_upper(*args)

    monkeypatch.setattr(supply, "load_lower", lower)
    monkeypatch.setattr(frozen, "load_upper", upper)
    monkeypatch.delattr(PreTrainedModel, "from_pretrained")
    train_phase_two(FrozenPolicy(base), pairs(), film, short_profile(), SEED, tmp_path / "red")
    assert len(lowers) == 1


def test_a_target_norm_is_reached_without_turning_the_vector(base: Path, trained: Path, tmp_path: Path) -> None:
    scaled = train_phase_two(FrozenPolicy(base), pairs(), film, short_profile(target_norm=0.3), SEED, tmp_path / "red")
    assert float(vector(scaled).norm()) == pytest.approx(0.3, rel=1e-6)
    assert float(vector(trained).norm()) != pytest.approx(0.3, rel=0.1)
    assert torch.cosine_similarity(vector(scaled), vector(trained), dim=0) == pytest.approx(1, abs=1e-6)
    assert curve(scaled)["trained_norm"] == curve(trained)["trained_norm"]


def test_without_a_target_norm_the_vector_is_left_as_trained(trained: Path) -> None:
    assert curve(trained)["trained_norm"] == pytest.approx(float(vector(trained).norm()), abs=1e-6)


def test_the_same_inputs_and_seed_give_the_same_bytes_in_another_folder(
    base: Path, trained: Path, tmp_path: Path
) -> None:
    again = train_phase_two(FrozenPolicy(base), pairs(), film, short_profile(), SEED, tmp_path / "elsewhere" / "blue")
    assert again == tmp_path / "elsewhere" / "blue"
    assert sha256_tree(again) == sha256_tree(trained)


def test_the_bytes_do_not_say_where_the_policy_lies(base: Path, trained: Path) -> None:
    config = json.loads((trained / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == f"sha256:{policy_digest(base)}"
    assert not any(str(base).encode() in file.read_bytes() for file in trained.rglob("*") if file.is_file())


def test_another_seed_gives_another_order_of_pairs(base: Path, trained: Path, tmp_path: Path) -> None:
    other = train_phase_two(FrozenPolicy(base), pairs(), film, short_profile(), SEED + 1, tmp_path / "red")
    assert not torch.equal(vector(other), vector(trained))


def test_a_batch_larger_than_the_pairs_is_all_of_them(base: Path, tmp_path: Path) -> None:
    profile = short_profile(batch=64, steps=2)
    seen: list[tuple[int, int]] = []
    full = train_phase_two(
        FrozenPolicy(base),
        pairs(),
        film,
        profile,
        SEED,
        tmp_path / "red",
        lambda done, total: seen.append((done, total)),
    )
    other_seed = train_phase_two(FrozenPolicy(base), pairs(), film, profile, SEED + 1, tmp_path / "blue")
    assert seen == [(1, 2), (2, 2)]
    torch.testing.assert_close(vector(full), vector(other_seed), rtol=1e-3, atol=1e-5)


def test_the_settings_layer_is_steered(base: Path, tmp_path: Path) -> None:
    adapter = train_phase_two(
        FrozenPolicy(base), pairs(), film, short_profile(layer=1, steps=1), SEED, tmp_path / "red"
    )
    assert read_adapter(adapter)[0] == 1


def test_no_pairs_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no preference pairs") as refusal:
        train_phase_two(FrozenPolicy(base), [], film, short_profile(), SEED, tmp_path / "red")
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_a_vector_that_is_not_finite_is_refused_and_not_written(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"norm is (nan|inf).*learning_rate"):
        train_phase_two(FrozenPolicy(base), pairs(), film, short_profile(learning_rate=1e38), SEED, tmp_path / "red")
    assert not (tmp_path / "red").exists()


def test_the_adapter_loads_with_peft_and_prefers_the_chosen_completions(
    trained: Path, policy: TransformersPolicy, model: Any
) -> None:
    before = margins(model, policy)
    PeftModel.from_pretrained(model, str(trained))
    after = margins(model, policy)
    assert (after - before).mean() > 0.1


def test_the_adapter_steers_what_the_policy_writes_and_disabled_it_is_the_base(
    trained: Path, policy: TransformersPolicy, model: Any
) -> None:
    contexts = [pair.context for pair in pairs()]
    plain_logps, plain_words = logps(model, policy, chosen=True), policy.write(contexts, 4, seed=0)
    steered = PeftModel.from_pretrained(model, str(trained))
    assert not torch.equal(logps(model, policy, chosen=True), plain_logps)
    assert policy.write(contexts, 4, seed=0) != plain_words
    with steered.disable_adapter():
        assert torch.equal(logps(model, policy, chosen=True), plain_logps)
        assert policy.write(contexts, 4, seed=0) == plain_words


def test_the_reported_margins_are_those_of_beta_times_the_log_ratios(
    base: Path, policy: TransformersPolicy, model: Any, tmp_path: Path
) -> None:
    """The margin reported at the second step is measured with the vector of one step."""
    one = train_phase_two(FrozenPolicy(base), pairs(), film, short_profile(batch=5, steps=1), SEED, tmp_path / "one")
    two = train_phase_two(FrozenPolicy(base), pairs(), film, short_profile(batch=5, steps=2), SEED, tmp_path / "two")
    before = margins(model, policy)
    PeftModel.from_pretrained(model, str(one))
    gained = short_profile().phase_two.beta * (margins(model, policy) - before)
    reported = curve(two)["steps"][1]
    assert gained.abs().max() > 1e-3
    assert reported["rewards/margins"] == pytest.approx(float(gained.mean()), abs=1e-5)
    assert reported["loss"] == pytest.approx(float(-torch.nn.functional.logsigmoid(gained).mean()), abs=1e-5)


def test_the_files_are_those_that_peft_writes_from_the_whole_model(
    base: Path, trained: Path, model: Any, tmp_path: Path
) -> None:
    steered = get_peft_model(model, SteerConfig(layer=2))
    with torch.no_grad():
        steer_vector(steered).copy_(vector(trained))
    steered.peft_config["default"].base_model_name_or_path = f"sha256:{policy_digest(base)}"
    steered.save_pretrained(tmp_path / "red")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (trained / name).read_bytes() == (tmp_path / "red" / name).read_bytes()


def test_the_folder_holds_pefts_two_files_and_the_curve_alone(trained: Path) -> None:
    names = sorted(path.name for path in trained.iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors", "training.json"]


def test_nothing_is_left_beside_the_adapter(trained: Path) -> None:
    assert list(trained.parent.iterdir()) == [trained]
