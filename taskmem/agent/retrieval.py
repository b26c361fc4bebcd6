"""Which memories an answerer sees: all of a stream's, or once they are too many, those that a question's words find.

What this costs hardly grows with the stream: of each word only the newest `HITS` memories that have it are looked at, and where
a stream's memories pass a number of characters is stored with each.
"""

import math
from collections.abc import Sequence

from sqlalchemy import Connection, Row, select, text

from taskmem.agent.remembered import Stream, cost, scope_of
from taskmem.agent.tables import MEMORIES
from taskmem.agent.words import asked_for
from taskmem.records import Memory, Question

HITS = 256
COMMON = 0.05  # what a word counts that more memories have: it tells them apart hardly at all


def read_for(connection: Connection, stream: Stream, question: Question, characters: int) -> list[Memory]:
    """The memories that had ended when the question was asked, oldest first, of together at most so many `characters`.

    If those are too many, the memories with the question's rarest words come first, then the newest. Each counts as
    `remembered.cost` says.
    """
    mine = MEMORIES.c.stream == stream.id
    last = connection.execute(
        select(MEMORIES.c.number, MEMORIES.c.position, MEMORIES.c.through)
        .where(mine, MEMORIES.c.end_s <= question.asked_at_s)
        .order_by(MEMORIES.c.end_s.desc())
        .limit(1)
    ).first()
    if last is None:
        return []
    newest = (
        connection.execute(
            select(MEMORIES.c.id)
            .where(mine, MEMORIES.c.through > last.through - characters, MEMORIES.c.number <= last.number)
            .order_by(MEMORIES.c.number.desc())
        )
        .scalars()
        .all()
    )
    found = [] if last.through <= characters else _found(connection, stream, question, last)
    return _fitting(connection, list(dict.fromkeys([*found, *newest])), characters)


def _fitting(connection: Connection, numbers: Sequence[int], characters: int) -> list[Memory]:
    """The first of these that fit into so many characters, in the stream's order."""
    chosen: list[Memory] = []
    for at in range(0, len(numbers), HITS):
        some = numbers[at : at + HITS]
        rows = connection.execute(select(MEMORIES.c.id, MEMORIES.c.memory).where(MEMORIES.c.id.in_(some))).all()
        memories = {row.id: Memory.model_validate_json(row.memory) for row in rows}
        for memory in (memories[number] for number in some if number in memories):
            if cost(memory) > characters:
                return _in_order(chosen)
            characters -= cost(memory)
            chosen.append(memory)
    return _in_order(chosen)


def _in_order(memories: Sequence[Memory]) -> list[Memory]:
    return sorted((memory for memory in memories if memory.text is not None), key=lambda memory: memory.index)


def _found(connection: Connection, stream: Stream, question: Question, last: Row) -> list[int]:
    """The ids of memories up to `last` that have words of the question, the best first."""
    scores: dict[int, float] = {}
    for word in asked_for(question.text, *question.options):
        hits = _having(connection, stream, word, last)
        weight = COMMON if len(hits) == HITS else math.log1p(last.position / len(hits)) if hits else 0.0
        for number in hits:
            scores[number] = scores.get(number, 0.0) + weight
    return sorted(scores, key=lambda number: (-scores[number], -number))


def _having(connection: Connection, stream: Stream, word: str, last: Row) -> Sequence[int]:
    """The newest memories that have a word, by id."""
    if connection.dialect.name == "sqlite":
        statement = """
            SELECT rowid FROM memory_words WHERE memory_words MATCH :match
            AND rowid <= (SELECT id FROM memories WHERE stream = :stream AND number = :last)
            ORDER BY rowid DESC LIMIT :most"""
        match = f'scope : "{scope_of(stream.id)}" AND words : "{word}"'
    else:
        statement = """
            SELECT id FROM memories WHERE stream = :stream AND number <= :last
            AND words @@ phraseto_tsquery('english', :match) ORDER BY number DESC LIMIT :most"""
        match = word
    values = {"match": match, "last": last.number, "stream": stream.id, "most": HITS}
    return list(connection.execute(text(statement), values).scalars())
