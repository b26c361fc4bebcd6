"""What each role behind a network asks of its server: address, model, price, patience. Plain data; endpoint/ acts on it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from taskmem.cluster import Variable
from taskmem.settings import Count, NonNegative, Positive, Settings, Share

RoleName = Literal["policy", "fidelity", "redundancy", "richness", "helpfulness", "answerer", "grader"]
Tries = Annotated[int, Field(ge=0)]


class KeySource(Settings):
    """Where a server's API key lies: an environment variable or a mounted file. The key itself is in no file of ours."""

    variable: Variable | None = None
    file: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.variable is None) == (self.file is None):
            raise ValueError("give one of variable and file")
        return self


class Price(Settings):
    """Money per million tokens, in the currency of the budget."""

    prompt: NonNegative
    completion: NonNegative


class ServerSettings(Settings):
    """One role's server. `revision` tells apart two models served under one name: it is part of every cache key.

    `media` is how video travels: an mp4, vLLM's sequence of lossless frames (the same pixels as in this process), or single
    images for servers that take no video. A budget can only be kept if no clip (for images: no frame) counts more than
    `media_tokens` prompt tokens.
    """

    base_url: Annotated[str, Field(pattern=r"^https?://[^@\s]+$")]
    key: KeySource | None
    model: Annotated[str, Field(min_length=1)]
    revision: str
    media: Literal["mp4", "frames", "images"]
    media_tokens: Count
    price: Price
    concurrency: Count
    connect_seconds: Positive
    reply_seconds: Positive  # from the request to the last byte of the reply
    retries: Tries  # after 408, 409, 429, 5xx, time-outs and cut connections
    invalid_retries: Tries  # after a reply that is no answer


class RoleSettings(ServerSettings):
    """A judge's, answerer's or grader's server and how it samples; a policy samples as the profile's `policy` says."""

    temperature: NonNegative
    seed: int
    max_completion_tokens: Count


class BudgetSettings(Settings):
    """What all roles together may spend; null = no bound."""

    money: Positive | None
    tokens: Count | None


class CallSettings(Settings):
    """Every role that is asked over HTTP, and the bounds that hold for all of them."""

    policy: ServerSettings | None
    roles: dict[Literal["fidelity", "redundancy", "richness", "helpfulness", "answerer", "grader"], RoleSettings]
    budget: BudgetSettings
    failed_share: Share  # calls of a role that may fail for good before the stage fails
    failed_in_a_row: (
        Count | None
    )  # failures of a role, one after the other, that stop the stage at once; null: a service
    shuffles: Count  # orders in which the richness judge sees a group, each followed by its reverse; ranks are averaged
