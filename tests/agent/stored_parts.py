"""Streams in a database, memory by memory."""

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
    clip = f"{environment} {stream} {index}".encode()
    given = sha256_bytes(clip)
    own = segment(stream, index).model_copy(update={"sha256": given})
    with storage.writing(environment, stream) as connection:
        seen = stream_of(connection, environment, stream)
        append(connection, seen, New(environment, own, clip, memory(stream, index, text), given), window=3)
