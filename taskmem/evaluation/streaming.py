"""Questions answered from memory alone (METHOD section 5)."""

from collections.abc import Sequence

from taskmem.agent import Answerer, visible
from taskmem.config import EvaluationSettings
from taskmem.evaluation.metrics import Graded
from taskmem.evaluation.protocols import Grader
from taskmem.records import Memory, Name, Question, Record


def ask(
    questions: Sequence[Question], memories: Sequence[Memory], answerer: Answerer
) -> list[tuple[Question, str | None]]:
    """Answer every question from the memories it may see; the answerer never sees the true answer."""
    of_stream: dict[str, list[Memory]] = {}
    for memory in sorted(memories, key=lambda m: (m.stream, m.index)):
        of_stream.setdefault(memory.stream, []).append(memory)
    return [(q, answerer.answer(q.without_answer(), visible(of_stream.get(q.stream, []), q))) for q in questions]


class GradedAnswer(Record):
    """What became of one question in an evaluation."""

    question: Name
    stream: Name
    environment: Name
    type: Name
    answer: str | None
    correct: bool

    @property
    def graded(self) -> Graded:
        """As the metrics take it."""
        return Graded(self.question, self.stream, self.type, self.environment, self.answer is not None, self.correct)


def graded_answers(answers: Sequence[tuple[Question, str | None]], grader: Grader) -> list[GradedAnswer]:
    """Grade every answer; an unanswered question is not correct."""
    return [
        GradedAnswer(
            question=question.id,
            stream=question.stream,
            environment=question.environment,
            type=question.type,
            answer=answer,
            correct=answer is not None and grader.correct(question, answer),
        )
        for question, answer in answers
    ]


def grade(answers: Sequence[tuple[Question, str | None]], grader: Grader) -> list[Graded]:
    """Which questions were answered, and which rightly."""
    return [answer.graded for answer in graded_answers(answers, grader)]


def feedback_and_rest(
    questions: Sequence[Question], settings: EvaluationSettings
) -> tuple[list[Question], list[Question]]:
    """Split each environment's questions, in the order they were asked, into the first ones (feedback) and the rest."""
    first: list[Question] = []
    rest: list[Question] = []
    seen: dict[str, int] = {}
    for question in sorted(questions, key=lambda q: (q.asked_at_s, q.stream, q.id)):
        seen[question.environment] = seen.get(question.environment, 0) + 1
        (first if seen[question.environment] <= settings.feedback_questions else rest).append(question)
    return first, rest
