"""An agent as a service, put together from its command's options: the one place that knows which answerer it has."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from taskmem.agent.asking import Asker
from taskmem.agent.clips import ClipMaker
from taskmem.agent.forgetting import Forgetter
from taskmem.agent.logged import LogEraser
from taskmem.agent.metrics import Metrics
from taskmem.agent.outbox import Outbox
from taskmem.agent.routes import agent_app
from taskmem.agent.serving import Service
from taskmem.agent.settings import AgentSettings
from taskmem.agent.storage import Storage
from taskmem.agent.upstream import Upstream
from taskmem.agent.writing import PolicyFor, Writer, held_clips
from taskmem.backends import Remote, answerer_for
from taskmem.config import Profile
from taskmem.endpoint.client import Endpoint
from taskmem.endpoint.keys import ApiKey
from taskmem.endpoint.ledger import Call
from taskmem.endpoint.media import Clips
from taskmem.erasure.served import StoreErasure
from taskmem.gateway.responses import ResponseLog
from taskmem.gateway.tokens import Tokens
from taskmem.policy.exported import EXPORT, read_export
from taskmem.policy.http import HttpPolicy, Tenant, Vocabulary
from taskmem.policy.protocols import Policy
from taskmem.roles import BudgetSettings, CallSettings, Price, RoleSettings, ServerSettings
from taskmem.service import ServiceLog, serve
from taskmem.store import open_store

TRIES_AGAIN = 2  # a caller who waits tries again himself
BUSY_CONNECTIONS = 16


@dataclass(frozen=True)
class Options:
    """What an agent is started with; see `taskmem serve agent`."""

    store: str
    gateway: str
    database: str
    policy: Path
    responses: Path
    instance: str
    image: str
    seed: int
    settings: AgentSettings


def serve_agent(options: Options, profile: Profile, host: str, port: int) -> None:
    """Serve until a signal ends it; UserError for what is wrong with the options, or a database that does not answer."""
    log = ServiceLog("agent", sys.stderr, _now)
    service = build_service(options, profile, log)
    serve(agent_app(service), host, port, options.settings.limits, log)


def build_service(options: Options, profile: Profile, log: ServiceLog) -> Service:
    """The parts of an agent, open; `Service.close` closes them. UserError as `serve_agent`."""
    with ExitStack() as held:
        settings, metrics, store = options.settings, Metrics(), open_store(options.store)
        storage = held.enter_context(Storage(options.database, BUSY_CONNECTIONS))
        responses = held.enter_context(ResponseLog(options.responses, options.instance))
        clips = held.enter_context(ClipMaker(profile.video, settings.decoders, settings.decode_seconds))
        endpoint = held.enter_context(_endpoint(profile, options.gateway, metrics.called))
        digest = served_digest(options.policy)
        upstream = Upstream(options.gateway, store, digest)
        held.callback(upstream.close)
        remote = Remote(endpoint, held_clips({}, profile.video.limits))
        outbox = Outbox(storage, store, time.time, settings.ship_events)
        eraser = LogEraser(storage, responses, options.instance)
        writes = _policy_for(endpoint, profile, options.policy, digest)
        return Service(
            storage=storage,
            tokens=Tokens(store, time.monotonic),
            writer=Writer(storage, clips, writes, profile.video, profile.policy.window, options.seed),
            asker=Asker(storage, answerer_for(profile, remote), settings.answer_characters),
            outbox=outbox,
            forgetter=Forgetter(storage, outbox, StoreErasure(options.store, _now), eraser),
            responses=responses,
            log_eraser=eraser,
            lookup=upstream,
            log=log,
            metrics=metrics,
            settings=settings,
            policy=digest,
            image=options.image,
            now=_now,
            close=held.pop_all().close,
        )
    raise AssertionError("unreachable")


def served_digest(policy: Path) -> str:
    """The digest of the policy in a folder: an export's, or a checkpoint's own."""
    if (policy / EXPORT).is_file():
        return read_export(policy).policy
    from taskmem.policy.transformers_policy import policy_digest  # noqa: PLC0415 - torch, which an export's agent needs not

    return policy_digest(policy)


def _policy_for(endpoint: Endpoint, profile: Profile, folder: Path, digest: str) -> PolicyFor:
    vocabulary = Vocabulary.load(folder)

    def policy_for(environment: str, key: ApiKey, clips: Clips) -> Policy:
        tenant = Tenant(environment, key)
        return HttpPolicy(endpoint, profile.policy, clips, vocabulary, digest, tenant=tenant)

    return policy_for


def _endpoint(profile: Profile, gateway: str, tell: Callable[[Call], None]) -> Endpoint:
    return Endpoint(service_calls(profile, gateway), None, os.environ, tell)


def service_calls(profile: Profile, gateway: str) -> CallSettings:
    """How the policy, behind the gateway, and the answerer are called: as the profile says, without the bounds of a run."""
    calls = profile.calls
    url = f"{gateway.rstrip('/')}/v1"
    policy = calls.policy if calls and calls.policy else _plain_server(url)
    answerer = calls.roles.get("answerer") if calls and not profile.world else None
    return CallSettings(
        policy=policy.model_copy(update={"base_url": url, "key": None, "retries": min(policy.retries, TRIES_AGAIN)}),
        roles={"answerer": _hasty(answerer)} if answerer else {},
        budget=BudgetSettings(money=None, tokens=None),
        failed_share=1.0,
        failed_in_a_row=None,
        shuffles=calls.shuffles if calls else 2,
    )


def _hasty(role: RoleSettings) -> RoleSettings:
    return role.model_copy(update={"retries": min(role.retries, TRIES_AGAIN)})


def _plain_server(url: str) -> ServerSettings:
    """The policy's server of a profile that names none: its prices and tokens are nobody's concern."""
    return ServerSettings(
        base_url=url,
        key=None,
        model="policy",
        revision="",
        media="mp4",
        media_tokens=4096,
        price=Price(prompt=0.0, completion=0.0),
        concurrency=64,
        connect_seconds=10.0,
        reply_seconds=600.0,
        retries=TRIES_AGAIN,
        invalid_retries=0,
    )


def _now() -> datetime:
    return datetime.now(UTC)
