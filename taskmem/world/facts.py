"""What can be true of a segment of the rendered world, how it is put into words, and how words are read back."""

import random
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

FIGURE = "figure"
ROOM = "room"
OBJECT = "object"
DOOR = "door"
LAMPS = "lamps"

VALUES: Mapping[str, tuple[str, ...]] = {
    FIGURE: ("red", "blue", "green", "yellow", "white", "purple"),
    ROOM: ("kitchen", "garden", "office", "bedroom", "garage", "street"),
    OBJECT: ("cup", "book", "key", "ball", "box", "hat"),
    DOOR: ("opens", "closes", "ajar", "shut"),
    LAMPS: ("one", "two", "three", "four", "five"),
}
TYPES: tuple[str, ...] = tuple(VALUES)

_CLAUSE: Mapping[str, str] = {
    FIGURE: "a {} person",
    ROOM: "in the {}",
    OBJECT: "carries a {}",
    DOOR: "the door {}",
    LAMPS: "shows {} lamps",
}
_PATTERN = {t: re.compile(r"\b" + _CLAUSE[t].format("(" + "|".join(VALUES[t]) + ")") + r"\b") for t in TYPES}

Facts = Mapping[str, str]
"""One value per fact type."""

ROOM_CHANGES = 0.35


def sample_facts(rng: random.Random, room: str | None = None) -> dict[str, str]:
    """Facts of one segment; `room` stays as given, for it persists from segment to segment."""
    facts = {kind: rng.choice(values) for kind, values in VALUES.items()}
    return {**facts, ROOM: room} if room else facts


def sample_stream(rng: random.Random, segments: int) -> list[dict[str, str]]:
    """Facts of a whole stream. The room changes with probability ROOM_CHANGES; everything else is drawn anew."""
    stream: list[dict[str, str]] = []
    for _ in range(segments):
        room = stream[-1][ROOM] if stream else None
        if room and rng.random() < ROOM_CHANGES:
            room = rng.choice([r for r in VALUES[ROOM] if r != room])
        stream.append(sample_facts(rng, room))
    return stream


def describe(facts: Facts, kinds: Collection[str] = TYPES) -> str:
    """The clauses of the fact types in `kinds`, in the world's order."""
    return ", ".join(_CLAUSE[t].format(facts[t]) for t in TYPES if t in kinds)


def read_facts(text: str) -> dict[str, str]:
    """The facts a text states, the first of each type."""
    found = {t: _PATTERN[t].search(text) for t in TYPES}
    return {t: match.group(1) for t, match in found.items() if match}


def well_formed(text: str) -> bool:
    """True if the text is a list of the world's clauses and no type comes twice."""
    kinds = [[t for t in TYPES if _PATTERN[t].fullmatch(clause.strip())] for clause in text.split(",")]
    return all(len(k) == 1 for k in kinds) and len({k[0] for k in kinds}) == len(kinds)


def known_room(memories: Sequence[str]) -> str | None:
    """The room that memories, oldest first, named last; None where none of them names one."""
    room = None
    for memory in memories:
        room = read_facts(memory).get(ROOM, room)
    return room


@dataclass(frozen=True)
class Reading:
    """A memory against the truth: how many facts are new and right, wrong, or repeated from the preceding memories.

    `persistent` counts those of the new ones that outlast the segment.
    """

    new: int
    wrong: int
    repeated: int
    persistent: int


def read_against(text: str, facts: Facts, preceding: Sequence[str]) -> Reading:
    """Compare a memory with its segment's `facts`; only the room persists, so only the room can be a repetition."""
    stated, known = read_facts(text), known_room(preceding)
    wrong = [t for t, value in stated.items() if value != facts[t]]
    repeated = [t for t in stated if t not in wrong and t == ROOM and stated[t] == known]
    new = [t for t in stated if t not in wrong and t not in repeated]
    return Reading(len(new), len(wrong), len(repeated), new.count(ROOM))
