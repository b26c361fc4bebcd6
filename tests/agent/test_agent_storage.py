"""The agent's database, SQLite and PostgreSQL alike: what is stored, in which order, and what a crash leaves."""

import threading
from pathlib import Path

import pytest
from agent_parts import segment
from sqlalchemy import select, text, update
from stored_parts import memory, remember

from taskmem.agent.remembered import (
    ConflictError,
    MovedError,
    New,
    append,
    forget,
    keep_answer,
    kept_answer,
    kept_memory,
    memories_after,
    stream_of,
    window_of,
)
from taskmem.agent.storage import Storage, StorageDownError
from taskmem.agent.tables import CLIPS, VERSIONS
from taskmem.errors import UserError


def test_what_was_stored_is_there_after_a_restart(database: str) -> None:
    with Storage(database) as storage:
        remember(storage, 0, "a cat sleeps")
        remember(storage, 4, None)
    with Storage(database) as storage, storage.reading() as connection:
        stream = stream_of(connection, "door", "a")
        assert stream is not None
        assert (stream.last, stream.end_s, stream.position) == (4, 50.0, 2)
        assert memories_after(connection, stream, None, 10) == [memory("a", 0, "a cat sleeps"), memory("a", 4, None)]
        kept = kept_memory(connection, stream, 0)
        assert kept is not None and kept.memory == memory("a", 0, "a cat sleeps")
        assert kept_memory(connection, stream, 1) is None


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_window_comes_back_as_one_who_never_stopped_has_it(storage: Storage, size: int) -> None:
    for index, said in enumerate(["zero", None, "two"]):
        remember(storage, index, said)
    with storage.reading() as connection:
        stream = stream_of(connection, "door", "a")
        assert stream is not None
        window, clips = window_of(connection, stream, size)
    shown = list(range(3))[3 - (size - 1) :] if size > 1 else []
    assert [s.index for s in window.segments] == shown
    assert [(m.index, m.text) for m in window.memories] == [(i, t) for i, t in [(0, "zero"), (2, "two")] if i in shown]
    assert {s.sha256: clips[s.sha256] for s in window.segments} == clips
    assert list(clips.values()) == [f"door a {index}".encode() for index in shown]


def test_clips_are_kept_only_as_long_as_a_window_shows_them(storage: Storage) -> None:
    for index in range(6):
        remember(storage, index, "x")
        remember(storage, index, "x", stream="b")
    with storage.reading() as connection:
        assert len(connection.execute(select(CLIPS.c.memory)).all()) == 2 * 2


def test_the_next_memory_of_a_stream_that_moved_meanwhile_is_refused(storage: Storage) -> None:
    remember(storage, 0, "zero")
    with storage.reading() as connection:
        seen = stream_of(connection, "door", "a")
    remember(storage, 1, "one")
    new = New("door", segment("a", 2), b"", memory("a", 2, "two"), "0" * 64)
    for stale in (seen, None):
        with pytest.raises(MovedError), storage.writing("door", "a") as connection:
            append(connection, stale, new, 3)
    with storage.reading() as connection:
        now = stream_of(connection, "door", "a")
        assert now is not None and now.last == 1


def test_a_block_that_fails_leaves_nothing(storage: Storage) -> None:
    remember(storage, 0, "zero")
    with pytest.raises(ZeroDivisionError), storage.writing("door", "a") as connection:
        new = New("door", segment("a", 1), b"", memory("a", 1, "one"), "0" * 64)
        append(connection, stream_of(connection, "door", "a"), new, 3)
        raise ZeroDivisionError
    with storage.reading() as connection:
        stream = stream_of(connection, "door", "a")
        assert stream is not None and stream.last == 0


def test_writers_of_one_stream_come_one_after_the_other(storage: Storage) -> None:
    def write(number: int) -> None:
        while True:
            try:
                with storage.reading() as connection:
                    seen = stream_of(connection, "door", "a")
                index = seen.last + 1 if seen else 0
                new = New("door", segment("a", index), b"", memory("a", index, f"by {number}"), "0" * 64)
                with storage.writing("door", "a") as connection:
                    append(connection, seen, new, 3)
                return
            except MovedError:
                continue

    threads = [threading.Thread(target=write, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with storage.reading() as connection:
        stream = stream_of(connection, "door", "a")
        assert stream is not None
        found = memories_after(connection, stream, None, 100)
    assert [m.index for m in found] == list(range(12))
    assert sorted(m.text or "" for m in found) == sorted(f"by {number}" for number in range(12))


def test_pages_of_memories_follow_one_another(storage: Storage) -> None:
    for index in (0, 2, 3, 7):
        remember(storage, index, f"{index}")
    with storage.reading() as connection:
        stream = stream_of(connection, "door", "a")
        assert stream is not None
        assert [m.index for m in memories_after(connection, stream, None, 2)] == [0, 2]
        assert [m.index for m in memories_after(connection, stream, 2, 2)] == [3, 7]
        assert memories_after(connection, stream, 7, 2) == []


def test_environments_may_call_their_streams_the_same(storage: Storage) -> None:
    remember(storage, 0, "the door's", environment="door")
    remember(storage, 5, "the room's", environment="room")
    with storage.reading() as connection:
        for environment, index, said in (("door", 0, "the door's"), ("room", 5, "the room's")):
            stream = stream_of(connection, environment, "a")
            assert stream is not None
            assert memories_after(connection, stream, None, 9) == [memory("a", index, said)]
        assert stream_of(connection, "other", "a") is None


def test_an_answer_is_stored_once(storage: Storage) -> None:
    remember(storage, 0, "zero")
    with storage.writing("door", "a") as connection:
        stream = stream_of(connection, "door", "a")
        assert stream is not None
        keep_answer(connection, stream, "q1", "1" * 64, "{}")
    with storage.reading() as connection:
        assert kept_answer(connection, stream, "q1", "1" * 64) == "{}"
        assert kept_answer(connection, stream, "q2", "1" * 64) is None
        with pytest.raises(ConflictError, match="question q1: was asked before with other content"):
            kept_answer(connection, stream, "q1", "2" * 64)
    with pytest.raises(MovedError), storage.writing("door", "a") as connection:
        keep_answer(connection, stream, "q1", "1" * 64, "{}")


def test_of_a_forgotten_stream_nothing_is_left_and_of_others_all(storage: Storage) -> None:
    for name in ("a", "b"):
        remember(storage, 0, f"of {name}", stream=name)
    with storage.writing("door", "a") as connection:
        assert forget(connection, "door", "a") == {"memories": 1, "clips": 1, "answers": 0}
        assert forget(connection, "door", "a") == {"memories": 0, "clips": 0, "answers": 0}
    storage.tidy()
    with storage.reading() as connection:
        assert stream_of(connection, "door", "a") is None
        other = stream_of(connection, "door", "b")
        assert other is not None
        window, clips = window_of(connection, other, 3)
        assert (len(window.segments), len(clips)) == (1, 1)


def test_two_agents_may_open_a_database_at_the_same_moment(server: object, database: str) -> None:
    if database.startswith("sqlite"):
        with Storage(database), pytest.raises(UserError, match=r"agent\.db: another agent has it"):
            Storage(database)
        return
    opened: list[Storage] = []
    threads = [threading.Thread(target=lambda: opened.append(Storage(database))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    for storage in opened:
        storage.check()
        storage.close()


def test_tables_of_another_version_are_refused(database: str) -> None:
    with Storage(database) as storage, storage.writing() as connection:
        connection.execute(update(VERSIONS).values(version=99))
    with pytest.raises(UserError, match="tables of version 99, not 1"):
        Storage(database)


@pytest.mark.parametrize(
    "url", ["", "nonsense", "mysql://x/y", "sqlite://", "sqlite:///:memory:", "oracle://scott:tiger@h"]
)
def test_what_is_no_database_for_an_agent_is_named_without_its_password(url: str) -> None:
    with pytest.raises(UserError) as stop:
        Storage(url)
    assert "tiger" not in str(stop.value)


def test_a_server_that_is_not_there_is_an_outage(tmp_path: Path) -> None:
    with pytest.raises(StorageDownError):
        Storage(f"postgresql://taskmem:tiger@/agent?host={tmp_path}")


def test_sqlite_syncs_every_transaction(tmp_path: Path) -> None:
    with Storage(f"sqlite:///{tmp_path}/agent.db") as storage, storage.reading() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2
