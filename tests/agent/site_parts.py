"""An agent that is served, with all its real parts, before a gateway of the test's; and what is sent to it."""

import random
from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Self

import httpx2
from service_parts import NOW, LogLines, Running
from standin import PROFILE, Gateway, Writes

from taskmem.agent.client import Patience, RemoteAgent
from taskmem.agent.routes import agent_app
from taskmem.agent.serving import Service
from taskmem.agent.settings import AgentSettings
from taskmem.agent.writing import held_clips
from taskmem.cli import shipped_base
from taskmem.endpoint.keys import ApiKey
from taskmem.files import sha256_bytes
from taskmem.gateway.tokens import create_token
from taskmem.records import Segment
from taskmem.stages.agent import Options, build_service
from taskmem.store import LocalStore
from taskmem.world.facts import sample_facts
from taskmem.world.render import SIDE, render_segment, write_mp4

KEPT = (2, 7)  # of a segment's ten frames, what sampling at 0.2 frames a second shows
ENVIRONMENTS = ("door", "room")


@cache
def clip(stream: str, index: int) -> bytes:
    """A segment's clip as the policy sees it: two frames."""
    return _mp4(_film(stream, index)[list(KEPT)], f"{stream}-{index}", Fraction(str(PROFILE.video.fps)))


@cache
def video(stream: str, index: int) -> bytes:
    """The video of the same segment as a camera gives it: ten seconds at one frame a second."""
    return _mp4(_film(stream, index), f"{stream}-{index}-whole")


def _film(stream: str, index: int) -> Any:
    rng = random.Random(f"{stream}-{index}")
    return render_segment(sample_facts(rng), rng)


def _mp4(film: Any, name: str, fps: Fraction = Fraction(1)) -> bytes:
    import tempfile  # noqa: PLC0415 - for this alone

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.mp4"
        write_mp4(path, film, fps)
        return path.read_bytes()


def sampled_segment(stream: str, index: int) -> Segment:
    """The record of a `clip`."""
    return Segment(
        stream=stream,
        index=index,
        start_s=index * 10.0,
        end_s=index * 10.0 + 10,
        source=f"{stream}.mp4",
        clip=f"clips/{stream}/{index:06d}.mp4",
        fps=PROFILE.video.fps,
        width=SIDE,
        height=SIDE,
        sha256=sha256_bytes(clip(stream, index)),
    )


class Site:
    """A store with tokens for two environments, a gateway, and the agent before it, served in this process."""

    def __init__(self, folder: Path, database: str, writes: Writes, **settings: Any) -> None:
        self.folder, self.database = folder, database
        self.store = LocalStore(folder / "store")
        self.tokens = {name: create_token(self.store, name, "a test", NOW) for name in ENVIRONMENTS}
        self.gateway = Gateway(writes)
        self.settings = AgentSettings.model_validate({"decoders": 1, "ship_seconds": 0.05, **settings})
        self.log = LogLines()
        self._held = ExitStack()

    def __enter__(self) -> Self:
        self._held.enter_context(self.gateway)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._held.close()

    def options(self, instance: str = "agent") -> Options:
        return Options(
            store=str(self.folder / "store"),
            gateway=self.gateway.url,
            database=self.database,
            policy=shipped_base(),
            responses=self.folder / "responses",
            instance=instance,
            image="local",
            seed=0,
            settings=self.settings,
        )

    def start(self) -> None:
        self.service: Service = build_service(self.options(), PROFILE, self.log.log("agent"))
        self._running = Running(agent_app(self.service), self.settings.limits).__enter__()
        self.url = self._running.url

    def stop(self) -> None:
        self._running.__exit__()

    def restart(self) -> None:
        self.stop()
        self.start()

    def client(self, environment: str | None = "door") -> httpx2.Client:
        headers = {"Authorization": f"Bearer {self.tokens[environment]}"} if environment else {}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    def send(
        self, stream: str, index: int, environment: str = "door", data: bytes | None = None, **params: Any
    ) -> httpx2.Response:
        """A segment, by default as a sampled clip."""
        path = f"/v1/streams/{stream}/segments"
        chosen = {"index": index, "sampled": "true", **params}
        with self.client(environment) as client:
            return client.post(path, params=chosen, content=clip(stream, index) if data is None else data)

    def ask(self, stream: str, environment: str = "door", **fields: Any) -> httpx2.Response:
        body = {"id": "q1", "text": "what is seen?", **fields}
        with self.client(environment) as client:
            return client.post(f"/v1/streams/{stream}/questions", json=body)

    def remote(self, segments: Sequence[Segment] = (), environment: str = "door") -> RemoteAgent:
        """The client, with the clips of these segments."""
        clips = held_clips({s.sha256: clip(s.stream, s.index) for s in segments}, PROFILE.video.limits)
        return RemoteAgent(self.url, ApiKey(self.tokens[environment]), clips, Patience(tries=3, pause=0.01))
