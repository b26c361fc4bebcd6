"""What people send the agent's questions as, and what they get: needs nothing that only the service has."""

from typing import Annotated, Literal

from pydantic import Field

from taskmem.records import Index, Name, Part, Seconds, Sha256

ANY = "any"
Text = Annotated[str, Field(min_length=1, max_length=4000)]


class Asked(Part):
    """A question as it is sent. Without `asked_at_s` it is about all of the stream so far."""

    id: Name
    text: Text
    type: Name = ANY
    options: Annotated[tuple[Text, ...], Field(max_length=50)] = ()
    asked_at_s: Seconds | None = None


class Ground(Part):
    """A memory that was read for an answer; `id` is stream:index."""

    id: str
    start_s: Seconds
    end_s: Seconds
    text: str


class Answered(Part):
    """The reply to a question: its answer, or null for "insufficient information", and the memories it rests on.

    `policy` and `adapter` (name@version or none) wrote the newest of these; null and none where there are none.
    """

    question: Name
    stream: Name
    asked_at_s: Seconds
    outcome: Literal["answered", "insufficient"]
    answer: str | None
    memories: tuple[Ground, ...]
    of_memories: Index  # so many there were; fewer were read if those passed the answerer's budget
    policy: Sha256 | None
    adapter: str
