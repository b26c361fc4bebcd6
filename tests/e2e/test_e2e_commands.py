"""The stages by hand, one command after the other, on the shipped base policy."""

import json
from pathlib import Path

import pytest
from small_loop import SPLITS, Run, digests, taskmem

from taskmem.cli import shipped_base
from taskmem.config import load_profile
from taskmem.records import Judgement, Memory, Preference, Rollouts, Segment, read_records

ENVIRONMENT = "door"


class Hand:
    """Runs commands with the small profile; each must succeed."""

    def __init__(self, root: Path, profile: Path) -> None:
        self.root = root
        self._profile = str(profile)

    def __call__(self, *arguments: str | Path, out: str) -> Path:
        done = taskmem(*arguments, "--profile", self._profile, "--out", self.root / out)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
        (self.root / f"{out}.said").write_text(done.stdout)
        return self.root / out

    def said(self, out: str) -> str:
        return (self.root / f"{out}.said").read_text()


@pytest.fixture(scope="module")
def hand(tmp_path_factory: pytest.TempPathFactory, profile: Path, finished: Run) -> Hand:
    """Everything from the rendered world to an evaluated adapter."""
    run, base = Hand(tmp_path_factory.mktemp("hand"), profile), shipped_base()
    world = run("world", "render", out="world")
    film = run("segment", world / "deployment" / "videos", out="film")
    held_out = run("segment", world / "held_out" / "videos", out="held_out")
    rollouts = run("rollouts", film, "--policy", base, out="rollouts")
    judged = run("score", rollouts, "--segments", film, "--world", world, out="judgements")
    # the logs of a deployment: people's questions depend on the streams, not on the policy that watched them
    feedback = run("collect", finished.out / "deployment" / "events", out="feedback")
    what = ("--rollouts", rollouts, "--segments", film)
    asked = ("--questions", feedback, "--environment", ENVIRONMENT)
    mined = run("mine", judged, *what, *asked, out="preferences")
    run("phase-two", mined, *what, "--policy", base, "--name", "mine", out="adapters")
    questions = ("--questions", world / "held_out" / "questions.jsonl")
    with_adapter = ("--adapter", run.root / "adapters" / "mine")
    run("evaluate", held_out, "--policy", base, *questions, *with_adapter, "--world", world, out="arm")
    return run


def test_render_gives_every_split_as_the_loop_does(hand: Hand, finished: Run) -> None:
    assert digests(hand.root / "world") == digests(finished.out / "world")
    assert sorted(path.name for path in (hand.root / "world").iterdir()) == sorted(SPLITS)


def test_segment_cuts_the_streams_as_the_loop_does(hand: Hand, finished: Run) -> None:
    assert digests(hand.root / "film") == digests(finished.out / "segments" / "deployment")
    assert len(read_records(hand.root / "film" / "segments.jsonl", Segment)) == 4 * 6


def test_rollouts_give_every_drawn_context_its_candidates(hand: Hand, profile: Path) -> None:
    mining = load_profile(str(profile)).mining
    cached = read_records(hand.root / "rollouts" / "rollouts.jsonl", Rollouts)
    assert len(cached) == mining.contexts
    assert {len(rollouts.candidates) for rollouts in cached} == {mining.candidates}


def test_score_judges_every_candidate_and_none_is_left_unscored(hand: Hand) -> None:
    judgements = read_records(hand.root / "judgements" / "judgements.jsonl", Judgement)
    assert len(judgements) == 16 * 8
    assert not any(judgement.unscored for judgement in judgements)
    assert json.loads((hand.root / "judgements" / "summary.json").read_text())["candidates"] == len(judgements)
    assert hand.said("judgements").splitlines()[-1].endswith("  unscored 0")


def test_collect_gives_the_recent_questions_as_the_loop_does(hand: Hand, finished: Run) -> None:
    assert digests(hand.root / "feedback") == digests(finished.out / "feedback")


def test_mine_finds_pairs_for_the_environment(hand: Hand) -> None:
    preferences = read_records(hand.root / "preferences" / "preferences.jsonl", Preference)
    summary = json.loads((hand.root / "preferences" / "summary.json").read_text())
    assert (summary["environment"], summary["preferences"]) == (ENVIRONMENT, len(preferences))
    assert preferences
    assert all(f".{ENVIRONMENT}" in question for preference in preferences for question in preference.questions)


def test_phase_two_writes_the_named_adapter(hand: Hand, profile: Path) -> None:
    config = json.loads((hand.root / "adapters" / "mine" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["layer"]) == ("STEER", load_profile(str(profile)).phase_two.layer)
    assert hand.said("adapters").splitlines()[-1] == str(hand.root / "adapters" / "mine")


def test_evaluate_uses_the_adapter_and_prints_what_it_measured(hand: Hand) -> None:
    memories = read_records(hand.root / "arm" / "memories.jsonl", Memory)
    assert {memory.adapter for memory in memories} == {"mine"}
    overall = json.loads((hand.root / "arm" / "summary.json").read_text())["overall"]
    shown = "  ".join(f"{name} {overall[name]:.3f}" for name in ("accuracy", "coverage", "precision"))
    assert hand.said("arm").splitlines()[-1] == shown
    assert overall["answered"] > 0


def test_phase_one_by_hand_trains_the_loop_s_policy(hand: Hand, finished: Run) -> None:
    film, world = finished.out / "segments", finished.out / "world"
    held = ("--development", film / "development", "--questions", world / "development" / "questions.jsonl")
    hand("phase-one", film / "phase_one", "--policy", shipped_base(), *held, "--world", world, out="phase_one")
    assert digests(hand.root / "phase_one") == digests(finished.out / "phase_one")
