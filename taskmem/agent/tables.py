"""The agent's tables. Everything a restart needs is in them, and nothing anywhere else."""

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
)
from sqlalchemy.dialects.postgresql import TSVECTOR

VERSION = 1
"""Raised when the tables change; an agent refuses a database of another version."""

metadata = MetaData()
# SQLite numbers rows by themselves only in a column of exactly this type
_Number = BigInteger().with_variant(Integer, "sqlite")
_NAME, _DIGEST = String(128), String(64)

VERSIONS = Table("taskmem_version", metadata, Column("version", Integer, nullable=False))

STREAMS = Table(
    "streams",
    metadata,
    Column("id", _Number, primary_key=True),
    Column("environment", _NAME, nullable=False),
    Column("name", _NAME, nullable=False),
    # of the newest memory
    Column("last", BigInteger, nullable=False),
    Column("end_s", Double, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("through", BigInteger, nullable=False),
    UniqueConstraint("environment", "name"),
    sqlite_autoincrement=True,
)

MEMORIES = Table(
    "memories",
    metadata,
    Column("id", _Number, primary_key=True),
    Column("stream", ForeignKey(STREAMS.c.id, ondelete="CASCADE"), nullable=False),
    Column("number", BigInteger, nullable=False),  # the segment's index
    Column("position", BigInteger, nullable=False),  # counted from 1 without gaps
    Column("end_s", Double, nullable=False),
    Column("through", BigInteger, nullable=False),  # characters of all memories up to this one
    Column("given", _DIGEST, nullable=False),  # of the bytes that were sent
    Column("segment", Text, nullable=False),
    Column("memory", Text, nullable=False),
    Column("words", TSVECTOR().with_variant(Text, "sqlite")),  # SQLite keeps them in memory_words
    UniqueConstraint("stream", "number"),
    Index("memories_by_end", "stream", "end_s"),
    Index("memories_by_through", "stream", "through"),
    sqlite_autoincrement=True,
)

CLIPS = Table(
    "clips",
    metadata,
    Column("memory", ForeignKey(MEMORIES.c.id, ondelete="CASCADE"), primary_key=True),
    Column("stream", ForeignKey(STREAMS.c.id, ondelete="CASCADE"), nullable=False, index=True),
    Column("data", LargeBinary, nullable=False),
)

ANSWERS = Table(
    "answers",
    metadata,
    Column("id", _Number, primary_key=True),
    Column("stream", ForeignKey(STREAMS.c.id, ondelete="CASCADE"), nullable=False),
    Column("question", _NAME, nullable=False),
    Column("asked", _DIGEST, nullable=False),  # of the question
    Column("reply", Text, nullable=False),
    UniqueConstraint("stream", "question"),
    sqlite_autoincrement=True,
)

FEEDBACK = Table(
    "feedback",
    metadata,
    Column("id", _Number, primary_key=True),
    Column("environment", _NAME, nullable=False),
    Column("event", _NAME, nullable=False),
    Column("stream", _NAME, nullable=False),
    Column("digest", _DIGEST, nullable=False),  # of the event
    Column("received", Double, nullable=False),  # seconds since 1970
    Column("record", Text),  # null once it is shipped
    UniqueConstraint("environment", "event"),
    Index("feedback_by_stream", "environment", "stream"),
    sqlite_autoincrement=True,
)
_WAITING = FEEDBACK.c.record.is_not(None)
Index("feedback_waiting", FEEDBACK.c.id, sqlite_where=_WAITING, postgresql_where=_WAITING)

ERASED = Table(
    "erased",
    metadata,
    # the digests under which tombstones are kept: they tell no name
    Column("environment", _NAME, primary_key=True),
    Column("target", _DIGEST, primary_key=True),
    Column("state", String(8), nullable=False),
)

# porter: questions and memories say "carried" and "carries"; words are split before, so that both databases split alike
_WORDS = """CREATE VIRTUAL TABLE IF NOT EXISTS memory_words USING fts5(scope, words, tokenize="porter ascii tokenchars '_'")"""
event.listen(metadata, "after_create", DDL(_WORDS).execute_if(dialect="sqlite"))
# without its pending list every question costs the same
_GIN = "CREATE INDEX IF NOT EXISTS memories_words ON memories USING gin (words) WITH (fastupdate = off)"
event.listen(metadata, "after_create", DDL(_GIN).execute_if(dialect="postgresql"))
