"""Judges, answerer and grader that know the ground truth of the rendered world."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from pydantic import model_validator

from taskmem.errors import UserError
from taskmem.files import sha256_bytes
from taskmem.judge.protocols import Fidelity, JudgeError, Judges, Position
from taskmem.records import Context, Index, Judge, Memory, Name, Question, Record, iter_records
from taskmem.world.facts import ROOM, TYPES, VALUES, Facts, describe, read_against, read_facts, well_formed
from taskmem.world.questions import understand

MODEL = "rendered-world-v1"
TIE = 0.2  # one question of five is within a judge's noise


class Truth(Record):
    """What is true of one segment of a rendered stream."""

    stream: Name
    index: Index
    facts: dict[str, str]

    @model_validator(mode="after")
    def _of_this_world(self) -> Self:
        if set(self.facts) != set(TYPES) or any(value not in VALUES[kind] for kind, value in self.facts.items()):
            raise ValueError("facts need one of the world's values for each of its types")
        return self


class WorldTruth:
    """The facts of every segment of the streams it was given."""

    def __init__(self, truths: Sequence[Truth]) -> None:
        self._facts: Mapping[tuple[str, int], Facts] = {(t.stream, t.index): t.facts for t in truths}
        if len(self._facts) != len(truths):
            raise UserError("the truth of a segment is given twice; give each split's truth.jsonl once")

    @classmethod
    def read(cls, *paths: Path) -> "WorldTruth":
        """The truth of one or more splits (their truth.jsonl)."""
        return cls([truth for path in paths for truth in iter_records(path, Truth)])

    def of(self, context: Context) -> Facts:
        """The facts of a context's current segment; JudgeError where the world did not render it."""
        key = (context.current.stream, context.current.index)
        if key not in self._facts:
            raise JudgeError(f"the world has not rendered segment {key[1]} of stream {key[0]}")
        return self._facts[key]

    def at(self, stream: str, index: int) -> Facts:
        """The facts of a segment; UserError where the world did not render it."""
        if (stream, index) not in self._facts:
            raise UserError(f"segment {index} of stream {stream}: not rendered here; give the truth.jsonl of its split")
        return self._facts[stream, index]


def _identity(role: str) -> Judge:
    # the "prompt" of these judges is their own rule, named by role and version
    return Judge.model_validate({"role": role, "model": MODEL, "prompt_sha256": sha256_bytes(f"{MODEL}/{role}")})


def _preceding(context: Context) -> list[str]:
    return [memory.text for memory in context.memories]


class WorldFidelity:
    """Faithful: no stated fact is wrong. Coherent: known clauses, no type twice."""

    identity = _identity("fidelity")

    def __init__(self, truth: WorldTruth) -> None:
        self._truth = truth

    def fidelity(self, context: Context, memory: str) -> Fidelity:
        """Judge against the truth; implements `FidelityJudge`."""
        reading = read_against(memory, self._truth.of(context), _preceding(context))
        return Fidelity(faithful=reading.wrong == 0, coherent=well_formed(memory))


class WorldRedundancy:
    """Non-redundant: no fact repeats the preceding memories."""

    identity = _identity("redundancy")

    def __init__(self, truth: WorldTruth) -> None:
        self._truth = truth

    def non_redundant(self, context: Context, memory: str) -> bool:
        """Judge the text; implements `RedundancyJudge`."""
        return read_against(memory, self._truth.of(context), _preceding(context)).repeated == 0


class WorldRichness:
    """Richer: more facts that are true and new; a new room counts twice, for it holds for the segments to come as well."""

    identity = _identity("richness")

    def __init__(self, truth: WorldTruth) -> None:
        self._truth = truth

    def rank(self, context: Context, memories: Sequence[str]) -> list[float]:
        """Rank by the worth of true, new facts; ties share their mean rank. Implements `RichnessJudge`."""
        facts, preceding = self._truth.of(context), _preceding(context)
        new = [self._worth(m, facts, preceding) for m in memories]
        return [1 + sum(other > own for other in new) + (new.count(own) - 1) / 2 for own in new]

    @staticmethod
    def _worth(memory: str, facts: Facts, preceding: Sequence[str]) -> int:
        if not well_formed(memory):
            return -1
        reading = read_against(memory, facts, preceding)
        return reading.new + reading.persistent


class WorldHelpfulness:
    """More useful: states facts of the types that the questions ask for, right or wrong: no answer is known here.

    A difference of at most a fifth of the questions is a tie.
    """

    identity = _identity("helpfulness")

    def compare(self, context: Context, questions: Sequence[Question], first: str, second: str) -> Position:
        """Count the questions each memory could answer; implements `HelpfulnessJudge`."""
        kinds = [asked[0] for q in questions if (asked := understand(q.text))]
        if not kinds:
            raise JudgeError("none of the questions is one of this world's")
        scores = [sum(kind in read_facts(memory) for kind in kinds) for memory in (first, second)]
        if abs(scores[0] - scores[1]) <= TIE * len(kinds):
            return "tie"
        return "first" if scores[0] > scores[1] else "second"


def world_judges(truth: WorldTruth) -> Judges:
    """All four roles."""
    return Judges(WorldFidelity(truth), WorldRedundancy(truth), WorldRichness(truth), WorldHelpfulness())


class WorldAnswerer:
    """Reads memory text and nothing else; implements `Answerer`.

    A question is answered from the memory of the moment it asks about; a room, which persists, also from the last earlier
    memory that names one.
    """

    def answer(self, question: Question, memories: Sequence[Memory]) -> str | None:
        """The stated value, or the option that says it; None where no memory says it or no option matches."""
        asked = understand(question.text)
        if asked is None:
            return None
        kind, moment = asked
        value = None
        for memory in memories:
            if memory.start_s > moment or (kind != ROOM and memory.end_s <= moment):
                continue
            value = read_facts(memory.text or "").get(kind, value)
        return None if question.options and value not in question.options else value


class WorldGrader:
    """Exact match; implements `Grader`."""

    def correct(self, question: Question, answer: str) -> bool:
        """True if the answer is the question's own; ValueError for a question that carries none."""
        if question.answer is None:
            raise ValueError(f"question {question.id} carries no answer to grade against")
        return answer == question.answer


class StrongModel:
    """Stands for the stronger model whose memories are the off-policy history: true, and told with a free choice of facts."""

    def __init__(self, truth: WorldTruth, seed: int) -> None:
        self._truth = truth
        self._seed = seed

    def memory(self, stream: str, index: int) -> str:
        """A faithful memory of a segment; the same for the same seed."""
        rng = random.Random(f"{self._seed}-{stream}-{index}")
        told = rng.sample(TYPES, rng.choices(range(1, 5), (0.15, 0.3, 0.35, 0.2))[0])
        return describe(self._truth.at(stream, index), told)


class WorldFactChecker:
    """Counts wrong facts; implements `FactChecker`."""

    def __init__(self, truth: WorldTruth) -> None:
        self._truth = truth

    def check(self, stream: str, index: int, memory: str) -> tuple[int, int]:
        """Facts stated in `memory`, and those that contradict the truth of the segment."""
        facts = self._truth.at(stream, index)
        stated = read_facts(memory)
        return len(stated), sum(value != facts[kind] for kind, value in stated.items())
