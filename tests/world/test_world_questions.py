"""Questions about the rendered world, and how they are understood."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskmem.world.facts import TYPES, VALUES, sample_stream
from taskmem.world.questions import LONGEST_WAIT, OPTIONS, ask_about, question_text, understand

SECONDS = 10.0
FACTS = sample_stream(random.Random(3), 60)
QUESTIONS = ask_about("s", FACTS, random.Random(4), SECONDS)
CHOICES = [question for question in QUESTIONS if question.options]


def asked_segment(text: str) -> int:
    understood = understand(text)
    assert understood is not None
    return int(understood[1] // SECONDS)


@given(st.sampled_from(TYPES), st.floats(0, 1e6))
def test_a_questions_text_is_understood_again(kind: str, seconds: float) -> None:
    assert understand(question_text(kind, seconds)) == (kind, int(seconds))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "what is love?",
        "which room was it at 00:10",
        "Which room was it at 00:10?",
        "which room was it at 10?",
        "so which room was it at 00:10?",
    ],
)
def test_other_questions_are_not_understood(text: str) -> None:
    assert understand(text) is None


def test_every_type_is_asked_once_about_every_segment() -> None:
    assert [(asked_segment(q.text), q.type) for q in QUESTIONS] == [(i, kind) for i in range(60) for kind in TYPES]
    assert len({q.id for q in QUESTIONS}) == len(QUESTIONS)


def test_the_text_asks_for_the_questions_type_and_each_type_is_an_environment() -> None:
    for question in QUESTIONS:
        understood = understand(question.text)
        assert understood is not None
        assert understood[0] == question.type == question.environment


def test_a_question_is_asked_after_its_segment_is_past() -> None:
    waits = {question.asked_at_s - (asked_segment(question.text) + 1) * SECONDS for question in QUESTIONS}
    assert waits == {wait * SECONDS for wait in range(LONGEST_WAIT + 1)}


def test_the_answer_is_the_truth_of_the_moment_asked_about() -> None:
    assert [q.answer for q in QUESTIONS] == [facts[kind] for facts in FACTS for kind in TYPES]
    assert {q.origin for q in QUESTIONS} == {"environment"}


@pytest.mark.parametrize("kind", TYPES)
def test_about_half_of_the_questions_of_each_type_offer_options(kind: str) -> None:
    offered = sum(q.type == kind for q in CHOICES)
    assert 0.3 < offered / len(FACTS) < 0.7


def test_options_are_distinct_values_of_the_type_with_the_answer_among_them() -> None:
    for question in CHOICES:
        assert len(question.options) == len(set(question.options)) == OPTIONS
        assert set(question.options) <= set(VALUES[question.type])
        assert question.answer in question.options


def test_the_answer_stands_at_every_place_about_as_often() -> None:
    places = [q.options.index(q.answer or "") for q in CHOICES]
    assert all(0.15 < places.count(place) / len(places) < 0.35 for place in range(OPTIONS))


def test_questions_are_fixed_by_their_generator() -> None:
    assert ask_about("s", FACTS, random.Random(4), SECONDS) == QUESTIONS
    assert ask_about("s", FACTS, random.Random(5), SECONDS) != QUESTIONS


def test_no_segments_give_no_questions() -> None:
    assert ask_about("s", [], random.Random(0), SECONDS) == []
