"""Whole runs of Phase One: resumed, refused, validated and exported."""

import json
import os
import shutil
import signal
import subprocess
import sys
from inspect import getsourcefile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from phase_one_parts import SEED, boxes_seen, film, inputs, judges_of, killed_run, short_profile, stream
from safetensors.torch import load_file

from taskmem.errors import UserError
from taskmem.files import sha256_tree
from taskmem.phase_one.checkpoints import SLOTS_FILE, last_checkpoint
from taskmem.phase_one.train import train_phase_one
from taskmem.policy.transformers_policy import TransformersPolicy, load_checkpoint
from taskmem.records import Segment


def results(out: Path) -> dict[str, bytes]:
    """Every file of a finished run but the checkpoints, by name."""
    files = [out / "training.json", out / "validation.json", *(out / "policy").rglob("*")]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steps_done(out: Path) -> list[str]:
    return sorted(folder.name for folder in (out / "checkpoints").glob("checkpoint-*"))


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps (eight updates) that nothing interrupted."""
    out = tmp_path_factory.mktemp("finished")
    assert train_phase_one(base, inputs(), short_profile(), SEED, out) == out / "policy"
    return out


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the uninterrupted run, to be spoiled."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_run_changes_the_policy_and_writes_its_curves(base: Path, finished: Path) -> None:
    assert steps_done(finished) == [f"checkpoint-{update}" for update in (2, 4, 6, 8)]
    curves = json.loads((finished / "training.json").read_text())
    assert len(curves) == 4
    assert {"loss", "kl", "reward", "quality_rate", "unscored"} <= curves[-1].keys()
    saved = [weights(base), *(weights(finished / "checkpoints" / name) for name in steps_done(finished))]
    assert not any(same(a, b) for a, b in pairwise(saved))


def test_the_same_inputs_and_seed_give_the_same_bytes_in_another_folder(
    base: Path, finished: Path, tmp_path: Path
) -> None:
    train_phase_one(base, inputs(), short_profile(), SEED, tmp_path / "again")
    assert results(tmp_path / "again") == results(finished)


def test_another_seed_gives_another_policy(base: Path, finished: Path, tmp_path: Path) -> None:
    one_step = short_profile(off_policy_steps=1, on_policy_steps=0)
    policy = train_phase_one(base, inputs(), one_step, SEED + 1, tmp_path)
    assert not same(weights(policy), weights(finished / "checkpoints" / "checkpoint-2"))


def test_a_killed_run_goes_on_from_its_checkpoint_and_ends_in_the_same_bytes(
    base: Path, finished: Path, tmp_path: Path
) -> None:
    command = [sys.executable, getsourcefile(killed_run) or "", str(base), str(tmp_path), "7"]
    run = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    assert steps_done(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    slots = json.loads((tmp_path / "checkpoints" / "checkpoint-6" / SLOTS_FILE).read_text())
    assert any(slot["memories"] for slot in slots)

    seen: list[int] = []
    train_phase_one(base, inputs(), short_profile(), SEED, tmp_path, lambda done, total: seen.append(done))
    assert seen == [3, 4]  # steps, of two updates each
    assert results(tmp_path) == results(finished)


def test_a_checkpoint_that_was_cut_off_is_not_resumed_from(base: Path, finished: Path, copy: Path) -> None:
    cut_off = [copy / "checkpoints" / f"checkpoint-{update}" for update in (6, 8)]
    for folder in cut_off:
        (folder / SLOTS_FILE).unlink()
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
        (folder / "validation.json").unlink()
    assert last_checkpoint(copy / "checkpoints") == copy / "checkpoints" / "checkpoint-4"
    shutil.rmtree(copy / "policy")

    seen: list[int] = []
    train_phase_one(base, inputs(), short_profile(), SEED, copy, lambda done, total: seen.append(done))
    assert seen == [2, 3, 3, 4]
    assert results(copy) == results(finished)


def test_a_folder_without_a_complete_checkpoint_has_none_to_resume_from(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint-2").mkdir()
    assert last_checkpoint(tmp_path) is None


def test_the_newest_checkpoint_is_the_one_of_the_most_updates(tmp_path: Path) -> None:
    for update in (2, 10, 8):
        (tmp_path / f"checkpoint-{update}").mkdir()
        (tmp_path / f"checkpoint-{update}" / SLOTS_FILE).write_text("[]")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def renamed(north: str, south: str) -> list[Segment]:
    """The same clips under other streams' names."""
    return [s.model_copy(update={"stream": {"north": north, "south": south}[s.stream]}) for s in inputs().segments]


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": SEED + 1},
        {"inputs": inputs(segments=[*stream("north", 4), *stream("south", 6)])},
        {"profile": short_profile(kl=0.1)},
        {"base": "policy"},
        pytest.param({"inputs": inputs(segments=renamed("east", "west"))}),
        pytest.param({"inputs": inputs(judges=judges_of(model="another"))}),
    ],
    ids=["seed", "segments", "settings", "base", "streams", "judges"],
)
def test_a_folder_with_checkpoints_of_another_run_is_refused_and_left_alone(
    base: Path, copy: Path, changed: dict[str, Any]
) -> None:
    before = sha256_tree(copy)
    given = {"base": base, "inputs": inputs(), "profile": short_profile(), "seed": SEED, **changed}
    if changed.get("base"):
        given["base"] = copy / changed["base"]
    with pytest.raises(UserError, match="checkpoints of other inputs, settings or seed") as refusal:
        train_phase_one(**given, out=copy)
    assert "\n" not in str(refusal.value)
    assert sha256_tree(copy) == before


def rescored(base: Path, copy: Path, scores: dict[str, float]) -> Path:
    """Validate a finished run again, with a score for each of its checkpoints."""
    known = {name: load_checkpoint(copy / "checkpoints" / name)[0].state_dict() for name in scores}

    def validate(policy: TransformersPolicy) -> float:
        (name,) = (n for n, state in known.items() if same(state, policy.model.state_dict()))
        return scores[name]

    for name in scores:
        (copy / "checkpoints" / name / "validation.json").unlink()
    seen: list[int] = []
    train_phase_one(base, inputs(validate=validate), short_profile(), SEED, copy, lambda done, total: seen.append(done))
    assert seen == []
    return copy


@pytest.mark.parametrize("best", [2, 4, 6, 8])
def test_the_checkpoint_with_the_best_validation_score_is_exported(base: Path, copy: Path, best: int) -> None:
    scores = {f"checkpoint-{update}": 0.9 if update == best else update / 100 for update in (2, 4, 6, 8)}
    out = rescored(base, copy, scores)
    validation = json.loads((out / "validation.json").read_text())
    assert validation == {
        "picked": best // 2,
        "scores": {str(u // 2): scores[f"checkpoint-{u}"] for u in (2, 4, 6, 8)},
    }
    assert same(weights(out / "policy"), weights(out / "checkpoints" / f"checkpoint-{best}"))


def test_of_checkpoints_with_equal_scores_the_earliest_is_exported(base: Path, copy: Path) -> None:
    out = rescored(base, copy, {f"checkpoint-{update}": 0.5 for update in (2, 4, 6, 8)})
    assert json.loads((out / "validation.json").read_text())["picked"] == 1


def test_a_checkpoint_that_was_validated_is_not_validated_again(base: Path, copy: Path) -> None:
    def never(policy: TransformersPolicy) -> float:
        raise AssertionError("validated twice")

    (copy / "validation.json").unlink()
    train_phase_one(base, inputs(validate=never), short_profile(), SEED, copy)
    assert json.loads((copy / "validation.json").read_text())["scores"].keys() == {"1", "2", "3", "4"}


def test_the_exported_policy_is_a_checkpoint_without_the_trainers_files(base: Path, finished: Path) -> None:
    names = {path.name for path in (finished / "policy").iterdir()}
    assert names == {path.name for path in base.iterdir()}
    for name in ("tokenizer.json", "processor_config.json", "chat_template.jinja"):
        assert (finished / "policy" / name).read_bytes() == (base / name).read_bytes()
    policy = TransformersPolicy.load(finished / "policy", short_profile().policy, film)
    picked = json.loads((finished / "validation.json").read_text())
    assert boxes_seen(policy) == max(picked["scores"].values())


def test_a_run_in_which_every_judge_fails_leaves_the_policy_as_it_is(base: Path, tmp_path: Path) -> None:
    unjudged = inputs(judges=judges_of(fails_on=""))
    policy = train_phase_one(base, unjudged, short_profile(kl=0.0), SEED, tmp_path)
    curves = json.loads((tmp_path / "training.json").read_text())
    assert sum(step["unscored"] for step in curves) > 0
    assert same(weights(policy), weights(base))


def test_the_curves_count_steps(finished: Path) -> None:
    curves = json.loads((finished / "training.json").read_text())
    assert [entry["step"] for entry in curves] in ([1, 2, 3, 4], [0, 1, 2, 3])
