"""The answerer reads memories and nothing else; the grader knows the answer."""

import random
from collections.abc import Callable

import pytest

from taskmem.records import Memory, Question
from taskmem.world.facts import TYPES, describe, sample_stream
from taskmem.world.judges import WorldAnswerer, WorldGrader
from taskmem.world.questions import ask_about, question_text


def question(kind: str, seconds: float, options: tuple[str, ...] = (), answer: str | None = None) -> Question:
    return Question(
        id="q",
        environment=kind,
        stream="s",
        asked_at_s=100.0,
        type=kind,
        text=question_text(kind, seconds),
        options=options,
        answer=answer,
    )


def answer(asked: Question, *memories: Memory) -> str | None:
    return WorldAnswerer().answer(asked, memories)


def test_a_question_is_answered_from_the_memory_of_its_moment(memory_of: Callable[..., Memory]) -> None:
    memories = [memory_of(0, "carries a cup"), memory_of(1, "carries a key"), memory_of(2, "carries a hat")]
    assert [answer(question("object", s), *memories) for s in (0.0, 9.9, 10.0, 15.0, 20.0)] == [
        "cup",
        "cup",
        "key",
        "key",
        "hat",
    ]


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind != "room"])
def test_what_does_not_persist_is_not_answered_from_another_moment(memory_of: Callable[..., Memory], kind: str) -> None:
    told = {"figure": "a red person", "object": "carries a cup", "door": "the door shut", "lamps": "shows one lamps"}[
        kind
    ]
    assert answer(question(kind, 10.0), memory_of(0, told)) is None
    memories = [memory_of(0, told), memory_of(1, "in the kitchen"), memory_of(2, told)]
    assert answer(question(kind, 15.0), *memories) is None
    assert answer(question(kind, 5.0), *memories) is not None


def test_a_room_persists_until_another_is_named(memory_of: Callable[..., Memory]) -> None:
    memories = [
        memory_of(0, "in the kitchen"),
        memory_of(1, "a red person"),
        memory_of(2, "in the garden"),
        memory_of(3, None),
    ]
    assert [answer(question("room", s), *memories) for s in (5.0, 15.0, 25.0, 35.0)] == [
        "kitchen",
        "kitchen",
        "garden",
        "garden",
    ]


def test_a_room_named_only_later_is_not_known_before(memory_of: Callable[..., Memory]) -> None:
    assert answer(question("room", 5.0), memory_of(0, "a red person"), memory_of(1, "in the garden")) is None


@pytest.mark.parametrize("text", [None, "", "nothing of note", "the door opens"])
def test_where_no_memory_says_it_the_information_is_insufficient(
    memory_of: Callable[..., Memory], text: str | None
) -> None:
    assert answer(question("object", 5.0), memory_of(0, text)) is None
    assert answer(question("object", 5.0)) is None


def test_a_question_of_another_kind_is_not_answered(memory_of: Callable[..., Memory]) -> None:
    asked = question("object", 5.0).model_copy(update={"text": "why was it carried at 00:05?"})
    assert answer(asked, memory_of(0, "carries a cup")) is None


def test_with_options_the_answer_is_one_of_them_or_none(memory_of: Callable[..., Memory]) -> None:
    memory = memory_of(0, "carries a cup")
    assert answer(question("object", 5.0, ("hat", "cup", "key")), memory) == "cup"
    assert answer(question("object", 5.0, ("hat", "key")), memory) is None


@pytest.mark.parametrize("known", [None, "cup", "hat"])
def test_the_answer_in_the_question_changes_nothing(memory_of: Callable[..., Memory], known: str | None) -> None:
    right, wrong = memory_of(0, "carries a cup"), memory_of(0, "carries a ball")
    asked = question("object", 5.0, answer=known)
    assert (answer(asked, right), answer(asked, wrong), answer(asked)) == ("cup", "ball", None)


def test_complete_memories_answer_every_question_rightly(memory_of: Callable[..., Memory]) -> None:
    facts = sample_stream(random.Random(5), 30)
    memories = [memory_of(i, describe(truth)) for i, truth in enumerate(facts)]
    for asked in ask_about("s", facts, random.Random(6), 10.0):
        visible = [memory for memory in memories if memory.end_s <= asked.asked_at_s]
        given = answer(asked.without_answer(), *visible)
        assert given is not None
        assert WorldGrader().correct(asked, given)


def test_wrong_memories_give_wrong_answers_and_are_believed(memory_of: Callable[..., Memory]) -> None:
    asked = question("object", 5.0, answer="cup")
    given = answer(asked, memory_of(0, "carries a hat"))
    assert given == "hat"
    assert not WorldGrader().correct(asked, given)


@pytest.mark.parametrize(
    ("given", "right"), [("cup", True), ("Cup", False), ("a cup", False), ("hat", False), ("", False)]
)
def test_the_grader_wants_the_exact_answer(given: str, right: bool) -> None:
    assert WorldGrader().correct(question("object", 5.0, answer="cup"), given) is right


def test_the_grader_refuses_a_question_without_an_answer() -> None:
    with pytest.raises(ValueError, match="question q carries no answer"):
        WorldGrader().correct(question("object", 5.0), "cup")
