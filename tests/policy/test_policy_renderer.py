"""Which messages the policy reads."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_parts import Films

from taskmem.config import PolicySettings
from taskmem.policy.renderer import clock, plain, render, task_prompt
from taskmem.records import Context, Question
from taskmem.world.checkpoint import CONTROL

QUESTIONS = [
    Question(id=f"q{i}", environment="e", stream="s", asked_at_s=1.0, type="t", text=f"question {i}?", answer="secret")
    for i in range(4)
]


def parts(context: Context, settings: PolicySettings, **changes: Any) -> list[dict[str, str]]:
    (message,) = render(context, settings.model_copy(update=changes))
    assert message["role"] == "user"
    content: list[dict[str, str]] = message["content"]
    return content


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, "00:00"), (9.99, "00:09"), (70.0, "01:10"), (6000.0, "100:00")])
def test_the_clock_counts_minutes_past_59(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_the_memories_come_before_the_videos_if_the_profile_says_so(films: Films, settings: PolicySettings) -> None:
    context = films.context(3, 4, 5, memories=["a red person", "a blue person"])
    assert parts(context, settings, prompt_order="memory_first") == [
        {"type": "text", "text": "memory:\n[00:30] a red person\n[00:40] a blue person\n"},
        {"type": "text", "text": "[00:30]"},
        {"type": "video", "video": "stream/00003.mp4"},
        {"type": "text", "text": "[00:40]"},
        {"type": "video", "video": "stream/00004.mp4"},
        {"type": "text", "text": "[00:50]"},
        {"type": "video", "video": "stream/00005.mp4"},
    ]


def test_the_other_order_holds_the_same_parts(films: Films, settings: PolicySettings) -> None:
    context = films.context(3, 4, memories=["a red person"])
    memory, *videos = parts(context, settings, prompt_order="memory_first")
    assert parts(context, settings, prompt_order="video_first") == [*videos, memory]


def test_a_memory_stands_beside_the_time_of_its_own_segment(films: Films, settings: PolicySettings) -> None:
    context = films.context(3, 4, 5, memories=["first", "second"])
    gap = context.model_copy(update={"memories": context.memories[1:]})
    assert parts(gap, settings)[0]["text"] == "memory:\n[00:40] second\n"


def test_instruction_comes_first_then_the_task(films: Films, settings: PolicySettings) -> None:
    context = films.context(0, task="what was carried?")
    assert parts(context, settings, instruction="Watch.")[0]["text"] == "Watch.\nwhat was carried?\n"
    assert parts(context, settings, instruction="")[0]["text"] == "what was carried?\n"


def test_without_instruction_and_task_the_prompt_has_no_head(films: Films, settings: PolicySettings) -> None:
    assert parts(films.context(0), settings, instruction="")[0]["text"] == "memory:\n"


def test_the_task_prompt_shows_the_newest_questions_and_no_answer() -> None:
    assert task_prompt(QUESTIONS, 2) == "question 2? question 3?"
    assert "secret" not in task_prompt(QUESTIONS, 4)


def test_the_task_prompt_shows_all_questions_where_there_are_fewer() -> None:
    assert task_prompt(QUESTIONS[:1], 5) == "question 0?"
    assert task_prompt([], 5) == ""


@given(st.lists(st.sampled_from([*CONTROL, "<", "|", ">", "<|", "|>", "im_start", " ", "é"]), max_size=12).map("".join))
def test_no_text_of_others_keeps_a_control_token(text: str) -> None:
    assert not any(token in plain(text) for token in CONTROL)


@given(st.text().filter(lambda text: "<" not in text))
def test_ordinary_text_keeps_its_words_and_stands_on_one_line(text: str) -> None:
    assert plain(text) == " ".join(text.split())


def test_a_face_tag_and_a_comparison_stay_as_they_are() -> None:
    assert plain("<face_3> lights < 5 lamps") == "<face_3> lights < 5 lamps"


def test_task_and_memories_and_instruction_are_all_defused(films: Films, settings: PolicySettings) -> None:
    context = films.context(0, 1, memories=["<|im_end|>"], task="<|video_pad|>")
    texts = [part.get("text", "") for part in parts(context, settings, instruction="<|im_start|>")]
    assert not any(token in text for text in texts for token in CONTROL)


@pytest.mark.parametrize("token", ["<think>", "</think>"])
def test_think_tags_of_others_are_defused(token: str) -> None:
    assert token not in plain(f"x {token} y")
