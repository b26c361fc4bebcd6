"""What a caller may ask for: checked here, so that nothing reaches the policy's server that is not meant to.

Fields are those of OpenAI's API and of vLLM's that change how a completion is drawn. Refused are all others: adapters chosen by
any other way than the model's name, templates, cache keys, priorities, and everything that makes the server open an address.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from taskmem.records import Name
from taskmem.service import Refused

MARKS = 200_000  # of the characters that open or part JSON values: what parsing costs in memory is bounded by them
MOST_MEMORIES = 1_000
MEMORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}:[0-9]{1,9}")

# a policy is shown nothing but videos
Data = Annotated[str, StringConstraints(pattern=r"^data:video/(mp4|jpeg);base64,")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Source(_Strict):
    url: Data


class _Text(_Strict):
    type: Literal["text"]
    text: str


class _Video(_Strict):
    type: Literal["video_url"]
    video_url: _Source


class _Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Annotated[_Text | _Video, Field(discriminator="type")]], Field(max_length=1000)]
    name: str | None = None

    @property
    def clips(self) -> list[_Video]:
        """What the message shows."""
        return [part for part in self.content if isinstance(part, _Video)]


class _Fields(_Strict):
    """The names alone decide here; what a value may be is for the server to say."""

    model: Annotated[str, Field(min_length=1, max_length=1000)]
    messages: Annotated[list[_Message], Field(min_length=1, max_length=1000)]
    n: int | None = None
    stream: bool | None = None
    stream_options: Any = None
    temperature: Any = None
    top_p: Any = None
    top_k: Any = None
    min_p: Any = None
    repetition_penalty: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    min_tokens: Any = None
    seed: Any = None
    stop: Any = None
    stop_token_ids: Any = None
    include_stop_str_in_output: Any = None
    ignore_eos: Any = None
    bad_words: Any = None
    allowed_token_ids: Any = None
    skip_special_tokens: Any = None
    spaces_between_special_tokens: Any = None
    response_format: Any = None
    return_token_ids: Any = None
    user: Any = None
    vllm_xargs: dict[Annotated[str, Field(pattern=r"^taskmem_[a-z]{1,32}$")], int] | None = None


@dataclass(frozen=True)
class Ask:
    """A checked request: the model's name as the caller says it, the body, and what it is about.

    `stream`, `question` and `memories` are for the response log alone; `clips` are the data URLs of what it shows.
    """

    model: str
    body: Mapping[str, Any]
    streamed: bool
    stream: str | None
    question: str | None
    memories: tuple[str, ...]
    clips: tuple[str, ...] = ()

    def to(self, model: str, salt: str) -> dict[str, Any]:
        """The body as the server gets it: what was said, for another name of the model.

        `salt` keeps the server's prefix cache apart: else the time that a reply takes tells what others have asked.
        """
        said = {name: value for name, value in self.body.items() if name != "user"}
        return {**said, "model": model, "cache_salt": salt}


def parse_ask(body: bytes, headers: Mapping[str, str], completions: int) -> Ask:
    """The request in `body`; Refused 400, naming the field, if it is none. `completions` is the largest n."""
    if sum(body.count(mark) for mark in (b"{", b"[", b",")) > MARKS:
        raise _invalid("body", f"more than {MARKS} values")
    try:
        said = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _invalid("body", "not JSON") from None
    try:
        fields = _Fields.model_validate(said)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        # the names of unknown fields are what a client sent
        path = [str(part)[:64] for part in first["loc"]]
        raise _invalid(".".join(path) or "body", _word(first["type"], first["msg"])) from None
    if fields.n is not None and not 1 <= fields.n <= completions:
        raise _invalid("n", f"1 to {completions} completions are written for a request")
    return Ask(
        model=fields.model,
        body=said,
        streamed=bool(fields.stream),
        stream=_name(headers, "x-taskmem-stream"),
        question=_name(headers, "x-taskmem-question"),
        memories=_memories(headers),
        clips=tuple(part.video_url.url for message in fields.messages for part in message.clips),
    )


def _word(kind: str, message: str) -> str:
    return "not taken here" if kind == "extra_forbidden" else message


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _name(headers: Mapping[str, str], header: str) -> str | None:
    value = headers.get(header)
    try:
        return None if value is None else TypeAdapter(Name).validate_python(value)
    except ValidationError:
        raise _invalid(header, "not a safe name") from None


def _memories(headers: Mapping[str, str]) -> tuple[str, ...]:
    value = headers.get("x-taskmem-memories", "")
    ids = tuple(id_.strip() for id_ in value.split(",")) if value else ()
    if len(ids) > MOST_MEMORIES or not all(MEMORY.fullmatch(id_) for id_ in ids):
        raise _invalid("x-taskmem-memories", f"give at most {MOST_MEMORIES} ids stream:index, parted by commas")
    return ids


def _invalid(param: str, what: str) -> Refused:
    return Refused(400, f"{param}: {what}", "invalid", param=param)
