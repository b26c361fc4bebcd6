"""What an answerer sees of a stream: everything while it fits, then what the question's words find, on both databases alike."""

import pytest
from agent_parts import question
from stored_parts import remember_all

from taskmem.agent.remembered import FRAME, stream_of
from taskmem.agent.retrieval import HITS, read_for
from taskmem.agent.storage import Storage
from taskmem.agent.words import MOST, asked_for, indexed
from taskmem.records import Memory


def seen(storage: Storage, characters: int, asked: str = "what?", at: float = 1e9, **changes: object) -> list[int]:
    with storage.reading() as connection:
        stream = stream_of(connection, "door", "a")
        assert stream is not None
        found: list[Memory] = read_for(
            connection, stream, question(1, text=asked, asked_at_s=at, **changes), characters
        )
    return [m.index for m in found]


def test_while_everything_fits_everything_is_seen_in_order(storage: Storage) -> None:
    remember_all(storage, dict(enumerate(["one", "two", None, "four"])))
    assert seen(storage, 1000) == [0, 1, 3]


def test_only_what_had_ended_is_seen(storage: Storage) -> None:
    remember_all(storage, dict.fromkeys(range(4), "x"))
    assert [seen(storage, 1000, at=at) for at in (9.9, 10.0, 29.9, 30.0)] == [[], [0], [0, 1], [0, 1, 2]]


def test_a_question_from_before_the_budget_was_passed_still_sees_everything_there_was(storage: Storage) -> None:
    remember_all(storage, dict.fromkeys(range(30), "x" * 100))
    assert seen(storage, 3 * (100 + FRAME), at=30.0) == [0, 1, 2]


@pytest.mark.parametrize(
    "asked", ["Who carried the umbrella?", "umbrellas", "UMBRELLA!", 'umbrella" OR "x', "Ümbrella or (umbrella)"]
)
def test_beyond_the_budget_the_question_finds_what_it_is_about(storage: Storage, asked: str) -> None:
    remember_all(
        storage, {i: "a man carries an umbrella" if i == 17 else f"a quiet street, lamp {i}" for i in range(100)}
    )
    found = seen(storage, 10 * (25 + FRAME), asked)
    assert found[0] == 17
    # what is left of the budget goes to the newest
    assert found[1:] == list(range(101 - len(found), 100))
    assert 8 <= len(found) <= 12


def test_options_are_looked_for_too(storage: Storage) -> None:
    remember_all(storage, {i: {3: "a violin case", 5: "a drum"}.get(i, "rain on the window") for i in range(60)})
    assert set(seen(storage, 6 * (20 + FRAME), "which?", options=("violin", "drum"))) >= {3, 5}


def test_people_are_found_by_their_tags(storage: Storage) -> None:
    remember_all(storage, {index: f"<face_{index}> walks by" for index in range(60)})
    assert seen(storage, 5 * (20 + FRAME), "where was <face_7>?")[0] == 7


def test_rare_words_count_more_than_frequent_ones(storage: Storage) -> None:
    remember_all(storage, {i: "the bicycle" if i == 4 else "the street and the lamp" for i in range(80)})
    assert seen(storage, 30 + FRAME, "the street with the lamp and the bicycle") == [4]


def test_another_stream_s_memories_are_never_seen(storage: Storage) -> None:
    remember_all(storage, dict.fromkeys(range(40), "rain on the window"))
    remember_all(storage, dict.fromkeys(range(40), "a red umbrella"), stream="b")
    remember_all(storage, dict.fromkeys(range(40), "a red umbrella"), environment="room")
    with storage.reading() as connection:
        stream = stream_of(connection, "door", "a")
        assert stream is not None
        found = read_for(connection, stream, question(1, text="umbrella", asked_at_s=1e9), 5 * (20 + FRAME))
    assert {m.text for m in found} == {"rain on the window"}


def test_the_budget_is_kept_however_many_memories_match(storage: Storage) -> None:
    remember_all(storage, {index: "umbrella " * (1 + index % 7) for index in range(HITS + 60)})
    for characters in (100, 1000, 5000):
        with storage.reading() as connection:
            stream = stream_of(connection, "door", "a")
            assert stream is not None
            found = read_for(connection, stream, question(1, text="umbrella", asked_at_s=1e9), characters)
        assert characters - 100 < sum(len(m.text or "") + FRAME for m in found) <= characters


@pytest.mark.parametrize(
    "asked",
    ["\x00", "___", "NEAR(a b)", "a:b", "-- ; DROP TABLE memories", "*", '"', "' OR 1=1", "\u200b", "漢字", "a" * 4000],
)
def test_no_question_is_a_query_of_its_own(storage: Storage, asked: str) -> None:
    remember_all(storage, dict.fromkeys(range(20), "rain on the window"))
    assert seen(storage, 3 * (18 + FRAME), asked) == [17, 18, 19]


def test_words_are_the_same_wherever_they_stand() -> None:
    assert indexed("<face_3> says: \u201cCAFÉ\u201d\n\tﬁre!") == "face_3 says café fire"
    assert asked_for("one two", "two three") == ["one", "two", "three"]
    assert len(asked_for(" ".join(str(n) for n in range(100)))) == MOST
