"""What the stages work out themselves: rates, contexts of a cache, the random control, the task prompt."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from taskmem.config import Profile, load_profile
from taskmem.errors import UserError
from taskmem.evaluation.streaming import GradedAnswer
from taskmem.feedback import EventLog
from taskmem.policy.stream import window_context
from taskmem.records import (
    Candidate,
    ContextMemory,
    FeedbackEvent,
    Judgement,
    Memory,
    Preference,
    Rollouts,
    Segment,
    read_records,
    write_records,
)
from taskmem.stages.collect import feedback_collection
from taskmem.stages.common import GRADED, JUDGEMENTS, PREFERENCES, ROLLOUTS, contexts_of, read_graded
from taskmem.stages.evaluate import rates, recent_task_prompt
from taskmem.stages.mining import random_mining

DIGEST = "a" * 64


@pytest.fixture
def profile() -> Profile:
    return load_profile("miniature")


def segment(stream: str, index: int) -> Segment:
    return Segment(
        stream=stream,
        index=index,
        start_s=index * 10.0,
        end_s=index * 10.0 + 10,
        source=f"{stream}.mp4",
        clip=f"clips/{stream}/{index:06d}.mp4",
        fps=0.2,
        width=64,
        height=64,
        sha256=f"{index:064x}",
    )


def memory(index: int, text: str | None) -> Memory:
    return Memory(
        stream="s",
        index=index,
        start_s=index,
        end_s=index + 1,
        text=text,
        think_tokens=0,
        memory_tokens=1,
        policy=DIGEST,
    )


def rollouts(
    context: str, stream: str, index: int, memories: Sequence[ContextMemory], texts: Sequence[str]
) -> Rollouts:
    candidates = [
        Candidate(index=i, text=text, memory=text, think_tokens=0, memory_tokens=3) for i, text in enumerate(texts)
    ]
    return Rollouts(
        context=context,
        stream=stream,
        index=index,
        memories=tuple(memories),
        candidates=tuple(candidates),
        policy=DIGEST,
        seed=0,
    )


def good(context: str, candidate: int) -> Judgement:
    return Judgement(
        context=context,
        candidate=candidate,
        format_ok=True,
        within_budget=True,
        faithful=True,
        coherent=True,
        non_redundant=True,
    )


class Checker:
    """Two facts in every memory; those that say `wrong` have one wrong."""

    def check(self, stream: str, index: int, memory: str) -> tuple[int, int]:
        return 2, int("wrong" in memory)


def test_the_format_rate_counts_every_memory_and_the_wrong_facts_only_what_was_stated() -> None:
    memories = [memory(0, "right"), memory(1, None), memory(2, "wrong"), memory(3, "right")]
    assert rates(memories, Checker()) == {"format_rate": 3 / 4, "wrong_fact_rate": 1 / 6}


def test_no_memory_states_nothing_wrong() -> None:
    assert rates([memory(0, None)], Checker()) == {"format_rate": 0.0, "wrong_fact_rate": 0.0}


def test_graded_answers_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    answers = [
        GradedAnswer(question=f"q{i}", stream="s", environment="e", type="t", answer=answer, correct=answer == "a")
        for i, answer in enumerate(("a", "b", None))
    ]
    write_records(tmp_path / GRADED, answers)
    assert [(g.question, g.answered, g.correct) for g in read_graded(tmp_path)] == [
        ("q0", True, True),
        ("q1", True, False),
        ("q2", False, False),
    ]


def test_the_contexts_of_a_cache_are_those_it_was_drawn_from(profile: Profile) -> None:
    streams = {name: [segment(name, i) for i in range(5)] for name in ("a", "b")}
    said = {i: f"memory {i}" for i in (0, 1, 3)}
    original = [window_context(streams[name], said, at, profile.policy.window) for name in streams for at in range(5)]
    cached = [rollouts(c.id, c.current.stream, c.current.index, c.memories, ["x"]) for c in original]
    mixed = [s for pair in zip(*streams.values(), strict=True) for s in reversed(pair)]
    assert contexts_of(cached, mixed, profile) == original
    assert [c.id for c in contexts_of(cached, mixed, profile)] == [r.context for r in cached]


def test_the_random_control_draws_as_many_pairs_as_were_mined(tmp_path: Path, profile: Profile) -> None:
    cached = [rollouts(f"c{n}", "s", n, (), [f"text {n} {i}" for i in range(4)]) for n in range(6)]
    judged = [good(r.context, c.index) for r in cached for c in r.candidates]
    like = [Preference(context=f"c{n}", chosen=0, rejected=1, path_length=1, token_difference=0) for n in range(3)]
    write_records(tmp_path / ROLLOUTS, cached)
    write_records(tmp_path / JUDGEMENTS, judged)
    write_records(tmp_path / "like" / PREFERENCES, like)

    def drawn(seed: int) -> list[Preference]:
        out = tmp_path / str(seed)
        random_mining(tmp_path, tmp_path, tmp_path / "like", profile, seed, out)
        return read_records(out / PREFERENCES, Preference)

    assert len(drawn(0)) == len(like)
    assert len({preference.context for preference in drawn(0)}) == len(like)
    assert drawn(0) == drawn(0)
    assert drawn(1) != drawn(0)


@pytest.fixture
def feedback(tmp_path: Path, profile: Profile) -> Path:
    """The collected questions of one environment, `door`."""
    with EventLog(tmp_path / "events.jsonl") as log:
        for number in range(3):
            log.append(
                FeedbackEvent(
                    id=f"q{number}",
                    environment="door",
                    source=DIGEST,
                    time=datetime(2026, 1, 1, 0, number, tzinfo=UTC),
                    question=f"q{number}",
                    stream="s",
                    asked_at_s=number,
                    type="door",
                    text=f"question {number}?",
                    answer=None,
                    outcome="incorrect",
                    correction="opens",
                    consent=True,
                )
            )
    feedback_collection(tmp_path / "events.jsonl", None, profile, tmp_path / "feedback")
    return tmp_path / "feedback"


def test_the_task_prompt_shows_a_recent_question_and_no_answer(feedback: Path, profile: Profile) -> None:
    prompt = recent_task_prompt(feedback, "door", profile)
    assert sum(f"question {number}?" in prompt for number in range(3)) == profile.policy.task_questions
    assert "opens" not in prompt


def test_an_environment_nobody_asked_in_has_no_task_prompt(feedback: Path, profile: Profile) -> None:
    with pytest.raises(UserError, match="no questions of environment room"):
        recent_task_prompt(feedback, "room", profile)
