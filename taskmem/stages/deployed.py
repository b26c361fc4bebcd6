"""The agent that a deployment works with: in this process, as services of this machine, or served already."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import TypeAdapter, ValidationError

from taskmem.agent import Agent, Answer, Answerer, LocalAgent, Served
from taskmem.agent.client import RemoteAgent
from taskmem.config import Profile
from taskmem.endpoint.keys import ApiKey
from taskmem.endpoint.media import Clips
from taskmem.errors import UserError
from taskmem.feedback import EventLog, log_path
from taskmem.feedback.parts import FeedbackParts
from taskmem.gateway.tokens import create_token
from taskmem.policy.export import export_policy
from taskmem.policy.transformers_policy import policy_digest
from taskmem.records import FeedbackEvent, Memory, Question, Segment
from taskmem.registry import adopt, promote
from taskmem.serving import LocalServices, RunningAgent
from taskmem.stages.common import Footage
from taskmem.stages.policies import load_policy
from taskmem.stages.services import Ports, Services, Site
from taskmem.store import open_store
from taskmem.vllm_plugin.check import Sample, greedy_check, serving_python

EXPORTED, STORE = "policy", "store"
BY = "deployment"


class Tenants:
    """`Agent` for several environments, each with its own agent behind a network; every one watches all the streams."""

    def __init__(self, agents: dict[str, RemoteAgent]) -> None:
        self._agents = agents
        self._held = ExitStack()

    def __enter__(self) -> Self:
        for agent in self._agents.values():
            self._held.enter_context(agent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def ready(self) -> Served:
        """See `Agent.ready`; UserError if the environments are served differently."""
        served = {name: agent.ready() for name, agent in self._agents.items()}
        first, *others = served.items()
        for name, other in others:
            if other != first[1]:
                raise UserError(
                    f"environments {first[0]} and {name}: served by {first[1]} and {other}; deploy them one by one"
                )
        return first[1]

    def remember(self, segments: Sequence[Segment]) -> list[Memory]:
        """See `Agent.remember`; what one environment's agent wrote, all others wrote too."""
        written = {name: agent.remember(segments) for name, agent in self._agents.items()}
        first, *others = written.items()
        for name, memories in others:
            if memories != first[1]:
                stream = next(ours.stream for ours, theirs in zip(first[1], memories, strict=True) if ours != theirs)
                raise UserError(
                    f"stream {stream}: environments {first[0]} and {name} remember it differently; deploy them one by one"
                )
        return first[1]

    def answer(self, question: Question) -> Answer:
        """See `Agent.answer`."""
        return self._of(question.environment).answer(question)

    def feedback(self, event: FeedbackEvent) -> bool:
        """See `Agent.feedback`."""
        return self._of(event.environment).feedback(event)

    def _of(self, environment: str) -> RemoteAgent:
        if environment not in self._agents:
            known = ", ".join(sorted(self._agents))
            raise UserError(
                f"environment {environment}: this deployment serves {known} alone; give questions of these, or its token"
            )
        return self._agents[environment]


class Kept(Tenants):
    """Feedback is kept in logs of our own too, which the next stage reads."""

    def __init__(self, agents: dict[str, RemoteAgent], events: Path) -> None:
        super().__init__(agents)
        self._events = events

    def feedback(self, event: FeedbackEvent) -> bool:
        """See `Agent.feedback`; in the log once the agent has acknowledged it."""
        new = super().feedback(event)
        with EventLog(log_path(self._events, event.environment)) as log:
            log.append(event)
        return new


@contextmanager
def deployed_agent(
    policy: Path,
    film: Footage,
    folder: Path,
    environments: Sequence[str],
    answerer: Answerer,
    profile: Profile,
    seed: int,
    events: Path,
    adapter: Path | None,
) -> Iterator[Agent]:
    """An agent with the policy, steered by the adapter in `adapter`, that serves `environments`; feedback goes to `events`.

    `profile.serving` says which kind; with services of this machine what they keep is below `events`' folder. `folder` is the
    segmentation's. UserError if it cannot be started, or serves something else.
    """
    serving = profile.serving
    if serving is None:
        writer = load_policy(policy, profile, film.frames_of, adapter)
        with LocalAgent(writer, answerer, profile.policy.window, seed, events) as agent:
            yield agent
        return
    clips = Clips.below(folder, profile.video.limits)
    with ExitStack() as held:
        if serving.running is not None:
            url, tokens, store = serving.running.url, _mounted(serving.running, environments), None
        else:
            assert serving.local is not None
            site, tokens = _site(serving.local, policy, film, folder, environments, profile, seed, events, adapter)
            services = Services(site)
            held.enter_context(services)
            url, store = services.agent_url, site.store
        agents = {name: RemoteAgent(url, ApiKey(token), clips) for name, token in tokens.items()}
        kept = held.enter_context(Kept(agents, events))
        _check(kept.ready(), policy, adapter, url)
        yield kept
    if store is not None:
        _check_shipped(store, environments, events)


def _site(
    local: LocalServices,
    policy: Path,
    film: Footage,
    folder: Path,
    environments: Sequence[str],
    profile: Profile,
    seed: int,
    events: Path,
    adapter: Path | None,
) -> tuple[Site, dict[str, str]]:
    """Where the services of this machine work, with the policy exported and checked, and each environment's token."""
    place = events.parent / "services"
    python = serving_python(Path(local.environment))
    digest = policy_digest(policy)
    sample = Sample(film.segments, lambda segment: folder / segment.clip, film.frames_of, profile)
    export_policy(policy, digest, place / EXPORTED, greedy_check(policy, digest, sample, python))
    store = open_store(str(place / STORE))
    now = datetime.now(UTC)
    if adapter is not None:
        champion = adopt(store, adapter)
        promote(store, champion.environment, champion.version, None, b"{}", BY, now, "deployed as it was given")
    tokens = {name: create_token(store, name, BY, now) for name in environments}
    site = Site(
        policy=place / EXPORTED,
        python=Path(local.environment),
        store=str(place / STORE),
        folder=place,
        profile=profile.model_copy(update={"cluster": None, "serving": None}),
        seed=seed,
        ports=Ports.free(),
        vllm=tuple(local.vllm),
        seconds=local.start_seconds,
    )
    return site, tokens


def _mounted(running: RunningAgent, environments: Sequence[str]) -> dict[str, str]:
    """The token of each environment; UserError, which shows none, if the file is none or lacks one."""
    try:
        known = TypeAdapter(dict[str, str]).validate_python(json.loads(Path(running.tokens).read_bytes()))
    except OSError as error:
        raise UserError(f"{running.tokens}: cannot be read ({error.strerror}); mount the tokens there") from None
    except (ValueError, ValidationError):
        raise UserError(f"{running.tokens}: not a JSON object {{environment: token}}; write it again") from None
    missing = sorted(set(environments) - set(known))
    if missing:
        raise UserError(f"{running.tokens}: no token of {', '.join(missing)}; make it with `taskmem token create`")
    return {name: known[name] for name in environments}


def _check(served: Served, policy: Path, adapter: Path | None, url: str) -> None:
    """UserError if it is not this policy and adapter that is served."""
    wanted = Served(policy_digest(policy), adapter.name if adapter else "none")
    if served != wanted:
        raise UserError(
            f"{url}: serves policy {served.policy[:12]} with adapter {served.adapter}, not {wanted.policy[:12]} with "
            f"{wanted.adapter}; serve that first"
        )


def _check_shipped(store: str, environments: Sequence[str], events: Path) -> None:
    """UserError if the object store has other feedback than was acknowledged."""
    for name in environments:
        path = log_path(events, name)
        ours = path.read_bytes() if path.exists() else b""
        parts = FeedbackParts(open_store(store), name)
        shipped = b"".join(line for part in parts.read() for line in part.lines)
        if shipped != ours:
            raise UserError(f"{store}: the feedback of {name} is not what the agent acknowledged; see {path}")
