"""The questions people ask about the rendered world, and how their text is understood again."""

import random
import re
from collections.abc import Mapping, Sequence

from taskmem.policy.renderer import clock
from taskmem.records import Question
from taskmem.world.facts import DOOR, FIGURE, LAMPS, OBJECT, ROOM, TYPES, VALUES, Facts

_TEXT: Mapping[str, str] = {
    FIGURE: "what colour was the person at {}?",
    ROOM: "which room was it at {}?",
    OBJECT: "what was carried at {}?",
    DOOR: "what did the door do at {}?",
    LAMPS: "how many lamps at {}?",
}
_PATTERN = {t: re.compile(re.escape(text).replace(r"\{\}", r"([0-9]+):([0-9]{2})")) for t, text in _TEXT.items()}
OPTIONS = 4
LONGEST_WAIT = 3  # segments between what is asked about and the asking


def question_text(kind: str, seconds: float) -> str:
    """The question of type `kind` about the moment `seconds` into the stream."""
    return _TEXT[kind].format(clock(seconds))


def understand(text: str) -> tuple[str, int] | None:
    """Type and moment (seconds) that a question's text asks about; None if it is no question of this world."""
    for kind, pattern in _PATTERN.items():
        if match := pattern.fullmatch(text):
            return kind, int(match.group(1)) * 60 + int(match.group(2))
    return None


def _options(rng: random.Random, kind: str, answer: str) -> tuple[str, ...]:
    others = rng.sample([v for v in VALUES[kind] if v != answer], min(OPTIONS, len(VALUES[kind])) - 1)
    return tuple(rng.sample([answer, *others], len(others) + 1))


def ask_about(stream: str, facts: Sequence[Facts], rng: random.Random, segment_seconds: float) -> list[Question]:
    """One question of every type about every segment, asked after the segment is past; every other one offers options."""
    questions = []
    for index, truth in enumerate(facts):
        for kind in TYPES:
            moment = (index + rng.uniform(0.05, 0.95)) * segment_seconds
            wait = rng.randint(0, LONGEST_WAIT)
            options = _options(rng, kind, truth[kind]) if rng.random() < 0.5 else ()
            questions.append(
                Question(
                    id=f"{stream}.{index:03d}.{kind}",
                    environment=kind,
                    stream=stream,
                    asked_at_s=(index + 1 + wait) * segment_seconds,
                    type=kind,
                    text=question_text(kind, moment),
                    options=options,
                    answer=truth[kind],
                    origin="environment",
                )
            )
    return questions
