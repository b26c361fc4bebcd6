"""What a memory of the world must say to answer a question, and where it says it."""

import pytest

from taskmem.records import Memory, Question
from taskmem.world.evidence import WorldEvidence
from taskmem.world.facts import ROOM, TYPES, VALUES, describe
from taskmem.world.judges import WorldAnswerer
from taskmem.world.questions import question_text

EVIDENCE = WorldEvidence()
ALL = [(kind, value) for kind in TYPES for value in VALUES[kind]]


def asked(kind: str, answer: str | None, text: str | None = None) -> Question:
    return Question(
        id="q",
        environment=kind,
        stream="s",
        asked_at_s=100.0,
        type=kind,
        text=text or question_text(kind, 65.9),
        answer=answer,
        origin="environment",
    )


@pytest.mark.parametrize(("kind", "value"), ALL)
def test_the_needed_phrase_is_the_clause_that_lets_the_answerer_answer(kind: str, value: str) -> None:
    phrase = EVIDENCE.phrase(asked(kind, value))
    assert phrase == describe({kind: value}, (kind,))
    memory = Memory(
        stream="s",
        index=6,
        start_s=60,
        end_s=70,
        text=phrase,
        think_tokens=0,
        memory_tokens=1,
        policy="a" * 64,
    )
    assert WorldAnswerer().answer(asked(kind, value), [memory]) == value


@pytest.mark.parametrize("kind", TYPES)
def test_the_moment_is_the_one_the_question_names(kind: str) -> None:
    assert EVIDENCE.moment(asked(kind, None)) == 65.0


@pytest.mark.parametrize(("kind", "value"), ALL)
def test_what_a_memory_says_is_found_right_or_wrong(kind: str, value: str) -> None:
    facts = {k: VALUES[k][0] for k in TYPES} | {kind: value}
    memory = describe(facts)
    span = EVIDENCE.said(asked(kind, VALUES[kind][1]), memory)
    assert span is not None
    assert memory[slice(*span)] == describe(facts, (kind,))


def test_the_first_of_two_clauses_of_a_type_counts_as_for_the_answerer() -> None:
    memory = "in the garden, in the office"
    assert EVIDENCE.said(asked(ROOM, "office"), memory) == (0, 13)


def test_what_is_not_said_is_not_found() -> None:
    assert EVIDENCE.said(asked(ROOM, "office"), "a red person, carries a cup") is None
    assert EVIDENCE.said(asked(ROOM, "office"), "in the officer") is None
    assert EVIDENCE.said(asked(ROOM, "office"), "") is None


def test_a_question_of_another_world_needs_nothing() -> None:
    other = asked(ROOM, "office", "where was the cat?")
    assert (EVIDENCE.moment(other), EVIDENCE.phrase(other), EVIDENCE.said(other, "in the office")) == (None, None, None)


@pytest.mark.parametrize("answer", [None, "cellar"])
def test_an_answer_that_the_world_does_not_know_has_no_phrase(answer: str | None) -> None:
    assert EVIDENCE.phrase(asked(ROOM, answer)) is None
