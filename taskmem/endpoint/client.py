"""The client: every call of every role, through the cache, the ledger and the budget."""

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx2
import openai

from taskmem.endpoint.answers import Answers
from taskmem.endpoint.keys import ApiKey, resolve_key
from taskmem.endpoint.ledger import Call, Calls, Ledger, Told
from taskmem.endpoint.purse import Charge, Purse
from taskmem.endpoint.reply import Answer, Reply, answer_in, parse_reply
from taskmem.endpoint.wire import Ask, Metered
from taskmem.errors import UserError
from taskmem.files import canonical_json, sha256_bytes
from taskmem.records import one_line
from taskmem.roles import CallSettings, RoleName, RoleSettings, ServerSettings

Body = dict[str, Any]
T = TypeVar("T", bound=Answer)
V = TypeVar("V")
FRAME_TOKENS = 64  # what a chat template writes around one message or part, at most
ANSWERS = "answers"
MISCONFIGURED = (401, 403, 404)
SERVED_POLICY = "x-taskmem-policy"  # the gateway's header with the digest of what it serves
_MEDIA = ("video_url", "image_url")


class CallError(Exception):
    """A call failed for good, after all its retries: the message is the reason, without any text of the model's."""


@dataclass(frozen=True)
class Caller:
    """On whose behalf a service calls: its own key, and what the server is told of the call."""

    key: ApiKey
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Role:
    """What one role needs while it works: its server, its places in line, and how it has fared."""

    settings: ServerSettings
    key: ApiKey | None
    places: threading.BoundedSemaphore
    lock: threading.Lock = field(default_factory=threading.Lock)
    asked: int = 0
    failed: int = 0
    in_a_row: int = 0
    reason: str = ""


class Endpoint:
    """All roles of `settings`, with `folder`/answers (cache) and `folder`/run.jsonl (ledger); thread-safe.

    One process at a time works with a folder; it may outlive many. Retries, their jitter and Retry-After are the openai
    package's. Keys are read from `environment` and files here, once.
    Without a folder it is a service's: no answer is kept, for what it is asked must be erasable; calls are told to `tell` as they
    end; and what one caller meets, be it a refused key, ends nobody else's calls.
    """

    def __init__(
        self,
        settings: CallSettings,
        folder: Path | None,
        environment: Mapping[str, str],
        tell: Callable[[Call], None] = lambda _: None,
    ) -> None:
        """UserError for a missing key, or a folder that cannot be used."""
        self._settings = settings
        servers: dict[RoleName, ServerSettings] = {}
        for name, server in settings.roles.items():
            servers[name] = server
        if settings.policy is not None:
            servers["policy"] = settings.policy
        self._roles = {name: _role(server, environment) for name, server in servers.items()}
        self._answers = Answers(folder / ANSWERS) if folder else None
        self._flights: dict[str, tuple[threading.Lock, int]] = {}
        self._lock = threading.Lock()
        self._transport = httpx2.HTTPTransport(trust_env=False, limits=httpx2.Limits(keepalive_expiry=5.0))
        self._ledger: Calls = Ledger(folder) if folder else Told(tell)
        self._purse = Purse(settings.budget, self._ledger.spent, str(folder or "calls"))

    @property
    def settings(self) -> CallSettings:
        """The settings it was made with."""
        return self._settings

    @property
    def spent(self) -> Charge:
        """All that the folder's ledger holds."""
        return self._purse.spent

    def server(self, role: RoleName) -> ServerSettings:
        """A role's server; UserError if the profile names none."""
        return self._role(role).settings

    def _role(self, role: RoleName) -> _Role:
        if role not in self._roles:
            raise UserError(f"calls.roles.{role}: the profile names no server for this role; add it")
        return self._roles[role]

    def ask(
        self, role: RoleName, messages: Sequence[Body], kind: type[T], check: Callable[[T], None] | None = None
    ) -> T:
        """A structured answer of form `kind`, for which `check` raises no ValueError.

        Raises CallError if the role failed for good, UserError if the budget ends, the server refuses the key or model, or the
        role has failed too often in a row.
        """
        settings = self._role(role).settings
        if not isinstance(settings, RoleSettings):
            raise TypeError(f"role {role} gives no structured answers")
        schema = {"name": kind.__name__, "schema": kind.model_json_schema(), "strict": True}
        body: Body = {
            "model": settings.model,
            "messages": list(messages),
            "temperature": settings.temperature,
            "seed": settings.seed,
            "max_completion_tokens": settings.max_completion_tokens,
            "response_format": {"type": "json_schema", "json_schema": schema},
        }
        return self._answered(role, body, lambda reply: answer_in(reply, kind, check))

    def sample(
        self,
        role: RoleName,
        body: Body,
        digest: str,
        check: Callable[[Reply], None],
        caller: Caller | None = None,
    ) -> Reply:
        """A reply with the `body["n"]` completions of a request to the model of that digest; errors as `ask`, and as `check`.

        `body` holds max_completion_tokens, n and seed, and goes to the server as it is. `check` is given what it sends back; not
        what comes from the cache. It is asked with the key of `caller`, if there is one, instead of the role's.
        """

        def complete(reply: Reply) -> Reply:
            if len(reply.choices) != body["n"]:
                raise ValueError(f"{len(reply.choices)} completions instead of {body['n']}")
            if [choice.index for choice in reply.choices] != list(range(body["n"])):
                raise ValueError("completions out of order")
            if not reply.kept:
                check(reply)
            return reply

        return self._answered(role, body, complete, digest, caller)

    def check(self) -> None:
        """UserError if a role failed for good in more than the set share of its calls: for the end of a stage."""
        for name, role in self._roles.items():
            if role.failed > self._settings.failed_share * role.asked:
                raise UserError(
                    f"role {name}: {role.failed} of {role.asked} calls failed, the last: {role.reason}; mend the server "
                    "and run again with --resume: what was answered is kept"
                )

    def close(self) -> None:
        """Close connections and ledger."""
        self._transport.close()
        self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answered(
        self,
        name: RoleName,
        body: Body,
        accept: Callable[[Reply], V],
        digest: str = "",
        caller: Caller | None = None,
    ) -> V:
        role = self._role(name)
        key = sha256_bytes(canonical_json([role.settings.base_url, role.settings.revision, digest, body]))
        with self._alone(key):
            known = self._answers.get(key) if self._answers else None
            # an answer that a later version of its check refuses is asked for again
            for answer in _accepted_of(known, accept):
                self._ledger.cached(name, body["model"], key)
                _fared(role, None)
                return answer
            with role.places:
                try:
                    return self._called(name, role, key, body, accept, caller)
                except UserError as error:
                    # whoever waits or tries again must not spend more on a run that has to stop
                    if self._answers:
                        self._purse.end(str(error))
                    raise

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Equal requests go one after the other, so that the second finds the first one's answer."""
        with self._lock:
            lock, waiting = self._flights.get(key, (threading.Lock(), 0))
            self._flights[key] = lock, waiting + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                waiting = self._flights[key][1] - 1
                if waiting:
                    self._flights[key] = lock, waiting
                else:
                    del self._flights[key]

    def _called(
        self,
        name: RoleName,
        role: _Role,
        key: str,
        body: Body,
        accept: Callable[[Reply], V],
        caller: Caller | None,
    ) -> V:
        reason = ""
        asking = caller.key if caller else role.key
        for turn in range(role.settings.invalid_retries + 1):
            metered = self._metered(name, role, key, body)
            try:
                sent = _exchanged(metered, role, key, turn, body, caller)
                if isinstance(sent, str):
                    reason = sent
                    break
                try:
                    return self._accepted(metered, role, asking, key, sent, accept)
                except ValueError as error:
                    reason = str(error)
            finally:
                metered.abandon()
        limit = self._settings.failed_in_a_row
        if _fared(role, reason) >= (limit or math.inf):
            raise UserError(
                f"role {name}: {role.in_a_row} calls in a row failed, the last: {reason}; mend the server and run again "
                "with --resume: what was answered is kept"
            )
        raise CallError(reason)

    def _metered(self, name: RoleName, role: _Role, key: str, body: Body) -> Metered:
        prompt = most_prompt_tokens(body, role.settings.media_tokens)
        most = Charge.priced(role.settings.price, prompt, body["max_completion_tokens"] * body.get("n", 1))
        ask = Ask(name, body["model"], key, most)
        return Metered(self._transport, self._ledger, self._purse, ask, role.settings.reply_seconds)

    def _accepted(
        self,
        metered: Metered,
        role: _Role,
        asking: ApiKey | None,
        key: str,
        got: "_Got",
        accept: Callable[[Reply], V],
    ) -> V:
        """The answer in a reply, once it is kept and paid; ValueError if there is none."""
        reply: Reply | None = None
        price = role.settings.price
        try:
            if asking is not None and asking.stands_in(got.content.decode(errors="replace")):
                raise ValueError("the reply holds the API key")
            reply = parse_reply(got.content).model_copy(update={"policy": got.policy})
            answer = accept(reply)
        except (ValueError, UserError):
            metered.settle("invalid", reply.usage if reply else None, price)
            raise
        # kept before it is settled: a process that dies between the two has paid, and need not pay again
        if self._answers:
            self._answers.put(key, reply)
        most = metered.most
        charge = metered.settle("answered", reply.usage, price)
        if self._answers and (charge.tokens > most.tokens or charge.nano > most.nano):
            raise UserError(
                f"the server of {role.settings.model} counted {charge.tokens} tokens where at most {most.tokens} were "
                "expected, so no budget can be kept; raise its media_tokens in the profile and run again with --resume"
            )
        _fared(role, None)
        return answer


def _accepted_of(known: Reply | None, accept: Callable[[Reply], V]) -> list[V]:
    """The answer in a kept reply, if there is one."""
    try:
        return [] if known is None else [accept(known)]
    except ValueError:
        return []


def _role(server: ServerSettings, environment: Mapping[str, str]) -> _Role:
    key = resolve_key(server.key, environment) if server.key is not None else None
    return _Role(server, key, threading.BoundedSemaphore(server.concurrency))


def _fared(role: _Role, failure: str | None) -> int:
    """Note how a call went; the failures in a row."""
    with role.lock:
        role.asked += 1
        role.failed += failure is not None
        role.in_a_row = role.in_a_row + 1 if failure is not None else 0
        role.reason = failure or role.reason
        return role.in_a_row


def most_prompt_tokens(body: Body, media_tokens: int) -> int:
    """The most prompt tokens a request can count: no token is shorter than a byte, and media have their bound."""
    tokens = len(canonical_json(body.get("response_format", {})).encode())
    for message in body["messages"]:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        tokens += FRAME_TOKENS
        for part in parts:
            own = media_tokens if part["type"] in _MEDIA else len(part["text"].encode())
            tokens += FRAME_TOKENS + own
    return tokens


@dataclass(frozen=True)
class _Got:
    """A reply's body, and the digest of the policy that the gateway says it comes from."""

    content: bytes
    policy: str | None


def _exchanged(metered: Metered, role: _Role, key: str, turn: int, body: Body, caller: Caller | None) -> _Got | str:
    """The reply, or the reason why there was none. UserError if the settings are to blame, or the caller's key."""
    settings = role.settings
    asking = caller.key if caller else role.key
    timeout = httpx2.Timeout(settings.reply_seconds, connect=settings.connect_seconds)
    # a header of this kind from the environment would go to a server it was not meant for
    headers: dict[str, str | openai.Omit] = {
        "OpenAI-Organization": openai.omit,
        "OpenAI-Project": openai.omit,
        "Idempotency-Key": f"{key}-{turn}",
    }
    if asking is None:
        headers["Authorization"] = openai.omit
    client = openai.OpenAI(
        api_key=asking.reveal() if asking else "none",
        base_url=settings.base_url,
        max_retries=settings.retries,
        http_client=httpx2.Client(transport=metered, timeout=timeout, trust_env=False),
    )
    # a deterministic server would repeat an invalid answer to the same seed; a policy's says which draws are wanted
    sent = {**body, "seed": body["seed"] + turn} if isinstance(settings, RoleSettings) else body
    problem: tuple[int | None, str]
    try:
        raw = client.chat.completions.with_raw_response.create(
            model=body["model"],
            messages=body["messages"],
            extra_body=sent,
            extra_headers={**headers, **(caller.headers if caller else {})},
        )
        return _Got(raw.content, raw.headers.get(SERVED_POLICY))
    except openai.APIStatusError as error:
        problem = error.status_code, error.message
    except openai.APITimeoutError:
        problem = None, f"no reply within {settings.reply_seconds:g} s"
    except openai.APIConnectionError as error:
        problem = None, f"no connection ({type(error.__cause__).__name__})"
    status, text = problem
    reason = one_line(asking.hide(text) if asking else text)[:300]
    if status in MISCONFIGURED:
        raise UserError(
            f"{settings.base_url}: refused model {body['model']} ({reason}); mend its key, model or base_url"
        )
    return reason
