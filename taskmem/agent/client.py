"""The agent behind a network, for one environment: what `taskmem serve agent` offers, as the deployment knows agents."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx2
from pydantic import ValidationError

from taskmem.agent.contracts import Answered, Asked
from taskmem.agent.protocol import Answer, Served
from taskmem.endpoint.keys import ApiKey
from taskmem.endpoint.media import Clips
from taskmem.endpoint.parallel import in_order
from taskmem.errors import UserError
from taskmem.feedback import EventConflictError
from taskmem.policy.stream import refuse_repeated
from taskmem.records import FeedbackEvent, Memory, Part, Question, Segment, dump_record, one_line

AGAIN = (408, 429, 500, 502, 503, 504)
SHOWN = 300  # characters of a reason


class ServedHere(Part):
    """The reply of /v1/served."""

    environment: str
    policy: str
    adapter: str


@dataclass(frozen=True)
class Patience:
    """How an agent's server is waited for: `tries` of a request, each up to `seconds`, with pauses that grow up to `pause`.

    Trying again is safe: every request has a name under which the server knows it.
    """

    tries: int = 6
    seconds: float = 900.0
    pause: float = 10.0
    at_once: int = 16


class RemoteAgent:
    """`Agent` over HTTP; call it from one thread at a time. `clips` has the clips of what it is given to remember.

    It speaks for the environment whose `token` it has: a question or feedback of another is the caller's mistake.
    """

    def __init__(
        self,
        url: str,
        token: ApiKey,
        clips: Clips,
        patience: Patience | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url, self._token, self._clips = url.rstrip("/"), token, clips
        self._patience, self._sleep = patience or Patience(), sleep
        self._client: httpx2.Client | None = None
        self._last: dict[str, int] = {}
        self._mine = ""

    def __enter__(self) -> Self:
        timeout = httpx2.Timeout(self._patience.seconds, connect=min(10.0, self._patience.seconds))
        self._client = httpx2.Client(base_url=self._url, timeout=timeout, trust_env=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def ready(self) -> Served:
        """See `Agent.ready`."""
        here = self._served()
        return Served(here.policy, here.adapter)

    def remember(self, segments: Sequence[Segment]) -> list[Memory]:
        """See `Agent.remember`; what was remembered when one of several fails is remembered still, and may be sent again."""
        refuse_repeated(segments)
        for segment in segments:
            last = self._last.get(segment.stream)
            if last is not None and segment.index <= last:
                raise UserError(
                    f"segment {segment.index} of stream {segment.stream}: segment {last} was remembered before; give a "
                    "stream's in order"
                )
        memories = list(in_order(self._remember, segments, self._patience.at_once))
        self._last |= {segment.stream: segment.index for segment in segments}
        return memories

    def answer(self, question: Question) -> Answer:
        """See `Agent.answer`; the question's true answer, should it carry one, stays here."""
        self._check(question.environment, f"question {question.id}")
        asked = Asked(
            id=question.id,
            text=question.text,
            type=question.type,
            options=question.options,
            asked_at_s=question.asked_at_s,
        )
        what = f"question {question.id}"
        response = self._ask(
            what, "POST", f"/v1/streams/{quote(question.stream)}/questions", content=dump_record(asked)
        )
        if response.status_code == 404:  # nothing was remembered of its stream
            return Answer(None, ())
        answered: Answered = _parsed(Answered, self._done(response, what))
        return Answer(answered.answer, tuple(ground.id for ground in answered.memories))

    def feedback(self, event: FeedbackEvent) -> bool:
        """See `Agent.feedback`."""
        self._check(event.environment, f"event {event.id}")
        body = event.model_dump_json(exclude={"environment"})
        response = self._ask(f"event {event.id}", "POST", "/v1/feedback", content=body)
        if response.status_code == 409:
            raise EventConflictError(
                f"event {event.id}: is already there with other content; give the new one its own id"
            )
        return self._done(response, f"event {event.id}").status_code == 201

    def _remember(self, segment: Segment) -> Memory:
        what = f"segment {segment.index} of stream {segment.stream}"
        params = {"index": segment.index, "start_s": segment.start_s, "end_s": segment.end_s, "sampled": "true"}
        path = f"/v1/streams/{quote(segment.stream)}/segments"
        response = self._ask(what, "POST", path, params=params, content=self._clips.bytes_of(segment))
        memory: Memory = _parsed(Memory, self._done(response, what))
        return memory

    def _served(self) -> ServedHere:
        here: ServedHere = _parsed(ServedHere, self._done(self._ask("the agent", "GET", "/v1/served"), "the agent"))
        return here

    def _check(self, environment: str, what: str) -> None:
        self._mine = self._mine or self._served().environment
        if environment != self._mine:
            raise UserError(
                f"{what}: is of environment {environment}, and the token is {self._mine}'s; use that one's token"
            )

    def _done(self, response: httpx2.Response, what: str) -> httpx2.Response:
        if response.status_code not in (200, 201):
            raise UserError(f"{self._url}: refused {what} ({response.status_code}: {_reason(response)})")
        return response

    def _ask(self, what: str, method: str, path: str, **fields: Any) -> httpx2.Response:
        """The last reply to a request; UserError if there was none."""
        if self._client is None:
            raise UserError(f"the agent at {self._url}: not started; use it inside its `with` block")
        headers = {"Authorization": f"Bearer {self._token.reveal()}"}
        failure, response = "", None
        for turn in range(self._patience.tries):
            try:
                response = self._client.request(method, path, headers=headers, **fields)
                if response.status_code not in AGAIN:
                    return response
            except httpx2.TransportError as error:
                failure = type(error).__name__
            if turn + 1 < self._patience.tries:
                self._sleep(_pause(turn, response.headers if response else {}, self._patience.pause))
        if response is None:
            raise UserError(f"{self._url}: does not answer {what} ({failure}); start it, and run again with --resume")
        return response


def _pause(turn: int, headers: Mapping[str, str], most: float) -> float:
    """Seconds until the next try: what the server says, or twice as long each time, with jitter."""
    told = headers.get("retry-after", "")
    seconds = float(told) if told.isdigit() else 0.25 * 2.0**turn
    return min(seconds, most) * random.uniform(0.75, 1.25)


def _parsed(kind: type[Any], response: httpx2.Response) -> Any:
    try:
        return kind.model_validate_json(response.content)
    except ValidationError:
        raise UserError(
            f"{response.url.host}: gave no {kind.__name__}; is this an agent of the same version?"
        ) from None


def _reason(response: httpx2.Response) -> str:
    try:
        return one_line(str(response.json()["error"]["message"]))[:SHOWN]
    except (ValueError, KeyError, TypeError):
        return "no reason given"
