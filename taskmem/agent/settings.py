"""How an agent serves: what its answerer may read, and how much is done at once."""

from typing import Annotated

from pydantic import Field

from taskmem.service import Limits
from taskmem.settings import Count, Positive, Settings


class AgentSettings(Settings):
    """`answer_characters` of memories, with a few for each one's time, are all that an answerer sees of a stream.

    So many segments and questions are worked on at once (`at_once`), so many more wait for their turn (`waiting`); beyond that
    they are refused as busy. `decoders` processes look at videos, each for at most `decode_seconds`. Feedback is shipped every
    `ship_seconds`, at most `ship_events` in a part.
    """

    answer_characters: Annotated[int, Field(ge=100)] = 60_000
    at_once: Count = 32
    waiting: Count = 256
    decoders: Count = 2
    decode_seconds: Positive = 60.0
    ship_seconds: Positive = 5.0
    ship_events: Count = 1000
    page: Count = 1000  # memories of a GET
    limits: Limits = Limits()
