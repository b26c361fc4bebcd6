"""What a server's reply must hold to be used, and the answer in it."""

from collections.abc import Callable
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Tokens = Annotated[int, Field(ge=0)]


class Answer(BaseModel):
    """Base of structured answers: no field more, none less, no string that passes for a number or a truth value."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class Message(_Part):
    """The text of a choice, or the refusal in its place."""

    content: str | None = None
    refusal: str | None = None


class Choice(_Part):
    """The `index`-th completion; `token_ids` (vLLM's) with the end-of-turn token where it was reached."""

    index: Tokens = 0
    message: Message
    finish_reason: str | None = None
    token_ids: list[Tokens] | None = None


class Usage(_Part):
    """The server's count."""

    prompt_tokens: Tokens
    completion_tokens: Tokens


class Reply(_Part):
    """The part of a chat completion that is used, and kept in the cache.

    `model` is what the server says it served; `policy` the digest in the gateway's header, which is checked once and not kept.
    """

    choices: Annotated[list[Choice], Field(min_length=1)]
    model: str | None = None
    policy: str | None = Field(default=None, exclude=True)
    usage: Usage | None = None
    prompt_token_ids: list[Tokens] | None = Field(default=None, exclude=True)  # vLLM's; checked once and not kept
    kept: bool = False  # read from the cache


T = TypeVar("T", bound=Answer)


def _first(error: ValidationError) -> str:
    # pydantic's message, never the input: that is the model's text
    details = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, details['loc'])) or 'the whole'}: {details['type']}"


def parse_reply(body: bytes) -> Reply:
    """A reply's body; ValueError if it is no chat completion."""
    try:
        return Reply.model_validate_json(body)
    except ValidationError as error:
        raise ValueError(f"no chat completion ({_first(error)})") from None


def answer_in(reply: Reply, kind: type[T], check: Callable[[T], None] | None = None) -> T:
    """The structured answer of a reply; ValueError if it was refused, cut off, of another form, or fails `check`."""
    choice = reply.choices[0]
    if choice.message.refusal:
        raise ValueError("the model refused")
    if choice.finish_reason not in ("stop", None):
        raise ValueError(f"the answer ended with {choice.finish_reason!r:.40}")
    try:
        answer = kind.model_validate_json(choice.message.content or "")
    except ValidationError as error:
        raise ValueError(f"not the form asked for ({_first(error)})") from None
    if check is not None:
        check(answer)
    return answer
