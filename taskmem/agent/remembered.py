"""What is stored of streams: their windows, memories and answers. Every function works inside a transaction of `Storage`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from taskmem.agent.tables import ANSWERS, CLIPS, ERASED, MEMORIES, STREAMS
from taskmem.agent.words import indexed
from taskmem.errors import UserError
from taskmem.feedback.collection import scoped, tombstone_of
from taskmem.policy.stream import Window
from taskmem.records import ContextMemory, Memory, Segment, dump_record

FRAME = 24  # characters that stand around a memory where an answerer reads it


class UnknownStreamError(UserError):
    """The environment has no such stream."""


class ErasedStreamError(UserError):
    """The stream was erased; what is still sent of it is not kept."""


class ConflictError(UserError):
    """What is sent contradicts what is stored."""


class MovedError(Exception):
    """Somebody else wrote to the stream meanwhile; look again."""


@dataclass(frozen=True)
class Stream:
    """A stream as it stands: the index of its newest memory and where that ends, how many there are, all their characters."""

    id: int
    last: int
    end_s: float
    position: int
    through: int


@dataclass(frozen=True)
class Kept:
    """A stored memory, and the digest of the bytes that it was written of."""

    memory: Memory
    given: str


def cost(memory: Memory) -> int:
    """What a memory takes of the characters that an answerer may read."""
    return len(memory.text or "") + FRAME


def stream_of(connection: Connection, environment: str, name: str) -> Stream | None:
    """A stream, None if nothing was remembered of it. ErasedStreamError if it was erased."""
    if is_erased(connection, environment, name):
        raise ErasedStreamError(f"stream {name}: was erased; give what is new another name")
    return _row_of(connection, environment, name)


def is_erased(connection: Connection, environment: str, stream: str) -> bool:
    """Whether a stream of an environment was erased, or is being."""
    where = (
        ERASED.c.environment == environment,
        ERASED.c.target == tombstone_of("stream", scoped(environment, stream)),
    )
    return connection.execute(select(ERASED.c.state).where(*where)).first() is not None


def _row_of(connection: Connection, environment: str, name: str) -> Stream | None:
    found = connection.execute(
        select(STREAMS.c.id, STREAMS.c.last, STREAMS.c.end_s, STREAMS.c.position, STREAMS.c.through).where(
            STREAMS.c.environment == environment, STREAMS.c.name == name
        )
    ).first()
    return Stream(*found) if found else None


def kept_memory(connection: Connection, stream: Stream, index: int) -> Kept | None:
    """The memory of one segment."""
    row = connection.execute(
        select(MEMORIES.c.memory, MEMORIES.c.given).where(MEMORIES.c.stream == stream.id, MEMORIES.c.number == index)
    ).first()
    return Kept(Memory.model_validate_json(row.memory), row.given) if row else None


def window_of(connection: Connection, stream: Stream, size: int) -> tuple[Window, dict[str, bytes]]:
    """What a next memory is written from, were `size` segments shown: the window, and its clips by their SHA-256."""
    rows = connection.execute(
        select(MEMORIES.c.segment, MEMORIES.c.memory, CLIPS.c.data)
        .join(CLIPS, CLIPS.c.memory == MEMORIES.c.id)
        .where(MEMORIES.c.stream == stream.id)
        .order_by(MEMORIES.c.number.desc())
        .limit(size - 1)
    ).all()[::-1]
    segments = tuple(Segment.model_validate_json(row.segment) for row in rows)
    memories = [Memory.model_validate_json(row.memory) for row in rows]
    told = tuple(ContextMemory(index=m.index, text=m.text) for m in memories if m.text is not None)
    return Window(segments, told), {s.sha256: row.data for s, row in zip(segments, rows, strict=True)}


@dataclass(frozen=True)
class New:
    """A memory to be stored, with its segment, the clip, and the digest of what was sent."""

    environment: str
    segment: Segment
    clip: bytes
    memory: Memory
    given: str


def append(connection: Connection, seen: Stream | None, new: New, window: int) -> None:
    """Store a memory behind those of the stream as it was `seen`; clips that no window shows any more go.

    The caller's transaction is alone with the stream. MovedError if the stream is no longer as it was seen.
    """
    segment, memory = new.segment, new.memory
    now = stream_of(connection, new.environment, segment.stream)
    if now != seen:
        raise MovedError
    after = Stream(
        now.id if now else 0,
        segment.index,
        segment.end_s,
        (now.position if now else 0) + 1,
        (now.through if now else 0) + cost(memory),
    )
    values = {"last": after.last, "end_s": after.end_s, "position": after.position, "through": after.through}
    if now is None:
        row = insert(STREAMS).values(environment=new.environment, name=segment.stream, **values)
        stream = connection.execute(row.returning(STREAMS.c.id)).scalar_one()
    else:
        stream = now.id
        connection.execute(update(STREAMS).where(STREAMS.c.id == stream).values(**values))
    row = insert(MEMORIES).values(
        stream=stream,
        number=segment.index,
        position=after.position,
        end_s=segment.end_s,
        through=after.through,
        given=new.given,
        segment=dump_record(segment),
        memory=dump_record(memory),
    )
    number = connection.execute(row.returning(MEMORIES.c.id)).scalar_one()
    _index(connection, stream, number, indexed(memory.text or ""))
    connection.execute(insert(CLIPS).values(memory=number, stream=stream, data=new.clip))
    shown = select(CLIPS.c.memory).where(CLIPS.c.stream == stream).order_by(CLIPS.c.memory.desc()).limit(window - 1)
    connection.execute(delete(CLIPS).where(CLIPS.c.stream == stream, CLIPS.c.memory.not_in(shown)))


def _index(connection: Connection, stream: int, number: int, words: str) -> None:
    if connection.dialect.name == "sqlite":
        statement = "INSERT INTO memory_words(rowid, scope, words) VALUES (:number, :scope, :words)"
        connection.execute(text(statement), {"number": number, "scope": scope_of(stream), "words": words})
    else:
        vector = func.to_tsvector(text("'english'"), words)
        connection.execute(update(MEMORIES).where(MEMORIES.c.id == number).values(words=vector))


def scope_of(stream: int) -> str:
    """The word that stands beside a memory's own in the index of all: only its stream's are looked through."""
    return f"s{stream}"


def memories_after(connection: Connection, stream: Stream, after: int | None, limit: int) -> list[Memory]:
    """So many memories of a stream in order, those of segments after `after`."""
    where = [MEMORIES.c.stream == stream.id, *([MEMORIES.c.number > after] if after is not None else [])]
    query = select(MEMORIES.c.memory).where(*where).order_by(MEMORIES.c.number).limit(limit)
    return [Memory.model_validate_json(row) for row in connection.execute(query).scalars()]


def newest_memory(connection: Connection, environment: str) -> Memory | None:
    """The memory that an environment's agent wrote last."""
    query = (
        select(MEMORIES.c.memory)
        .join(STREAMS, STREAMS.c.id == MEMORIES.c.stream)
        .where(STREAMS.c.environment == environment)
        .order_by(MEMORIES.c.id.desc())
        .limit(1)
    )
    row = connection.execute(query).scalar_one_or_none()
    return Memory.model_validate_json(row) if row else None


def kept_answer(connection: Connection, stream: Stream, question: str, asked: str) -> str | None:
    """The stored reply to a question; ConflictError if another question has its id."""
    row = connection.execute(
        select(ANSWERS.c.asked, ANSWERS.c.reply).where(ANSWERS.c.stream == stream.id, ANSWERS.c.question == question)
    ).first()
    if row is None:
        return None
    if row.asked != asked:
        raise ConflictError(f"question {question}: was asked before with other content; give the new one its own id")
    reply: str = row.reply
    return reply


def keep_answer(connection: Connection, stream: Stream, question: str, asked: str, reply: str) -> None:
    """Store the reply to a question. MovedError if somebody else did meanwhile, or the stream is gone."""
    values = {"stream": stream.id, "question": question, "asked": asked, "reply": reply}
    try:
        connection.execute(insert(ANSWERS).values(**values))
    except IntegrityError:
        raise MovedError from None


def forget(connection: Connection, environment: str, name: str) -> dict[str, int]:
    """Erase a stream's rows; how many of each kind there were."""
    stream = _row_of(connection, environment, name)
    if stream is None:
        return {"memories": 0, "clips": 0, "answers": 0}
    gone: Mapping[str, Any] = {
        "memories": select(func.count()).where(MEMORIES.c.stream == stream.id),
        "clips": select(func.count()).where(CLIPS.c.stream == stream.id),
        "answers": select(func.count()).where(ANSWERS.c.stream == stream.id),
    }
    counts = {name: int(connection.execute(query).scalar_one()) for name, query in gone.items()}
    if connection.dialect.name == "sqlite":
        rows = "DELETE FROM memory_words WHERE rowid IN (SELECT id FROM memories WHERE stream = :stream)"
        connection.execute(text(rows), {"stream": stream.id})
    for table in (CLIPS, ANSWERS, MEMORIES):
        connection.execute(delete(table).where(table.c.stream == stream.id))
    connection.execute(delete(STREAMS).where(STREAMS.c.id == stream.id))
    return counts
