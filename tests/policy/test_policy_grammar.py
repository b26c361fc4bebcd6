"""The output grammar: reasoning, one closing tag, one JSON object."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskmem.policy.grammar import completion_for, faces_well_formed, parse

PLAIN = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="<>|"), max_size=40)


@given(memory=PLAIN.filter(lambda text: text.strip()), thinking=PLAIN)
def test_what_is_written_is_read_back(memory: str, thinking: str) -> None:
    output = parse(completion_for(memory, thinking))
    assert (output.thinking, output.memory, output.violation) == (thinking, memory.strip(), None)


@pytest.mark.parametrize(
    "completion",
    [
        '</think>{"description": "a red person"}',
        'thinking\n</think>\n\n{"description": "a red person"}\n',
        'a { brace } in thought</think> { "description" : " a red person " } ',
        '</think>{"description": "a red \\u0070erson"}',
    ],
)
def test_spacing_and_thinking_are_free(completion: str) -> None:
    assert parse(completion).memory == "a red person"


@pytest.mark.parametrize(
    ("completion", "why"),
    [
        ("", "</think> is missing"),
        ('{"description": "x"}', "</think> is missing"),
        ('<think>a</think>{"description": "x"}', "not closed exactly once"),
        ('a</think>b</think>{"description": "x"}', "not closed exactly once"),
        ('</think>{"description": "</think>"}', "not closed exactly once"),
        ('</think>{"description": "<think>"}', "not closed exactly once"),
        ("</think>", "not one JSON object"),
        ("</think>a red person", "not one JSON object"),
        ('</think>{"description": "x"', "not one JSON object"),
        ('</think>{"description": "x"} and more', "not one JSON object"),
        ('</think>{"description": "x"}{"description": "x"}', "not one JSON object"),
        ('</think>```json\n{"description": "x"}\n```', "not one JSON object"),
        ('</think>{"description": "x", "description": "y"}', "a key comes twice"),
        ('</think>{"description": "x", "mood": "y"}', "exactly the key"),
        ('</think>{"Description": "x"}', "exactly the key"),
        ("</think>{}", "exactly the key"),
        ('</think>["description"]', "exactly the key"),
        ('</think>"description"', "exactly the key"),
        ('</think>{"description": ""}', "non-empty string"),
        ('</think>{"description": " \\n\\t "}', "non-empty string"),
        ('</think>{"description": null}', "non-empty string"),
        ('</think>{"description": 5}', "non-empty string"),
        ('</think>{"description": ["x"]}', "non-empty string"),
        ('</think>{"description": {"description": "x"}}', "non-empty string"),
        ('</think>{"description": "x <|im_end|>"}', "control token"),
        ('</think>{"description": "x \\u003c|video_pad|\\u003e"}', "control token"),
    ],
)
def test_anything_else_is_a_violation_that_says_why(completion: str, why: str) -> None:
    output = parse(completion)
    assert output.memory is None
    assert output.violation is not None
    assert why in output.violation


def test_a_completion_that_never_closes_is_all_thinking() -> None:
    assert parse("on and on").thinking == "on and on"


@given(st.text(max_size=60))
def test_every_text_is_either_a_memory_or_a_violation(completion: str) -> None:
    output = parse(completion)
    assert (output.memory is None) != (output.violation is None)


KEYS = st.sampled_from(["description", "Description", "memory"])
WORDS = st.sampled_from(["", " ", "a red person"])
JSON = st.recursive(
    st.none() | st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=2),
)


@given(JSON)
def test_only_an_object_with_one_description_is_a_memory(value: object) -> None:
    expected = "a red person" if value == {"description": "a red person"} else None
    assert parse(f"</think>{json.dumps(value)}").memory == expected


@pytest.mark.parametrize(
    ("memory", "well_formed"),
    [
        ("a person waits", True),
        ("<face_1> meets <face_12>", True),
        ("she has a friendly face, facing the surface", True),
        ("<face_1> meets face_2", False),
        ("<face_1", False),
        ("face_1>", False),
        ("<face_>", False),
        ("<face_a>", False),
        ("<Face_1>", False),
        ("< face_1>", False),
        ("<face 1>", False),
        ("<face_1 >", False),
        ("<<face_1>", True),
    ],
)
def test_a_face_is_named_by_a_complete_tag_or_not_at_all(memory: str, well_formed: bool) -> None:
    assert faces_well_formed(memory) is well_formed


def test_an_escaped_think_tag_is_a_violation() -> None:
    assert parse('</think>{"description": "x \\u003c/think\\u003e"}').memory is None


def test_a_memory_that_is_no_unicode_text_is_a_violation() -> None:
    assert parse('</think>{"description": "x \\ud800"}').memory is None


def test_deep_nesting_is_a_violation() -> None:
    assert parse("</think>" + "[" * 100_000).memory is None


def test_a_face_number_is_written_in_ascii() -> None:
    assert not faces_well_formed("<face_\u0661>")
