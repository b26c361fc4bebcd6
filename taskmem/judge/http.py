"""The judges behind a network: one model per role, asked through the one client (METHOD sections 3 and 4).

Raise `JudgeError` where a role failed for good, UserError where the whole run has to stop (budget, settings, an outage).
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from taskmem.endpoint.client import CallError, Endpoint
from taskmem.endpoint.media import Clips, video_parts
from taskmem.endpoint.prompts import Part, Prompt, messages, prompt_of
from taskmem.endpoint.reply import Answer
from taskmem.judge.protocols import Fidelity, JudgeError, Judges, Position
from taskmem.policy.renderer import plain
from taskmem.records import Context, Judge, Question
from taskmem.roles import RoleName

A = TypeVar("A", bound=Answer)


class FidelityAnswer(Answer):
    """The form of a fidelity verdict."""

    reason: str
    faithful: bool
    coherent: bool


class RedundancyAnswer(Answer):
    """The form of a redundancy verdict."""

    reason: str
    repeats: bool
    forbidden: bool


class RichnessAnswer(Answer):
    """The form of a ranking: numbers from 1, richest first."""

    reason: str
    ranking: list[int]


class HelpfulnessAnswer(Answer):
    """The form of a comparison."""

    reason: str
    better: Literal["first", "second", "tie"]


class _HttpJudge:
    """One role: its prompt, its identity in the records, and how it is asked."""

    def __init__(self, endpoint: Endpoint, role: RoleName) -> None:
        self._endpoint = endpoint
        self._role: RoleName = role
        self._prompt: Prompt = prompt_of(role)
        self._server = endpoint.server(role)
        model = f"{self._server.model}@{self._server.revision}" if self._server.revision else self._server.model
        self.identity = Judge.model_validate({"role": role, "model": model, "prompt_sha256": self._prompt.sha256})

    def _ask(
        self,
        data: dict[str, Any],
        kind: type[A],
        media: Sequence[Part] = (),
        check: Callable[[A], None] | None = None,
    ) -> A:
        try:
            return self._endpoint.ask(self._role, messages(self._prompt, data, media), kind, check)
        except CallError as error:
            failure = str(error)
        raise JudgeError(failure)


def _preceding(context: Context) -> list[str]:
    return [plain(memory.text) for memory in context.memories]


class HttpFidelity(_HttpJudge):
    """Judges with the video of the current segment and its subtitles; implements `FidelityJudge`."""

    def __init__(self, endpoint: Endpoint, clips: Clips) -> None:
        super().__init__(endpoint, "fidelity")
        self._clips = clips

    def fidelity(self, context: Context, memory: str) -> Fidelity:
        """Judge `memory` against the context's current segment."""
        segment = context.current
        said = [{"speaker": plain(turn.speaker), "text": plain(turn.text)} for turn in segment.subtitles]
        data = {"subtitles": said, "preceding_memories": _preceding(context), "memory": plain(memory)}
        verdict = self._ask(data, FidelityAnswer, video_parts(segment, self._server.media, self._clips))
        return Fidelity(faithful=verdict.faithful, coherent=verdict.coherent)


class HttpRedundancy(_HttpJudge):
    """Judges the text alone; implements `RedundancyJudge`."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint, "redundancy")

    def non_redundant(self, context: Context, memory: str) -> bool:
        """True if no fact repeats a preceding memory and no forbidden phrase occurs."""
        data = {"preceding_memories": _preceding(context), "memory": plain(memory)}
        verdict = self._ask(data, RedundancyAnswer)
        return not (verdict.repeats or verdict.forbidden)


class HttpRichness(_HttpJudge):
    """Ranks a group at once, in several orders, for a judge favours places; implements `RichnessJudge`."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint, "richness")
        self._shuffles = endpoint.settings.shuffles

    def rank(self, context: Context, memories: Sequence[str]) -> list[float]:
        """Ranks by the mean over the orders; equal memories are shown once and, like other ties, share their mean rank.

        The orders depend on the context and the memories, not on the order of `memories`.
        """
        shown = sorted({plain(memory) for memory in memories})
        places = dict.fromkeys(shown, 0)
        if len(shown) > 1:
            for shuffle in range(self._shuffles):
                order = random.Random(f"richness-{shuffle // 2}-{context.id}").sample(shown, len(shown))
                # each order is followed by its reverse, so that with an even number no place is favoured
                for place, memory in enumerate(self._ranking(context, order[:: -1 if shuffle % 2 else 1])):
                    places[memory] += place
        sums = [places[plain(memory)] for memory in memories]
        return [1 + sum(other < own for other in sums) + (sums.count(own) - 1) / 2 for own in sums]

    def _ranking(self, context: Context, order: Sequence[str]) -> list[str]:
        numbers = list(range(1, len(order) + 1))

        def every_number_once(answer: RichnessAnswer) -> None:
            if sorted(answer.ranking) != numbers:
                raise ValueError(f"the ranking does not hold the numbers 1 to {len(order)} once each")

        numbered = [{"number": number, "memory": memory} for number, memory in zip(numbers, order, strict=True)]
        data = {"preceding_memories": _preceding(context), "memories": numbered}
        return [order[number - 1] for number in self._ask(data, RichnessAnswer, check=every_number_once).ranking]


class HttpHelpfulness(_HttpJudge):
    """R_task, without answers and without video; implements `HelpfulnessJudge`."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint, "helpfulness")

    def compare(self, context: Context, questions: Sequence[Question], first: str, second: str) -> Position:
        """Compare the two in the order shown; a question's answer is never sent."""
        asked = [
            {"question": plain(q.text), **({"options": [plain(o) for o in q.options]} if q.options else {})}
            for q in questions
        ]
        data = {"questions": asked, "first": plain(first), "second": plain(second)}
        return self._ask(data, HelpfulnessAnswer).better


def http_judges(endpoint: Endpoint, clips: Clips) -> Judges:
    """All four roles; UserError if the profile names no server for one."""
    return Judges(
        HttpFidelity(endpoint, clips), HttpRedundancy(endpoint), HttpRichness(endpoint), HttpHelpfulness(endpoint)
    )
