"""taskmem serve all: policy, gateway and agent on this machine."""

# ruff: noqa: PLC0415 - a command imports its stage when it runs, so that --help is quick

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskmem.cli import MINIATURE, ProfileName, Seed, shipped_base
from taskmem.config import load_profile
from taskmem.saying import say

if TYPE_CHECKING:
    from taskmem.stages.common import Footage
    from taskmem.stages.services import Services


def everything(
    context: typer.Context,
    segments: Annotated[
        Path, typer.Option("--segments", help="Folder that `taskmem segment` wrote: the export is checked with it.")
    ],
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="Folder of the policy checkpoint; by default the embedded world's base."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for what the services keep.", file_okay=False)] = Path(
        "runs/serve"
    ),
    environment: Annotated[str, typer.Option("--environment", help="Whom to make a token for.")] = "home",
    store: Annotated[
        str | None, typer.Option("--store", help="Object store with adapters; by default a folder below --out.")
    ] = None,
    serving: Annotated[
        Path | None,
        typer.Option(
            "--serving", help="Environment with vLLM; by default this one, if it has it, else ./.venv-serving."
        ),
    ] = None,
    profile: ProfileName = MINIATURE,
    seed: Seed = 0,
) -> None:
    """Serve a policy with everything that belongs to it, until Ctrl-C; words after -- go to `vllm serve`.

    Ports on the loopback interface: policy 8000, gateway 8100 (8101 for its metrics), agent 8200.
    """
    from taskmem.stages.services import Ports
    from taskmem.stages.serving import Everything, serve_everything

    settings = load_profile(profile)
    out = out.absolute()

    def note(line: str) -> None:
        say(f"  {line}")

    def ready(services: "Services", token: str, film: "Footage") -> None:
        _show(services, out / "token", environment, segments, film)

    what = Everything(
        policy=policy or shipped_base(),
        segments=segments,
        environment=environment,
        folder=out,
        store=store or "",
        serving=serving,
        profile=settings,
        seed=seed,
        ports=Ports(),
        vllm=tuple(context.args),
    )
    serve_everything(what, note, ready)


def _show(services: "Services", token: Path, environment: str, segments: Path, film: "Footage") -> None:
    """How to try it."""
    first = film.segments[0]
    stream = f"{services.agent_url}/v1/streams/{first.stream}"
    bearer = f'-H "Authorization: Bearer $(cat {token})"'
    ask = '{"id": "q1", "type": "object", "text": "what was carried at 00:02?"}'
    lines = (
        f"agent {services.agent_url}, gateway {services.gateway_url}/v1 (OpenAI), token of {environment} in {token}",
        f"curl {bearer} --data-binary @{segments / first.clip} '{stream}/segments?index={first.index}&sampled=true'",
        f"curl {bearer} {stream}/memories",
        f"curl {bearer} -H 'Content-Type: application/json' -d '{ask}' {stream}/questions",
        f"curl {bearer} {services.gateway_url}/v1/models",
    )
    for line in lines:
        say(line)
