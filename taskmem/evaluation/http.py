"""The grader behind a network, for answers in words; a choice among options is compared, not judged."""

from taskmem.endpoint.client import CallError, Endpoint
from taskmem.endpoint.prompts import messages, prompt_of
from taskmem.endpoint.reply import Answer
from taskmem.errors import UserError
from taskmem.evaluation.protocols import Grader
from taskmem.policy.renderer import plain
from taskmem.records import Question


class GraderAnswer(Answer):
    """The form of a grade."""

    reason: str
    correct: bool


class HttpGrader(Grader):
    """Implements `Grader`; thread-safe."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._prompt = prompt_of("grader")

    def correct(self, question: Question, answer: str) -> bool:
        """True if `answer` is right; ValueError for a question without an answer, UserError if the model failed for good."""
        if question.answer is None:
            raise ValueError(f"question {question.id} carries no answer to grade against")
        if question.options or answer == question.answer:
            return answer == question.answer
        data = {"question": plain(question.text), "truth": plain(question.answer), "answer": plain(answer)}
        try:
            return self._endpoint.ask("grader", messages(self._prompt, data), GraderAnswer).correct
        except CallError as error:
            failure = str(error)
        raise UserError(
            f"question {question.id}: the grader failed ({failure}); run again with --resume: what was answered is kept"
        )
