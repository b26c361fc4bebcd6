"""Profiles: the paper's values pinned, no deviation without a reason, and every mistake named."""

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from taskmem.config import load_profile, profile_names
from taskmem.errors import UserError

PAPER = load_profile("qwen3-vl-30b")
MINIATURE = load_profile("miniature")
REASON = "a reason that is long enough to be one"

METHOD_VALUES = {
    # Section 1
    "video.segment_seconds": 10,
    "policy.window": 5,
    "policy.prompt_order": "video_first",
    "policy.sampling.temperature": 0.6,
    "policy.sampling.top_p": 0.95,
    "policy.sampling.top_k": 20,
    # Section 3: the reward
    "reward.format.valid": 0,
    "reward.format.violation": -1.5,
    "reward.length.measure": "thinking",
    "reward.length.soft": 1200,
    "reward.length.hard": 2400,
    "reward.length.within": 0,
    "reward.length.beyond": -1,
    "reward.quality.passed": 0.5,
    "reward.quality.failed": -0.5,
    "reward.quality.memory_budget": 150,
    "reward.richness.weight": 0.05,
    "reward.richness.pool": "valid",
    "reward.nsr_gate": True,
    # Section 3: GSPO and the history
    "phase_one.group_size": 8,
    "phase_one.batch": 32,
    "phase_one.mini_batch": 8,
    "phase_one.learning_rate": 1e-6,
    "phase_one.clip_high": 0.28,
    "phase_one.kl": 0,
    "phase_one.off_policy_steps": 60,
    "phase_one.on_policy_steps": 40,
    "phase_one.history.n_min": 11,
    "phase_one.history.n_max": 22,
    "phase_one.history.extend_probability": 1 - 0.13,
    # Section 4: mining
    "mining.candidates": 8,
    "mining.contexts": None,
    "mining.recent_questions": 10,
    "mining.questions_shown": 5,
    "mining.pairs_per_context": 1,
    "mining.max_token_difference": 20,
    "mining.memory_budget": 300,
    "mining.thinking_budget": 6400,
    # Section 4: DPO
    "phase_two.layer": 22,
    "phase_two.beta": 0.1,
    "phase_two.learning_rate": 1e-3,
    "phase_two.steps": 10,
    "phase_two.batch": 64,
    "phase_two.target_norm": 0.3,
    "phase_two.loss": "sigmoid",
    "phase_two.label_smoothing": 0.0,
    "phase_two.influence_cap": None,
    "phase_two.keep_gradients": False,
    "phase_two.stopping": None,
    # Section 5
    "evaluation.feedback_questions": 5,
}


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every value of a nested mapping under its dotted name."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        flat.update(nested)
    return flat


def shipped(name: str) -> dict[str, Any]:
    document = yaml.safe_load(resources.files("taskmem.profiles").joinpath(f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


def write(folder: Path, document: object, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document), encoding="utf-8")
    return str(path)


def deviating(settings: dict[str, Any], reason: str = REASON, extends: str = "qwen3-vl-30b") -> dict[str, Any]:
    return {"name": "mine", "extends": extends, "deviations": [{"reason": reason, "settings": settings}]}


@pytest.mark.parametrize(("field", "value"), METHOD_VALUES.items(), ids=METHOD_VALUES)
def test_the_30b_profile_holds_the_papers_value(field, value):
    assert leaves(PAPER.model_dump())[field] == value


def test_every_setting_of_the_reward_and_of_mining_is_pinned():
    names = {n for n in leaves(PAPER.model_dump()) if n.startswith(("reward.", "mining.", "phase_two."))}
    assert names - set(METHOD_VALUES) == {
        "reward.std_floor",
        "mining.questions_per_source",
        "phase_two.trunk_cache_bytes",
    }


def test_the_floor_of_the_30b_profile_guards_against_division_by_zero_only():
    assert 0 < PAPER.reward.std_floor <= 1e-4


def test_the_30b_profile_states_every_value_itself():
    stated = set(leaves(shipped("qwen3-vl-30b")))
    assert stated == set(leaves(PAPER.model_dump())) - {"world"}


def test_the_shipped_profiles_are_the_two_and_load_under_their_names():
    assert profile_names() == ["miniature", "qwen3-vl-30b"]
    assert (PAPER.name, MINIATURE.name) == ("qwen3-vl-30b", "miniature")


def test_the_miniature_consists_of_deviations_each_with_its_reason():
    document = shipped("miniature")
    assert set(document) == {"name", "extends", "deviations"}
    assert document["extends"] == "qwen3-vl-30b"
    assert all(set(d) == {"reason", "settings"} and len(d["reason"]) >= 20 for d in document["deviations"])


def test_every_value_in_which_the_miniature_differs_is_listed_under_a_deviation():
    paper, miniature = leaves(PAPER.model_dump()), leaves(MINIATURE.model_dump())
    listed: dict[str, Any] = {}
    for deviation in shipped("miniature")["deviations"]:
        found = leaves(deviation["settings"])
        assert not set(found) & set(listed)
        listed.update(found)
    differing = {n for n in miniature if n != "name" and (n not in paper or miniature[n] != paper[n])}
    assert differing
    assert differing <= set(listed)
    assert {n: miniature[n] for n in listed} == listed


def test_the_miniature_deviates_as_methods_section_7_says():
    reward = MINIATURE.reward
    best = (reward.format.valid, reward.length.within, reward.quality.passed, reward.richness.weight)
    worst = (reward.format.violation, reward.length.beyond, reward.quality.failed)
    assert (best, worst) == ((1, 1, 1, 1), (0, 0, 0))
    assert (MINIATURE.phase_one.kl, reward.std_floor, reward.nsr_gate) == (0.2, 0.5, False)
    assert (MINIATURE.policy.sampling.temperature, MINIATURE.policy.prompt_order) == (1, "memory_first")


def test_a_profile_of_ones_own_changes_what_it_says_and_nothing_else(tmp_path):
    mine = load_profile(write(tmp_path, deviating({"phase_one": {"kl": 0.1}})))
    changed = {n for n, v in leaves(mine.model_dump()).items() if v != leaves(PAPER.model_dump())[n]}
    assert changed == {"name", "phase_one.kl"}
    assert (mine.name, mine.phase_one.kl) == ("mine", 0.1)


def test_a_profile_may_extend_one_that_extends_another(tmp_path):
    below = write(tmp_path, deviating({"phase_one": {"kl": 0.1, "batch": 16}}), "below.yaml")
    above = load_profile(write(tmp_path, deviating({"phase_one": {"kl": 0.3}}, extends=below)))
    assert (above.phase_one.kl, above.phase_one.batch, above.phase_one.group_size) == (0.3, 16, 8)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"reward": {"fromat": {"valid": 1}}}, r"reward\.fromat"),
        ({"rewards": {}}, "rewards"),
        ({"video": {"limits": {"max_byte": 1}}}, r"video\.limits\.max_byte"),
        ({"phase_one": {"kl": -0.1}}, r"phase_one\.kl"),
        ({"phase_one": {"kl": float("nan")}}, r"phase_one\.kl"),
        ({"phase_two": {"beta": float("inf")}}, r"phase_two\.beta"),
        ({"phase_one": {"batch": 12}}, "phase_one: .*multiple of mini_batch"),
        ({"phase_one": {"history": {"n_max": 1}}}, r"phase_one\.history: .*n_max must not be below n_min"),
        ({"reward": {"length": {"hard": 1200}}}, r"reward\.length: .*hard must be above soft"),
        ({"policy": {"prompt_order": "random"}}, r"policy\.prompt_order"),
        ({"reward": None}, "reward"),
        ({"video": {"longest_side": 641}}, r"video\.longest_side"),
    ],
)
def test_a_wrong_setting_is_a_user_error_that_names_file_and_field(tmp_path, settings, field):
    path = write(tmp_path, deviating(settings))
    with pytest.raises(UserError, match=rf"^{path}: {field}"):
        load_profile(path)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({**deviating({}), "reward": {"nsr_gate": False}}, "reward: Extra inputs"),
        (deviating({"phase_one": {"kl": 0.1}}, reason="because"), r"deviations\.0\.reason"),
        ({"name": "mine", "extends": "qwen3-vl-30b", "deviations": [{"settings": {}}]}, r"deviations\.0\.reason"),
        ({"name": "mine", "extends": "qwen3-vl-30b", "deviations": [{"reason": REASON}]}, r"deviations\.0\.settings"),
        ({"name": "mine", "extends": "qwen3-vl-30b"}, "deviations"),
        ({"name": "mine"}, "video: Field required"),
    ],
)
def test_a_value_cannot_differ_without_a_deviation_and_a_reason(tmp_path, document, field):
    path = write(tmp_path, document)
    with pytest.raises(UserError, match=rf"^{path}: {field}"):
        load_profile(path)


def test_invalid_yaml_is_a_user_error_that_names_file_and_line(tmp_path):
    path = write(tmp_path, "name: mine\nextends: qwen3-vl-30b\ndeviations: [}\n")
    with pytest.raises(UserError, match=rf"^{path}:3: not valid YAML"):
        load_profile(path)


@pytest.mark.parametrize("text", ["", "just words", "- a\n- list\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    with pytest.raises(UserError, match="a profile is a YAML mapping"):
        load_profile(write(tmp_path, text))


def test_a_profile_that_extends_itself_is_refused(tmp_path):
    path = str(tmp_path / "mine.yaml")
    write(tmp_path, deviating({}, extends=path))
    with pytest.raises(UserError, match="extends itself"):
        load_profile(path)


def test_profiles_that_extend_each_other_are_refused(tmp_path):
    one, two = str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")
    write(tmp_path, deviating({}, extends=two), "one.yaml")
    write(tmp_path, deviating({}, extends=one), "two.yaml")
    with pytest.raises(UserError, match=rf"extends itself through {one} -> {two}"):
        load_profile(one)


def test_an_unknown_profile_is_a_user_error_that_names_the_shipped_ones(tmp_path):
    for name in ("qwen", str(tmp_path), str(tmp_path / "none.yaml")):
        with pytest.raises(UserError, match=r"not found; give one of miniature, qwen3-vl-30b"):
            load_profile(name)


def test_a_hostile_yaml_file_runs_nothing(tmp_path):
    proof = tmp_path / "proof"
    hostile = f"name: !!python/object/apply:os.system ['touch {proof}']\n"
    path = write(tmp_path, hostile)
    with pytest.raises(UserError, match=rf"^{path}:1: not valid YAML"):
        load_profile(path)
    assert not proof.exists()
    # The same file does run its command where it is read without care, so the test above can fail.
    yaml.unsafe_load(hostile)
    assert proof.exists()


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        PAPER.phase_one.kl = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    "mistake", [deviating({"reward": {"fromat": 1}}), deviating({}, extends="nowhere"), "a: [}", ""]
)
def test_a_user_error_is_one_line(tmp_path, mistake):
    with pytest.raises(UserError) as caught:
        load_profile(write(tmp_path, mistake))
    assert len(str(caught.value).splitlines()) == 1
