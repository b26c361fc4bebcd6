"""What is true of a segment, in words and read back."""

import random
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskmem.world.facts import (
    ROOM,
    ROOM_CHANGES,
    TYPES,
    VALUES,
    Reading,
    describe,
    read_against,
    read_facts,
    sample_facts,
    sample_stream,
    well_formed,
)

FACTS = st.fixed_dictionaries({kind: st.sampled_from(values) for kind, values in VALUES.items()})
KINDS = st.sets(st.sampled_from(TYPES))


@given(FACTS, KINDS)
def test_what_is_told_is_read_back(facts: Mapping[str, str], kinds: set[str]) -> None:
    assert read_facts(describe(facts, kinds)) == {kind: facts[kind] for kind in kinds}


@given(FACTS, KINDS.filter(bool), st.randoms(use_true_random=False))
def test_clauses_are_well_formed_in_any_order(facts: Mapping[str, str], kinds: set[str], rng: random.Random) -> None:
    clauses = describe(facts, kinds).split(", ")
    rng.shuffle(clauses)
    assert well_formed(", ".join(clauses))
    assert read_facts(", ".join(clauses)) == {kind: facts[kind] for kind in kinds}


@given(FACTS, KINDS.filter(bool), st.sampled_from(TYPES), FACTS)
def test_a_type_told_twice_is_not_well_formed(
    facts: Mapping[str, str], kinds: set[str], twice: str, others: Mapping[str, str]
) -> None:
    text = f"{describe(facts, kinds | {twice})}, {describe(others, [twice])}"
    assert not well_formed(text)


@given(st.text(max_size=60))
def test_reading_finds_only_the_worlds_values(text: str) -> None:
    assert all(value in VALUES[kind] for kind, value in read_facts(text).items())


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ",",
        "a red person,",
        "a red person and a cup",
        "a red person. in the kitchen",
        "a pink person",
        "A red person",
        "something",
    ],
)
def test_anything_but_a_list_of_clauses_is_not_well_formed(text: str) -> None:
    assert not well_formed(text)


@pytest.mark.parametrize(
    "text", ["a reddish person", "in the kitchens", "the doors opens", "shows one lamp", "carries a cups"]
)
def test_a_word_that_only_resembles_a_clause_states_nothing(text: str) -> None:
    assert read_facts(text) == {}


def test_facts_are_found_in_free_text_and_the_first_of_a_type_counts() -> None:
    text = "Then a red person stood in the garden while the door opens; a blue person left."
    assert read_facts(text) == {"figure": "red", "room": "garden", "door": "opens"}


def test_clauses_stand_in_the_worlds_order(facts: Mapping[str, str]) -> None:
    assert describe(facts) == "a red person, in the kitchen, carries a cup, the door opens, shows two lamps"
    assert describe(facts, {"lamps", "room"}) == "in the kitchen, shows two lamps"


def test_every_value_of_every_type_is_drawn_about_as_often() -> None:
    rng = random.Random(0)
    drawn = [sample_facts(rng) for _ in range(3000)]
    for kind, values in VALUES.items():
        counts = Counter(facts[kind] for facts in drawn)
        assert set(counts) == set(values)
        assert max(counts.values()) < 1.3 * min(counts.values())


def test_only_the_room_persists_from_segment_to_segment() -> None:
    stream = sample_stream(random.Random(1), 4000)
    for kind, values in VALUES.items():
        stays = sum(a[kind] == b[kind] for a, b in pairwise(stream)) / (len(stream) - 1)
        expected = 1 - ROOM_CHANGES if kind == ROOM else 1 / len(values)
        assert stays == pytest.approx(expected, abs=0.03)


@given(st.integers(), st.integers(0, 20))
def test_a_stream_is_fixed_by_its_generator(seed: int, length: int) -> None:
    stream = sample_stream(random.Random(seed), length)
    assert stream == sample_stream(random.Random(seed), length)
    assert len(stream) == length
    assert all(tuple(facts) == TYPES for facts in stream)


@pytest.mark.parametrize(
    ("text", "preceding", "reading"),
    [
        ("", [], Reading(new=0, wrong=0, repeated=0, persistent=0)),
        ("a red person, carries a cup", [], Reading(new=2, wrong=0, repeated=0, persistent=0)),
        ("a red person, in the kitchen", [], Reading(new=2, wrong=0, repeated=0, persistent=1)),
        ("a blue person, in the kitchen", [], Reading(new=1, wrong=1, repeated=0, persistent=1)),
        ("in the garden, shows five lamps", [], Reading(new=0, wrong=2, repeated=0, persistent=0)),
        ("in the kitchen", ["in the kitchen"], Reading(new=0, wrong=0, repeated=1, persistent=0)),
        ("in the kitchen", ["in the kitchen", "a red person"], Reading(new=0, wrong=0, repeated=1, persistent=0)),
        ("in the kitchen", ["in the garden"], Reading(new=1, wrong=0, repeated=0, persistent=1)),
        ("in the kitchen", ["in the kitchen", "in the garden"], Reading(new=1, wrong=0, repeated=0, persistent=1)),
        ("in the garden", ["in the garden"], Reading(new=0, wrong=1, repeated=0, persistent=0)),
        ("a red person", ["a red person"], Reading(new=1, wrong=0, repeated=0, persistent=0)),
        ("the door opens, shows two lamps", ["the door opens"], Reading(new=2, wrong=0, repeated=0, persistent=0)),
    ],
)
def test_a_memory_is_read_against_truth_and_what_was_told_before(
    facts: Mapping[str, str], text: str, preceding: list[str], reading: Reading
) -> None:
    assert read_against(text, facts, preceding) == reading


@given(FACTS, FACTS, KINDS, st.lists(st.sampled_from(VALUES[ROOM]), max_size=3))
def test_every_stated_fact_is_new_or_wrong_or_repeated(
    truth: Mapping[str, str], stated: Mapping[str, str], kinds: set[str], rooms: list[str]
) -> None:
    reading = read_against(describe(stated, kinds), truth, [f"in the {room}" for room in rooms])
    assert reading.new + reading.wrong + reading.repeated == len(kinds)
    assert reading.wrong == sum(stated[kind] != truth[kind] for kind in kinds)
