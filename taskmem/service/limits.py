"""How much a client may send, and how long it may take for it."""

from typing import Self

from pydantic import model_validator

from taskmem.settings import Count, Positive, Settings


class Limits(Settings):
    """`body_bytes` of one request, `held_bytes` of all that are being served, so many `connections`.

    `header_seconds` from connecting, or the reply before, to a request's whole head; `body_seconds` for its whole body;
    `stall_seconds` for a client to take what has been written to it.
    """

    body_bytes: Count = 64 << 20
    held_bytes: Count = 1 << 30
    connections: Count = 2048
    header_seconds: Positive = 15.0
    body_seconds: Positive = 60.0
    stall_seconds: Positive = 30.0

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.held_bytes < self.body_bytes:
            raise ValueError("held_bytes must have room for one body of body_bytes")
        return self
