"""The answerer behind a network: a language model that sees memory text and nothing else (METHOD sections 1 and 5)."""

from collections.abc import Sequence
from typing import Any

from taskmem.agent.answering import Answerer
from taskmem.endpoint.client import CallError, Endpoint
from taskmem.endpoint.prompts import messages, prompt_of
from taskmem.endpoint.reply import Answer
from taskmem.errors import UserError
from taskmem.policy.renderer import clock, plain
from taskmem.records import Memory, Question


class TextAnswer(Answer):
    """The form of an answer in words; null where the memories are not sufficient."""

    reason: str
    sufficient: bool
    answer: str | None


class OptionAnswer(Answer):
    """The form of a choice: an option's number from 1; null where the memories are not sufficient."""

    reason: str
    sufficient: bool
    answer: int | None


class HttpAnswerer(Answerer):
    """Implements `Answerer`; thread-safe."""

    def __init__(self, endpoint: Endpoint) -> None:
        """UserError if the profile names no server for the answerer."""
        endpoint.server("answerer")
        self._endpoint = endpoint
        self._prompt = prompt_of("answerer")

    def answer(self, question: Question, memories: Sequence[Memory]) -> str | None:
        """The answer, one of the question's options where it has any; None for "insufficient information".

        Without memories nothing is asked. UserError if the model failed for good: an outage is no lack of information.
        """
        told = [{"time": clock(m.start_s), "memory": plain(m.text)} for m in memories if m.text is not None]
        if not told:
            return None
        data: dict[str, Any] = {"memories": told, "question": plain(question.text)}
        try:
            if question.options:
                return self._choice(question, data)
            return self._words(data)
        except CallError as error:
            failure = str(error)
        raise UserError(
            f"question {question.id}: the answerer failed ({failure}); run again with --resume: what was answered is kept"
        )

    def _words(self, data: dict[str, Any]) -> str | None:
        def whole(answer: TextAnswer) -> None:
            if answer.sufficient and not (answer.answer or "").strip():
                raise ValueError("sufficient, yet no answer")

        answer = self._endpoint.ask("answerer", messages(self._prompt, data), TextAnswer, whole)
        return (answer.answer or "").strip() if answer.sufficient else None

    def _choice(self, question: Question, data: dict[str, Any]) -> str | None:
        options = question.options

        def one_of_them(answer: OptionAnswer) -> None:
            if answer.sufficient and (answer.answer is None or not 1 <= answer.answer <= len(options)):
                raise ValueError(f"not one of the options 1 to {len(options)}")

        numbered = [{"number": number, "option": plain(option)} for number, option in enumerate(options, 1)]
        asked = messages(self._prompt, {**data, "options": numbered})
        answer = self._endpoint.ask("answerer", asked, OptionAnswer, one_of_them)
        return options[answer.answer - 1] if answer.sufficient and answer.answer is not None else None
