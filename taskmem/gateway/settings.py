"""What a gateway allows, and how long it waits. Seconds, unless it says otherwise."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from taskmem.service import Limits
from taskmem.service.reading import read_settings as read_service_settings
from taskmem.settings import Count, NonNegative, Positive, Settings


class GatewaySettings(Settings):
    """`in_flight` requests are with the policy's server at a time, `waiting` more may wait, `wait_seconds` long at most.

    `share` of all these may be one environment's. `reply_seconds` bounds a whole reply, `connect_seconds` a connection to the
    server, `load_seconds` the loading of an adapter. `adapters` may be loaded at a time: at least as many as requests in
    flight, so that one can always be given up. A champion is looked up again after `champion_seconds`: so long a replaced one
    may still be given to new requests. An adapter that the server refused is tried again after `refused_seconds`, whether the
    server is still the same every `watch_seconds`.
    """

    in_flight: Count = 64
    waiting: Count = 128
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    wait_seconds: Positive = 30.0
    retry_seconds: Positive = 2.0  # what a client is told to wait when there is no place
    reply_seconds: Positive = 600.0
    connect_seconds: Positive = 5.0
    load_seconds: Positive = 60.0
    adapters: Count = 256
    champion_seconds: NonNegative = 1.0
    token_seconds: NonNegative = 5.0
    refused_seconds: NonNegative = 30.0
    watch_seconds: Positive = 2.0
    decoders: Count = 2  # processes that look into clips
    clip_seconds: Positive = 20.0  # for one clip
    completions: Annotated[int, Field(ge=1, le=1024)] = 32  # the largest n of a request
    reply_bytes: Count = 64 << 20
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _one_is_free(self) -> Self:
        if self.adapters < self.in_flight:
            raise ValueError("adapters must be at least in_flight, so that one that nobody uses can be given up")
        return self


def read_settings(path: Path | None) -> GatewaySettings:
    """The settings in a YAML file, the defaults where it is silent; UserError naming the file and the field if it is wrong."""
    return read_service_settings(path, GatewaySettings)
