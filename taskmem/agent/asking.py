"""A question is answered from memory; its answer is stored before it is given, so that asking again costs and changes nothing."""

from collections.abc import Sequence

from taskmem.agent.answering import Answerer
from taskmem.agent.contracts import Answered, Asked, Ground
from taskmem.agent.remembered import (
    ErasedStreamError,
    MovedError,
    UnknownStreamError,
    keep_answer,
    kept_answer,
    stream_of,
)
from taskmem.agent.retrieval import read_for
from taskmem.agent.storage import Storage
from taskmem.files import sha256_bytes
from taskmem.records import Memory, Question, dump_record

TRIES = 20


class Asker:
    """Answers questions, for any number of threads."""

    def __init__(self, storage: Storage, answerer: Answerer, characters: int) -> None:
        """The answerer reads memories of so many `characters` at most."""
        self._storage, self._answerer, self._characters = storage, answerer, characters

    def ask(self, environment: str, name: str, asked: Asked) -> tuple[Answered, bool]:
        """The reply, and whether it is new. The same question under the same id again gets what is stored.

        UnknownStreamError, ErasedStreamError; ConflictError where the id is another question's; UserError where the answerer
        failed; StorageDownError.
        """
        digest = sha256_bytes(dump_record(asked))
        for _ in range(TRIES):
            with self._storage.reading() as connection:
                stream = stream_of(connection, environment, name)
                if stream is None:
                    raise UnknownStreamError(f"stream {name}: nothing is remembered of it; send its segments first")
                known = kept_answer(connection, stream, asked.id, digest)
                if known is not None:
                    return Answered.model_validate_json(known), False
                question = question_of(environment, name, asked, stream.end_s)
                memories = read_for(connection, stream, question, self._characters)
            reply = _reply(question, self._answerer.answer(question, memories), memories, stream.position)
            try:
                with self._storage.writing(environment, name) as connection:
                    now = stream_of(connection, environment, name)
                    if now is None or now.id != stream.id:
                        raise MovedError
                    keep_answer(connection, stream, asked.id, digest, dump_record(reply))
            except MovedError:
                continue
            return reply, True
        raise ErasedStreamError(f"stream {name}: changes all the time; ask again")


def question_of(environment: str, stream: str, asked: Asked, end_s: float) -> Question:
    """What the answerer is asked."""
    return Question(
        id=asked.id,
        environment=environment,
        stream=stream,
        asked_at_s=end_s if asked.asked_at_s is None else asked.asked_at_s,
        type=asked.type,
        text=asked.text,
        options=asked.options,
    )


def _reply(question: Question, answer: str | None, memories: Sequence[Memory], all_of_them: int) -> Answered:
    newest = memories[-1] if memories else None
    told = [(m, m.text) for m in memories if m.text is not None]
    return Answered(
        question=question.id,
        stream=question.stream,
        asked_at_s=question.asked_at_s,
        outcome="insufficient" if answer is None else "answered",
        answer=answer,
        memories=tuple(
            Ground(id=f"{m.stream}:{m.index}", start_s=m.start_s, end_s=m.end_s, text=text) for m, text in told
        ),
        of_memories=all_of_them,
        policy=newest.policy if newest else None,
        adapter=newest.adapter if newest else "none",
    )
