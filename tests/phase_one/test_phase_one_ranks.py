"""Several processes train as one: the same batches, the same gradients, one history, checkpoints that outlive any of them."""

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from phase_one_parts import short_profile
from ranks_parts import ALL, alone, shared_profile, together
from safetensors.torch import load_file

from taskmem.config import load_profile
from taskmem.errors import UserError
from taskmem.files import sha256_tree
from taskmem.phase_one.checkpoints import SLOTS_FILE, STRIPPED, last_checkpoint, strip, whole_checkpoints
from taskmem.phase_one.ranks import Ranks
from taskmem.phase_one.share import share_of

Weights = dict[str, torch.Tensor]


def norm(weights: Weights) -> float:
    return float(sum(w.double().square().sum() for w in weights.values()) ** 0.5)


def apart(a: Weights, b: Weights) -> float:
    assert a.keys() == b.keys()
    return norm({name: a[name] - b[name] for name in a})


def weights_at(out: Path, update: int) -> Weights:
    found: Weights = load_file(out / "checkpoints" / f"checkpoint-{update}" / "model.safetensors")
    return found


def curves(out: Path) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((out / "training.json").read_text())
    return found


def assert_same_curves(out: Path, wanted: Path, but: tuple[str, ...] = ()) -> None:
    for mine, theirs in zip(curves(out), curves(wanted), strict=True):
        assert {k: v for k, v in mine.items() if k not in but} == pytest.approx(
            {k: v for k, v in theirs.items() if k not in but}, rel=1e-5, abs=2e-5
        )


def done(run: subprocess.CompletedProcess[str]) -> None:
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.parametrize("processes", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("micro", [None, 1, 2])
def test_every_rollout_of_every_mini_batch_is_learned_from_once(processes: int, micro: int | None) -> None:
    phase = load_profile("qwen3-vl-30b").phase_one
    phase = phase.model_copy(update={"spread": phase.spread.model_copy(update={"micro_batch": micro})})
    shares = [share_of(phase, Ranks(rank, processes, 0)) for rank in range(processes)]
    assert sorted(slot for share in shares for slot in share.slots) == list(range(phase.batch))
    updates = phase.batch // phase.mini_batch
    for update in range(updates):
        part = slice(update * shares[0].accumulation, (update + 1) * shares[0].accumulation)
        pieces = [piece for share in shares for one in share.passes[part] for piece in one]
        learned = Counter((p.slot, i) for p in pieces for i in range(p.first, p.last))
        slots = range(update * phase.mini_batch, (update + 1) * phase.mini_batch)
        assert learned == Counter((slot, i) for slot in slots for i in range(phase.group_size))
    for share in shares:
        assert len(share.passes) == updates * share.accumulation
        for one in share.passes:
            assert sum(piece.last - piece.first for piece in one) == share.micro_batch


def test_one_process_learns_from_whole_mini_batches_in_order() -> None:
    share = share_of(short_profile(batch=4, mini_batch=2, group_size=3).phase_one, Ranks())
    assert [[(p.slot, p.first, p.last) for p in one] for one in share.passes] == [
        [(0, 0, 3), (1, 0, 3)],
        [(2, 0, 3), (3, 0, 3)],
    ]


@pytest.mark.parametrize(
    ("processes", "micro", "field"),
    [
        (3, None, "phase_one.batch"),
        (64, 1, "phase_one.batch"),
        (2, 3, "spread.micro_batch"),
        (2, 12, "spread.micro_batch"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(processes: int, micro: int | None, field: str) -> None:
    phase = load_profile("qwen3-vl-30b").phase_one
    phase = phase.model_copy(update={"spread": phase.spread.model_copy(update={"micro_batch": micro})})
    with pytest.raises(UserError, match=field) as refusal:
        share_of(phase, Ranks(0, processes, 0))
    assert "\n" not in str(refusal.value)


def test_a_process_knows_its_number_from_torchrun() -> None:
    assert Ranks.of({}) == Ranks(0, 1, 0)
    assert Ranks.of({"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}) == Ranks(9, 16, 1)
    for wrong in ({"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "1"}):
        with pytest.raises(UserError, match="torchrun"):
            Ranks.of(wrong)


def test_only_the_newest_checkpoints_keep_what_resuming_needs(tmp_path: Path) -> None:
    for update in (2, 4, 6, 8):
        folder = tmp_path / f"checkpoint-{update}"
        (folder / f"global_step{update}").mkdir(parents=True)
        (folder / f"global_step{update}" / "shard.pt").write_text("shard")
        for name in ("model.safetensors", "config.json", "optimizer.pt", "rng_state_0.pth", "tokenizer.json"):
            (folder / name).write_text(name)
        if update < 8:
            (folder / SLOTS_FILE).write_text("[]")
    strip(tmp_path, 2)
    left = {folder.name: {path.name for path in folder.iterdir()} for folder in tmp_path.iterdir()}
    assert left["checkpoint-2"] == {"model.safetensors", "config.json", "tokenizer.json", SLOTS_FILE, STRIPPED}
    assert "optimizer.pt" in left["checkpoint-4"] & left["checkpoint-6"] & left["checkpoint-8"]
    assert len(whole_checkpoints(tmp_path)) == 3
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-6"
    strip(tmp_path, 1)
    (tmp_path / "checkpoint-6" / SLOTS_FILE).unlink()
    assert last_checkpoint(tmp_path) is None


def test_small_passes_and_recomputed_activations_change_a_run_by_rounding_alone(base: Path, tmp_path: Path) -> None:
    steps: dict[str, Any] = {"off_policy_steps": 1, "on_policy_steps": 1}
    wanted = alone(base, tmp_path / "whole", **steps)
    got = alone(base, tmp_path / "cut", micro_batch=2, gradient_checkpointing=True, sampled=1, **steps)
    assert len(got) == len(wanted) == 4
    for mine, theirs in zip(got, wanted, strict=True):
        assert apart(mine, theirs) < 1e-4 * norm(theirs)
    # of these TRL takes the mean over passes
    assert_same_curves(tmp_path / "cut", tmp_path / "whole", but=("kl", "entropy"))


def test_two_processes_learn_what_one_learns(base: Path, tmp_path: Path) -> None:
    steps: dict[str, Any] = {"off_policy_steps": 1, "on_policy_steps": 1}
    wanted = alone(base, tmp_path / "one", **steps)
    done(together(2, base, tmp_path / "two", **steps))
    for update, theirs in enumerate(wanted):
        mine = load_file(tmp_path / "two" / f"gradient-{update}.safetensors")
        assert norm(theirs) > 1e-2
        assert apart(mine, theirs) < 1e-4 * norm(theirs)
    assert_same_curves(tmp_path / "two", tmp_path / "one")
    assert apart(weights_at(tmp_path / "two", 4), weights_at(tmp_path / "one", 4)) < 1e-3


@pytest.fixture(scope="module")
def two(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps in two processes that nothing interrupted."""
    out = tmp_path_factory.mktemp("two")
    done(together(2, base, out))
    return out


@pytest.mark.slow
def test_a_long_run_in_two_processes_stays_with_that_of_one(base: Path, two: Path, tmp_path: Path) -> None:
    wanted = alone(base, tmp_path)
    for update, theirs in enumerate(wanted):
        mine = load_file(two / f"gradient-{update}.safetensors")
        assert apart(mine, theirs) < 1e-4 * norm(theirs)
    assert_same_curves(two, tmp_path)
    slots = [(folder / "checkpoints" / "checkpoint-8" / SLOTS_FILE).read_text() for folder in (two, tmp_path)]
    assert slots[0] == slots[1]
    assert any(slot["memories"] for slot in json.loads(slots[0]))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1, ALL])
def test_a_run_goes_on_after_one_or_all_of_its_processes_were_killed_and_ends_in_the_same_bytes(
    base: Path, two: Path, tmp_path: Path, rank: int
) -> None:
    # torchrun ends the others with the one; its own --max-restarts does not bring gloo's group back (torch 2.13)
    killed = together(2, base, tmp_path, dies=[rank, 5])
    assert killed.returncode != 0
    assert last_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "checkpoint-4"
    assert not (tmp_path / "policy").exists()
    done(together(2, base, tmp_path))
    assert sha256_tree(tmp_path / "policy") == sha256_tree(two / "policy")
    assert curves(tmp_path) == curves(two)


@pytest.mark.slow
@pytest.mark.parametrize(("sampling", "kl"), [("layers", 0.0), ("whole", 0.2)])
def test_sharded_by_zero_3_two_processes_learn_what_one_learns_whole(
    base: Path, tmp_path: Path, sampling: str, kl: float
) -> None:
    spread: dict[str, Any] = {"zero": 3, "sampling": sampling, "kl": kl, "full_checkpoints": 2}
    small: dict[str, Any] = {"micro_batch": 2, "gradient_checkpointing": True}
    alone(base, tmp_path / "one", kl=kl)
    done(together(2, base, tmp_path / "two", **spread, **small))
    # of these TRL takes the mean over passes
    assert_same_curves(tmp_path / "two", tmp_path / "one", but=("kl", "entropy"))
    moved = apart(weights_at(tmp_path / "one", 8), load_file(base / "model.safetensors"))
    assert apart(weights_at(tmp_path / "two", 8), weights_at(tmp_path / "one", 8)) < 1e-3 * moved
    validated = [json.loads((tmp_path / n / "validation.json").read_text()) for n in ("one", "two")]
    assert validated[0] == validated[1]
    assert (tmp_path / "two" / "checkpoints" / "checkpoint-4" / STRIPPED).exists()


@pytest.mark.slow
def test_a_sharded_run_goes_on_after_a_kill_and_refuses_another_number_of_processes(base: Path, tmp_path: Path) -> None:
    spread: dict[str, Any] = {"zero": 3, "sampling": "layers", "kl": 0.0}
    done(together(2, base, tmp_path / "whole", **spread))
    assert together(2, base, tmp_path / "cut", dies=[0, 5], **spread).returncode != 0
    other = together(1, base, tmp_path / "cut", **spread)
    assert other.returncode != 0
    assert "holds checkpoints of other inputs" in other.stderr
    done(together(2, base, tmp_path / "cut", **spread))
    assert sha256_tree(tmp_path / "cut" / "policy") == sha256_tree(tmp_path / "whole" / "policy")


def test_the_profile_says_how_a_run_is_spread() -> None:
    assert shared_profile(zero=3, kl=0.0).phase_one.spread.zero == 3
    paper = load_profile("qwen3-vl-30b").phase_one.spread
    assert (paper.zero, paper.gradient_checkpointing, paper.full_checkpoints) == (3, True, 2)


def test_a_sharded_run_without_torchrun_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="start it with torchrun"):
        alone(base, tmp_path / "out", zero=3, kl=0.0)
    assert not (tmp_path / "out").exists()
