"""What a memory of the rendered world must say so that a question can be answered from it."""

import re

from taskmem.records import Question
from taskmem.world.facts import VALUES, describe
from taskmem.world.questions import understand


class WorldEvidence:
    """Implements `Evidence` with the world's own clauses; text that is no question of this world has none."""

    def moment(self, question: Question) -> float | None:
        """The second the question's text names."""
        asked = understand(question.text)
        return None if asked is None else float(asked[1])

    def phrase(self, question: Question) -> str | None:
        """The clause that states the true answer."""
        asked = understand(question.text)
        if asked is None or question.answer not in VALUES[asked[0]]:
            return None
        return describe({asked[0]: question.answer}, (asked[0],))

    def said(self, question: Question, memory: str) -> tuple[int, int] | None:
        """The first clause of the asked type, whatever value it states: the one that the answerer reads."""
        asked = understand(question.text)
        if asked is None:
            return None
        clauses = "|".join(re.escape(describe({asked[0]: value}, (asked[0],))) for value in VALUES[asked[0]])
        found = re.search(rf"\b(?:{clauses})\b", memory)
        return found.span() if found else None
