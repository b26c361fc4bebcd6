"""Streams in a database, memory by memory."""

from collections.abc import Mapping

from agent_parts import segment

from taskmem.agent.remembered import New, append, stream_of
from taskmem.agent.storage import Storage
from taskmem.files import sha256_bytes
from taskmem.records import Memory


def memory(stream: str, index: int, text: str | None) -> Memory:
    return Memory(
        stream=stream,
        index=index,
        start_s=index * 10.0,
        end_s=index * 10.0 + 10,
        text=text,
        think_tokens=0,
        memory_tokens=3,
        policy="d" * 64,
    )


def remember(storage: Storage, index: int, text: str | None, stream: str = "a", environment: str = "door") -> None:
    """Store a memory behind the others of its stream, with a clip that says whose it is."""
    remember_all(storage, {index: text}, stream, environment)


def remember_all(
    storage: Storage, texts: Mapping[int, str | None], stream: str = "a", environment: str = "door"
) -> None:
    """Store memories by their index, in one transaction."""
    with storage.writing(environment, stream) as connection:
        for index, text in texts.items():
            clip = f"{environment} {stream} {index}".encode()
            given = sha256_bytes(clip)
            own = segment(stream, index).model_copy(update={"sha256": given})
            seen = stream_of(connection, environment, stream)
            append(connection, seen, New(environment, own, clip, memory(stream, index, text), given), window=3)
